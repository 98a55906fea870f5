"""Petastorm's reader: opens the files that a Delta log names, whatever their folders are called."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from itemsage_model.data.row_groups import open_reader
from schemas.columns import Column, Table
from schemas.storage import version_files

PRICES = Table("prices", "one price", (Column("price", "int64", "in cents"),))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.fault("t12", "recovered", "a warehouse under a folder with a blank, umlauts and braces")
def test_files_are_found_under_folders_of_any_allowed_name(tmp_path: Path) -> None:
    place = f"{tmp_path}/mein Läden {{a}} *,~+&='!"
    write_deltalake(place, pa.table({"price": [1, 2]}))
    files = version_files(place).files
    with open_reader([file.uri for file in files], ("price",), seed=1, table=PRICES) as reader:
        assert [row for table in reader for row in table["price"].to_pylist()] == [1, 2]
