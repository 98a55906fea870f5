"""Validation pairs: the rows of the recorded version, whole or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from itemsage_model.data.validation import read_validation
from schemas.errors import TableError
from schemas.records import TableVersion
from schemas.tables import VALIDATION_PAIRS
from tests.itemsage_model.factories import with_checksums, write_pairs, write_table


def version(uri: Path, rows: int) -> TableVersion:
    return TableVersion("validation_a", str(uri), 0, rows)


@pytest.fixture
def uri(tmp_path: Path) -> Path:
    """A training table has all columns of a validation table, and a checksum that covers one more."""
    write_pairs(tmp_path / "t", [5, 4])
    return tmp_path / "t"


@pytest.fixture
def table(uri: Path) -> Path:
    files = sorted(DeltaTable(uri).file_uris())
    parts = [with_checksums(pq.read_table(file), VALIDATION_PAIRS) for file in files]
    write_table(uri.parent / "validation_a", parts)
    return uri.parent / "validation_a"


def test_all_rows_are_read_in_the_order_of_the_files(table: Path) -> None:
    rows = DeltaTable(table).to_pyarrow_table().sort_by("query_key")
    read = read_validation(version(table, 9))
    assert read.query_key.tolist() == list(range(9))
    assert read.item_key.tolist() == rows["item_key"].to_pylist()
    assert read.weight.tolist() == [1.0] * 9
    assert read.query_embedding.dtype == np.float32
    np.testing.assert_array_equal(read.query_embedding[3], np.frombuffer(rows["query_embedding"][3].as_py(), "<f2"))


@pytest.mark.parametrize("most", [0, 1, 5, 7, 50])
def test_at_most_so_many_are_read_the_first(table: Path, most: int) -> None:
    read = read_validation(version(table, 9), most)
    assert read.query_key.tolist() == list(range(min(most, 9)))
    assert read.query_embedding.shape == (min(most, 9), 256)


def test_an_empty_table_has_no_pairs(tmp_path: Path) -> None:
    assert len(read_validation(version(tmp_path / "never opened", 0))) == 0


def test_another_number_of_rows_and_damage_are_refused(table: Path, uri: Path) -> None:
    with pytest.raises(TableError, match=r"table validation_a.*expected 12 rows; found 9 rows"):
        read_validation(version(table, 12))
    with pytest.raises(TableError, match=r"row_checksum.*the file is damaged"):
        read_validation(version(uri, 9))
