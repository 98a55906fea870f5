"""Parquet files opened one by one: their batches in order, and a column that is not there is never left out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from itemsage_model.data.parquet_files import file_batches, naming_the_file
from schemas.causes import cause_of
from schemas.columns import Column, Table
from schemas.errors import TableError

NUMBERS = Table("numbers", "three numbers", tuple(Column(name, "int64", "a number") for name in "abc"))


def test_batches_hold_the_asked_for_columns_in_file_order(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": range(5), "b": range(5), "c": range(5)}), tmp_path / "part.parquet", row_group_size=4)
    batches = list(file_batches((tmp_path / "part.parquet").as_uri(), ["c", "a"], 2, NUMBERS))
    assert pa.Table.from_batches(batches).to_pydict() == {"c": list(range(5)), "a": list(range(5))}
    assert max(map(len, batches)) == 2


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "part.parquet")
    with pytest.raises(TableError, match=r"part.parquet, column b: expected this column; found a\."):
        list(file_batches((tmp_path / "part.parquet").as_uri(), ["a", "b"], 2, NUMBERS))


@pytest.mark.fault("C5", "loud", "too little memory for a file that is whole: exit code 1, and not a damaged file")
def test_want_of_memory_is_no_damage() -> None:
    with pytest.raises(MemoryError) as caught, naming_the_file("part.parquet", "numbers"):
        raise pa.ArrowMemoryError("malloc of size 4096 failed")
    said, code = cause_of(caught.value)
    assert said.startswith("Python ran out of memory (malloc of size 4096 failed, while reading part.parquet of table")
    assert code == 1
