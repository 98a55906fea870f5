"""A table is read at the version that a record names, and that version has the files that the record knows."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake

from itemsage_model.data.pinned_files import pin_files, pin_version
from schemas.errors import TableError
from schemas.records import TableVersion
from schemas.storage import files_checksum, read_columns
from tests.itemsage_model.factories import write_catalog


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_catalog(tmp_path / "item_features", items=20, files=2)
    return tmp_path / "item_features"


def test_a_version_of_the_recorded_files_is_read(table: Path) -> None:
    found = pin_files("item_features", str(table), 0)
    version = TableVersion("item_features", str(table), 0, 20, found.checksum)
    assert pin_version(version) == found
    assert pin_version(replace(version, checksum="")) == found, "of before, or written by Spark"


@pytest.mark.fault("B12", "loud", "a table that was removed and made anew, with the recorded version number")
def test_the_same_version_of_other_files_is_refused(table: Path) -> None:
    version = TableVersion("item_features", str(table), 0, 20, pin_files("item_features", str(table), 0).checksum)
    rows = read_columns(str(table), 0, DeltaTable(table).schema().to_arrow().names)
    shutil.rmtree(table)
    write_deltalake(str(table), rows)
    with pytest.raises(TableError, match=r"expected the files that the run record names .*other files .*make"):
        pin_version(version)


def test_any_file_and_any_of_its_sizes_counts() -> None:
    files = [("a", 10, 1), ("b", 20, 2)]
    assert files_checksum(files) == files_checksum(reversed(files))
    others = [[("a", 10, 1)], [("a", 10, 1), ("c", 20, 2)], [("a", 11, 1), ("b", 20, 2)], [("a", 10, 1), ("b", 20, 3)]]
    assert files_checksum(files) not in {files_checksum(one) for one in others}
