"""Chosen rows are all found, once, in their order, and in batches that are worth a call."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from itemsage_model.serving.selection import rows_of_keys


def batches(rows: int, size: int) -> list[pa.RecordBatch]:
    table = pa.table({"item_key": np.arange(rows) * 3, "name": [f"n{row}" for row in range(rows)]})
    return [*table.to_batches(max_chunksize=size)]


@pytest.mark.parametrize("chosen", [[], [0], [3, 6, 9, 60, 297], [*range(0, 300, 3)], [1, 2, 4, 9_999]])
@pytest.mark.parametrize("at_least", [1, 7, 1_000])
def test_the_chosen_rows_are_found(chosen: list[int], at_least: int) -> None:
    found = [*rows_of_keys(batches(100, 9), np.array(chosen, np.int64), at_least)]
    keys = [key for batch in found for key in batch.column("item_key").to_pylist()]
    assert keys == [key for key in chosen if key % 3 == 0 and key < 300]
    assert [name for batch in found for name in batch.column("name").to_pylist()] == [f"n{key // 3}" for key in keys]
    assert all(len(batch) >= at_least for batch in found[:-1])
