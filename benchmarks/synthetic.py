"""Catalogs and training tables of any size, written in the project's own layout, and in the plain one, without Spark.

Every item has 20 images and about 300 tokens. Token ids follow Zipf's law within each kind, as words do: nine in ten
tokens are trigrams, the rest words and pairs of words, so a few hundred rows of the hash table are met all the time
and most hardly ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import convert_to_deltalake

from itemsage_model.data.ragged import PackedItems, Ragged
from schemas.cells import pack_cells
from schemas.checksums import cells_hashes, row_checksums
from schemas.columns import Table
from schemas.elements import FEATURE_CELLS, FROZEN_TEXT, IMAGES, TEXT, SizedElement
from schemas.settings import FeatureSettings, ModelSettings, item_elements
from schemas.tables import EMBEDDING_DIM, FEATURES_HASH, ITEM_FEATURES, ROW_CHECKSUM, TRAINING_PAIRS

ITEMS_PER_FILE = 2048
_IMAGE_POOL = 4096


@dataclass(frozen=True)
class Catalog:
    """What a synthetic catalog looks like.

    Attributes:
        items: How many.
        features: Vocabulary sizes and text features.
        images: Of every item.
        tokens: Of an item, on average.
        seed: Decides everything.
    """

    items: int
    features: FeatureSettings
    images: int = 20
    tokens: int = 300
    seed: int = 1

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return sum(self._kinds)

    @property
    def elements(self) -> tuple[SizedElement, ...]:
        """The elements of the items, at the paper's sizes but for the number of images."""
        sizes = ModelSettings(max_images=self.images)
        return item_elements(sizes, self.features, self.vocabulary_size)

    @property
    def most_tokens(self) -> int:
        """No item has more tokens than this, so that token ids fit into arrays of one length."""
        return 2 * self.tokens

    def blocks(self) -> Iterator[tuple[npt.NDArray[np.int64], PackedItems]]:
        """Item numbers and features, a file's worth at a time."""
        pool = _unit_vectors(np.random.default_rng((self.seed, 0)), _IMAGE_POOL)
        for number, start in enumerate(range(0, self.items, ITEMS_PER_FILE), 1):
            rows = np.arange(start, min(start + ITEMS_PER_FILE, self.items))
            random = np.random.default_rng((self.seed, number))
            counts = self._token_counts(random, len(rows))
            images = pool[random.integers(len(pool), size=self.images * len(rows))]
            ids = self._token_ids(random, int(counts.sum()))
            image_lists = Ragged(images, np.full(len(rows), self.images))
            no_vectors = Ragged(np.empty((0, EMBEDDING_DIM), "<f2"), np.zeros(len(rows), np.int64))
            texts = Ragged(ids, counts)
            elements = {TEXT: texts, IMAGES: image_lists, FROZEN_TEXT: no_vectors}
            yield rows, PackedItems({element.values.name: values for element, values in elements.items()})

    def first_items(self, count: int) -> PackedItems:
        """The first `count` items."""
        parts = []
        for rows, items in self.blocks():
            parts.append(items)
            if rows[-1] + 1 >= count:
                break
        return PackedItems.gather(parts, np.arange(count))

    @property
    def _kinds(self) -> tuple[int, int, int]:
        return self.features.char_trigrams, self.features.word_unigrams, self.features.word_bigrams

    def _token_counts(self, random: np.random.Generator, rows: int) -> npt.NDArray[np.int32]:
        """Uneven over the texts, a few texts empty; [item, text]."""
        texts = len(self.features.text_features)
        totals = random.integers(self.tokens // 2, self.tokens * 3 // 2, rows)
        counts: npt.NDArray[np.int32] = random.multinomial(totals, random.dirichlet(np.full(texts, 0.5))).astype("<i4")
        return counts

    def _token_ids(self, random: np.random.Generator, count: int) -> npt.NDArray[np.int32]:
        """Log-uniform ranks within a kind are Zipf's law."""
        kind = random.choice(3, size=count, p=(0.9, 0.05, 0.05))
        sizes = np.array(self._kinds)
        rank = np.floor((sizes[kind] + 1.0) ** random.random(count)) - 1
        ids: npt.NDArray[np.int32] = (rank + (np.cumsum(sizes) - sizes)[kind]).astype("<i4")
        return ids


def write_item_features(uri: Path, catalog: Catalog) -> None:
    """The catalog as the project's item_features: a Delta table of packed cells, a row group a file."""
    uri.mkdir(parents=True)
    for number, (rows, items) in enumerate(catalog.blocks()):
        texts = {
            "item_id": item_ids(rows),
            "out_of_vocabulary_count": pa.array(np.zeros(len(rows), np.int32)),
        }
        table = with_checksums({"item_key": item_keys(rows), **texts, **packed_cells(items)}, ITEM_FEATURES)
        pq.write_table(table, uri / f"part-{number:05}.parquet", use_dictionary=False)
    convert_to_deltalake(str(uri))


def write_training_table(
    uri: Path, catalog: Catalog, rows: int, seed: int = 1, rows_per_file: int = ITEMS_PER_FILE
) -> None:
    """A training table of `rows` pairs, each with an item of its own as far as there are; `query_key` numbers them."""
    uri.mkdir(parents=True)
    random = np.random.default_rng((catalog.seed, seed, 7))
    first = 0
    while first < rows:
        for item, items in catalog.blocks():
            kept = np.arange(min(len(item), rows - first))
            if not len(kept):
                break
            columns = _pair_columns(first + kept, item[kept])
            queries = _unit_vectors(random, len(kept))
            columns["query_embedding"] = pack_cells(queries, np.full(len(kept), EMBEDDING_DIM))
            table = with_checksums({**columns, **packed_cells(items.take(kept))}, TRAINING_PAIRS)
            for start in range(0, len(table), rows_per_file):
                part = table.slice(start, rows_per_file)
                pq.write_table(part, uri / f"part-{first + start:09}.parquet", use_dictionary=False)
            first += len(kept)
    convert_to_deltalake(str(uri))


def with_checksums(columns: dict[str, pa.Array], table: Table) -> pa.Table:
    """The columns and the checksums that the jobs give to a row of the table."""
    rows = pa.RecordBatch.from_pydict(columns)
    hashes = cells_hashes([rows.column(name) for name in FEATURE_CELLS])
    return pa.table(columns | {FEATURES_HASH: hashes, ROW_CHECKSUM: row_checksums(rows, table)})


def write_plain(
    folder: Path, catalog: Catalog, rows: int, *, with_pairs: bool = False, rows_per_file: int = ITEMS_PER_FILE
) -> None:
    """The same rows as one writes them without thinking: `array<float>` vectors, token ids padded with -1.

    Args:
        folder: Where the Parquet files go.
        catalog: The items.
        rows: The first so many.
        with_pairs: Whether the columns of a training table come too.
        rows_per_file: Rows of every file but the last.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng((catalog.seed, 1, 7))
    for item, items in catalog.blocks():
        kept = np.arange(max(0, min(len(item), rows - int(item[0]))))
        if not len(kept):
            return
        columns = {"item_id": item_ids(item[kept]), **plain_columns(items.take(kept), catalog)}
        if with_pairs:
            queries = _unit_vectors(random, len(kept)).astype(np.float32)
            columns = {**_pair_columns(item[kept], item[kept]), **columns, "query_embedding": list_cells(queries)}
            del columns["query_id"], columns["item_id"]  # Petastorm's loaders take no strings
        table = pa.table(columns)
        for start in range(0, len(table), rows_per_file):
            pq.write_table(table.slice(start, rows_per_file), folder / f"part-{item[0] + start:09}.parquet")


def item_ids(rows: npt.NDArray[np.int64]) -> pa.Array:
    """Ids of items by number."""
    return pa.array([f"item-{row:09}" for row in rows])


def item_keys(rows: npt.NDArray[np.int64]) -> pa.Array:
    """Keys of items by number."""
    return pa.array(rows.astype(np.int64) + 1)


def packed_cells(items: PackedItems) -> dict[str, pa.Array]:
    """The feature columns as the project packs them."""
    texts, images, vectors = (items[element.values.name] for element in (TEXT, IMAGES, FROZEN_TEXT))
    return {
        "text_token_ids": pack_cells(texts.values, texts.totals),
        "text_token_counts": pack_cells(texts.counts, np.full(len(items), texts.counts.shape[1])),
        "image_embeddings": pack_cells(images.values, images.counts * EMBEDDING_DIM),
        "text_embedding": pack_cells(vectors.values, vectors.counts * EMBEDDING_DIM),
    }


def plain_columns(items: PackedItems, catalog: Catalog) -> dict[str, pa.Array]:
    """The same features as lists of one length each."""
    texts, image_lists = items[TEXT.values.name], items[IMAGES.values.name]
    padded = np.full((len(items), catalog.most_tokens), -1, np.int32)
    padded[np.arange(catalog.most_tokens) < texts.totals[:, None]] = texts.values
    images = image_lists.values.astype(np.float32).reshape(len(items), -1)
    return {
        "text_token_ids": list_cells(padded),
        "text_token_counts": list_cells(texts.counts),
        "image_embeddings": list_cells(images),
    }


def list_cells(matrix: npt.NDArray[np.generic]) -> pa.Array:
    """The rows of a matrix as lists."""
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.ravel()))


def _pair_columns(rows: npt.NDArray[np.int64], items: npt.NDArray[np.int64]) -> dict[str, pa.Array]:
    return {
        "query_id": pa.array([f"query-{row:09}" for row in rows]),
        "item_id": item_ids(items),
        "query_key": pa.array(rows),
        "item_key": item_keys(items),
        "query_item_key": pa.array(np.zeros(len(rows), np.int64)),
        "engagement_count": pa.array(np.ones(len(rows), np.int64)),
        "pair_weight": pa.array(np.ones(len(rows), np.float32)),
        "fit_weight": pa.array(np.ones(len(rows), np.float32)),
        "fit_engagement_count": pa.array(np.ones(len(rows), np.int64)),
        "negative_item_key": pa.array(np.zeros(len(rows), np.int64)),
        "negative_weight": pa.array(np.zeros(len(rows), np.float32)),
    }


def _unit_vectors(random: np.random.Generator, count: int) -> npt.NDArray[np.float16]:
    vectors = random.standard_normal((count, EMBEDDING_DIM), dtype=np.float32)
    unit: npt.NDArray[np.float16] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f2")
    return unit
