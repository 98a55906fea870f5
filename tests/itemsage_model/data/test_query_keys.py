"""The queries that a training run knows: of all its tables, of rows that its window has a weight for."""

from __future__ import annotations

from pathlib import Path

import pytest

from itemsage_model.data import query_keys
from itemsage_model.data.pinned_files import pin_files
from itemsage_model.data.query_keys import trained_queries
from schemas.errors import TableError
from tests.itemsage_model.factories import write_pairs


def test_they_are_the_distinct_keys_of_all_files_and_tables_with_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_keys, "_ROWS_AT_ONCE", 4)
    write_pairs(tmp_path / "a", [7, 5], late=(0, 3, 11))
    write_pairs(tmp_path / "b", [2, 3, 9])
    a, b = (pin_files(name, str(tmp_path / name), 0) for name in ("a", "b"))
    assert trained_queries([a], "pair_weight").tolist() == list(range(12))
    assert trained_queries([a], "fit_weight").tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert trained_queries([a, b], "fit_weight").tolist() == list(range(14))


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", [7])
    files = pin_files("training_search_click", str(tmp_path / "a"), 0)
    (tmp_path / "a" / "part-00000.parquet").unlink()
    with pytest.raises(TableError, match=r"training_search_click.*part-00000.*no such file"):
        trained_queries([files], "pair_weight")
