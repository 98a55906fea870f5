"""Warehouses after build_picture_pairs, without Spark: products of some kinds, whose pictures hardly show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from schemas.cells import pack_cells
from schemas.checksums import row_checksums
from schemas.columns import Table
from schemas.metrics import PicturePairMetrics
from schemas.picture_tables import PICTURE_FEATURES, PICTURE_PAIRS, VALIDATION_PICTURE_PAIRS
from schemas.records import RunRecord, TableVersion, write_record
from schemas.settings import Settings
from tests.itemsage_model.warehouses import make_warehouse

LENGTH, ITEMS, KINDS = 12, 60, 6
KEYS = np.arange(ITEMS, dtype=np.int64) * 7 - 100


def pictures(seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """float16 [picture, LENGTH] near to one direction, of which one number says the kind; and pictures of each item."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 4, ITEMS)
    kind = np.repeat(np.arange(ITEMS) % KINDS, counts)
    vectors = 3 + random.normal(0, 0.3, (len(kind), LENGTH))
    vectors[np.arange(len(kind)), kind] += 0.4
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit.astype("<f2"), counts


def make_picture_warehouse(place: Path, *, is_random: bool = False, validated: int = 300, **own: Any) -> Settings:
    """Pairs of products of one kind, for training and for validation.

    Args:
        place: Folder of the warehouse.
        is_random: Whether training pairs join any products, so that there is nothing to learn.
        validated: Pairs of the validation window.
        own: Keys of [picture_head].
    """
    wanted = {"width": 16, "batch_size": 32, "negative_count": 32, "steps": 60, "validate_every": 10,
              "learning_rate": 0.01} | own  # fmt: skip
    settings = make_warehouse(place, {"click": [20]}, picture_head=wanted, model={"image_length": LENGTH})
    values, counts = pictures()
    features = {"item_id": [f"i{n}" for n in range(ITEMS)], "item_key": pa.array(KEYS),
                "image_embeddings": pack_cells(values.reshape(-1), counts * LENGTH)}  # fmt: skip
    versions = [_write(place, PICTURE_FEATURES, features)]
    random = np.random.default_rng(1)
    for table, count in ((PICTURE_PAIRS, 600), (VALIDATION_PICTURE_PAIRS, validated)):
        shown = random.integers(0, ITEMS, count)
        other = (shown + KINDS * random.integers(1, ITEMS // KINDS, count)) % ITEMS
        if is_random and table is PICTURE_PAIRS:
            other = random.integers(0, ITEMS, count)
        pairs = {"query_item_key": KEYS[shown], "item_key": KEYS[other], "pair_weight": np.ones(count, np.float32)}
        versions.append(_write(place, table, {name: pa.array(column) for name, column in pairs.items()}))
    metrics = PicturePairMetrics("picture-onnx-base", LENGTH, ITEMS, 600, validated)
    write_record(settings.layout, RunRecord("build_picture_pairs", metrics, outputs=tuple(versions)))
    return settings


def _write(place: Path, table: Table, columns: dict[str, Any]) -> TableVersion:
    batch = pa.RecordBatch.from_pydict(columns)
    whole = pa.Table.from_batches([batch]).append_column("row_checksum", pa.array(row_checksums(batch, table)))
    write_deltalake(str(place / table.name), whole)
    return TableVersion(table.name, str(place / table.name), 0, len(batch))
