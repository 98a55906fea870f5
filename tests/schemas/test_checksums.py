"""Checksums of rows: each covered column moves them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from schemas.checksums import row_checksums, with_checksums
from schemas.tables import ITEM_FEATURES, TRAINING_PAIRS
from schemas.tables import ITEMS as ITEMS_TABLE

PAIRS = pa.table(
    {
        "query_key": pa.array([1, -(2**63), 2**63 - 1]),
        "item_key": pa.array([7, 8, 9]),
        "query_item_key": pa.array([0, -1, 5]),
        "pair_weight": pa.array([1.0, 2.0**-32, 123.456], pa.float32()),
        "query_embedding": pa.array([b"", b"\0\xff", bytes(range(256))], pa.binary()),
        "fit_weight": pa.array([1.0, 0.0, 2.0**-32], pa.float32()),
        "negative_item_key": pa.array([0, 8, -1]),
        "negative_weight": pa.array([0.0, 1.0, 0.5], pa.float32()),
    }
)
ITEMS = pa.table({"item_id": ["", "lampe 🪔", "a\0b"], "item_key": pa.array([1, 2, 3])})


def test_a_table_without_checksums_stays_as_it_is() -> None:
    (batch,) = ITEMS.to_batches()
    assert with_checksums(batch, ITEMS_TABLE) is batch
    assert with_checksums(batch, ITEM_FEATURES).schema.names == ["item_id", "item_key", "row_checksum"]


@pytest.mark.parametrize("column", PAIRS.column_names)
def test_every_covered_column_moves_the_checksum(column: str) -> None:
    (batch,) = PAIRS.to_batches()
    before = row_checksums(batch, TRAINING_PAIRS)
    turned = PAIRS.set_column(PAIRS.column_names.index(column), column, batch.column(column).take(pa.array([1, 2, 0])))
    assert (row_checksums(turned.to_batches()[0], TRAINING_PAIRS) != before).all()


def test_cell_of_another_length_moves_the_checksum() -> None:
    def sums(embedding: bytes, weight: float) -> np.ndarray:
        row = {name: PAIRS[name][:1] for name in PAIRS.column_names} | {
            "query_embedding": pa.array([embedding], pa.binary()),
            "pair_weight": pa.array([weight], pa.float32()),
        }
        return row_checksums(pa.table(row).to_batches()[0], TRAINING_PAIRS)

    assert sums(b"\0", 1.0) != sums(b"\0\0", 1.0)
