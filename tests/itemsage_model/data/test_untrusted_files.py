"""Files that hold code (SECURITY.md): neither Petastorm nor pyarrow runs it when a table with such files is read."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import InputError
from schemas.input_tables import look_at_input
from schemas.tables import ITEMS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Petastorm's, of interfaces that pyarrow deprecates
    from petastorm.cache import NullCache
    from petastorm.etl.dataset_metadata import UNISCHEMA_KEY
    from petastorm.etl.legacy import restricted_loads

    from itemsage_model.data.row_groups import open_reader

pytestmark = pytest.mark.filterwarnings("ignore")


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, makes: Path) -> None:
        self.makes = makes

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.makes)!r}, 'w').close()",)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder with a file of rows, and beside it the metadata in which Petastorm looks for its pickled schema."""
    folder = tmp_path / "items"
    folder.mkdir()
    rows = pa.table({"item_id": ["p1"], "title": ["lamp"]})
    pq.write_table(rows, folder / "part-0.parquet")
    hidden = rows.schema.with_metadata({UNISCHEMA_KEY: pickle.dumps(Code(tmp_path / "ran"), 2)})
    pq.write_metadata(hidden, folder / "_common_metadata")
    return folder


def test_petastorms_own_list_of_modules_stops_nothing(tmp_path: Path) -> None:
    """Why it is refused: this is what happens to a schema that is unpickled."""
    restricted_loads(pickle.dumps(Code(tmp_path / "ran"), 2))
    assert (tmp_path / "ran").exists()


def test_a_pickled_schema_beside_the_files_is_not_looked_at(table: Path, tmp_path: Path) -> None:
    reader = open_reader([f"file://{table}/part-0.parquet"], ("item_id",), 1, ITEMS)
    try:
        assert [rows["item_id"].to_pylist() for rows in reader] == [["p1"]]
        assert isinstance(reader.cache, NullCache)  # the other kind pickles, too
    finally:
        reader.stop()
        reader.join()
    assert not (tmp_path / "ran").exists()


def test_a_pickled_schema_of_a_folder_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"_common_metadata: expected Parquet files alone; found a pickled schema"):
        open_reader([f"file://{table}"], ("item_id",), 1, ITEMS)
    assert not (tmp_path / "ran").exists()


def test_a_pickled_type_in_a_parquet_file_is_not_loaded(tmp_path: Path) -> None:
    """CVE-2023-47248. In a process of its own, as the type that writes the file is known to this one."""
    write = f"""
import warnings, pyarrow as pa, pyarrow.parquet as pq
warnings.simplefilter("ignore")
class Type(pa.PyExtensionType):
    def __init__(self):
        super().__init__(pa.int64())
    def __reduce__(self):
        return exec, ("open({str(tmp_path / "ran")!r}, 'w').close()",)
column = pa.ExtensionArray.from_storage(Type(), pa.array([1]))
pq.write_table(pa.table({{"item_id": ["p1"], "x": column}}), {str(tmp_path / "part-0.parquet")!r})
"""
    subprocess.run([sys.executable, "-c", write], check=True, timeout=60)
    assert look_at_input(str(tmp_path), ITEMS).rows == 1
    assert not (tmp_path / "ran").exists()
    pa.PyExtensionType.set_auto_load(True)  # what pyarrow did before: the file is what it claims to be
    try:
        with suppress(Exception):  # what the code returns is no type
            look_at_input(str(tmp_path), ITEMS)
    finally:
        pa.PyExtensionType.set_auto_load(False)
    assert (tmp_path / "ran").exists()
