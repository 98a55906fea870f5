"""Small tables and items for the model's tests, written without Spark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import convert_to_deltalake

from itemsage_model.data.feature_cells import unpack_items
from itemsage_model.data.ragged import PackedItems
from itemsage_model.encoders.item_tower import ItemTowerSpec
from schemas.checksums import cells_hashes, row_checksums
from schemas.columns import Table
from schemas.elements import FEATURE_CELLS
from schemas.settings import FeatureSettings, LossSettings, ModelSettings
from schemas.tables import EMBEDDING_DIM, FEATURES_HASH, ITEM_FEATURES, ROW_CHECKSUM, TRAINING_PAIRS

TEXTS = 3
VOCABULARY = 50
SPEC = ItemTowerSpec(
    ModelSettings(width=64, heads=4, feed_forward_width=64, head_width=64, hash_rows=64),
    LossSettings(),
    FeatureSettings(text_features=("title", "brand", "size")),
    VOCABULARY,
    {},
)
"""A small model that reads the items made here."""
BEYOND_THE_PAPER = {
    "sequence": ("text", "images", "frozen_text", "item_id"), "residual": True, "item_map": True, "query_adapter": True,
    "id_rows": 64, "query_id_rows": 32,
}  # fmt: skip
"""Settings of a model that has all that the paper's has not."""
FULL_SPEC = replace(
    SPEC, model=SPEC.model.model_copy(update=BEYOND_THE_PAPER), task_kinds=("search", "closeup", "search"),
    trained_items=6, trained_queries=4,
)  # fmt: skip
ELEMENTS = SPEC.elements
CHECKSUMS = (FEATURES_HASH, ROW_CHECKSUM)


def item_cells(
    random: np.random.Generator, items: int, most_images: int = 4, image_length: int = EMBEDDING_DIM
) -> dict[str, list[bytes]]:
    """Packed feature cells of random items; some without text, some without images."""
    counts = random.integers(0, 4, (items, TEXTS)).astype("<i4")
    images = random.integers(0, most_images + 1, items)
    return {
        "text_token_ids": [random.integers(0, VOCABULARY, row.sum()).astype("<i4").tobytes() for row in counts],
        "text_token_counts": [row.tobytes() for row in counts],
        "image_embeddings": [random.normal(size=(n, image_length)).astype("<f2").tobytes() for n in images],
        # Of a generator of its own; every fifth item has no text.
        "text_embedding": [_unit(np.random.default_rng(n)).tobytes() if n % 5 else b"" for n in range(items)],
    }


def arrow_cells(cells: dict[str, list[bytes]]) -> dict[str, pa.Array]:
    """Cells as Arrow columns."""
    return {name: pa.array(values, pa.binary()) for name, values in cells.items()}


def packed_items(items: int, seed: int = 1, most_images: int = 4) -> PackedItems:
    """Random items as the reader unpacks them."""
    cells = arrow_cells(item_cells(np.random.default_rng(seed), items, most_images))
    return unpack_items("item_features", cells, ELEMENTS)


def write_pairs(
    uri: Path,
    file_rows: list[int],
    items: int = 20,
    seed: int = 1,
    image_length: int = EMBEDDING_DIM,
    late: tuple[int, ...] = (),
    negatives: tuple[int, ...] = (),
) -> np.ndarray:
    """A training table with one file per entry of `file_rows`; returns its item keys, in order of the files.

    `query_key` numbers the rows from 0, so that a test can see which row is which; it determines the embedding. The
    rows of the numbers in `late` are of the validation window alone. Row i has the item of key `negatives[i]` against
    it, with weight 2; 0, or no entry = none.
    """
    random = np.random.default_rng(seed)
    features = item_cells(np.random.default_rng(99), items, image_length=image_length)
    keys, tables = [], []
    against = np.zeros(sum(file_rows), np.int64)
    against[: len(negatives)] = negatives
    row = 0
    for rows in file_rows:
        item = random.integers(0, items, rows)
        table = pa.table(
            {
                "query_id": [f"q{row + i}" for i in range(rows)],
                "item_id": [f"i{i}" for i in item],
                "query_key": pa.array(np.arange(row, row + rows)),
                "item_key": pa.array(item.astype(np.int64) + 1000),
                "query_item_key": pa.array(np.zeros(rows, np.int64)),
                "engagement_count": pa.array(np.ones(rows, np.int64)),
                "pair_weight": pa.array(np.ones(rows, np.float32)),
                "fit_weight": pa.array(~np.isin(np.arange(row, row + rows), late), pa.float32()),
                "fit_engagement_count": pa.array(
                    np.where(np.isin(np.arange(row, row + rows), late), 0, 1 + np.arange(row, row + rows) % 3)
                ),
                "negative_item_key": pa.array(against[row : row + rows]),
                "negative_weight": pa.array(2.0 * (against[row : row + rows] > 0), pa.float32()),
                "query_embedding": [_unit(np.random.default_rng(row + i)).tobytes() for i in range(rows)],
                **{name: [cells[i] for i in item] for name, cells in features.items()},
            }
        )
        table = with_checksums(table, TRAINING_PAIRS)
        tables.append(table)
        keys.append(item + 1000)
        row += rows
    write_table(uri, tables)
    return np.concatenate(keys)


def write_catalog(
    uri: Path, items: int = 20, files: int = 2, row_group_rows: int | None = None, image_length: int = EMBEDDING_DIM
) -> None:
    """An item_features table whose keys are those of `write_pairs`."""
    features = item_cells(np.random.default_rng(99), items, image_length=image_length)
    tables = [
        pa.table(
            {
                "item_id": [f"i{i}" for i in rows],
                "item_key": pa.array(rows.astype(np.int64) + 1000),
                **{name: [cells[i] for i in rows] for name, cells in features.items()},
            }
        )
        for rows in np.array_split(np.arange(items), files)
    ]
    write_table(uri, [with_checksums(table, ITEM_FEATURES) for table in tables], row_group_rows)


def with_checksums(rows: pa.Table, table: Table) -> pa.Table:
    """The rows with the checksums that the jobs give them, in place of those that they have."""
    (batch,) = rows.drop([name for name in CHECKSUMS if name in rows.column_names]).combine_chunks().to_batches()
    hashes = cells_hashes([batch.column(name) for name in FEATURE_CELLS])
    kept = pa.Table.from_batches([batch])
    return kept.append_column(FEATURES_HASH, pa.array(hashes)).append_column(
        ROW_CHECKSUM, pa.array(row_checksums(batch, table))
    )


def write_table(uri: Path, tables: list[pa.Table], row_group_rows: int | None = None) -> None:
    """A Delta table of one version, 0, with one file a table; file names, and so their order, are always the same."""
    uri.mkdir(parents=True)
    for number, table in enumerate(tables):
        pq.write_table(table, uri / f"part-{number:05}.parquet", row_group_size=row_group_rows)
    convert_to_deltalake(str(uri))


def _unit(random: np.random.Generator) -> np.ndarray:
    vector = random.normal(size=EMBEDDING_DIM)
    return (vector / np.linalg.norm(vector)).astype("<f2")
