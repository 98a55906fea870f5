"""The rows of graph_nodes: an item's frozen features as one cell, and its walks' findings as cells of keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.transforms.keys import item_key
from schemas.cells import Cells, pack_cells, unpack_cells
from schemas.elements import FROZEN_TEXT
from schemas.tables import EMBEDDING_DIM


def node_rows(
    items: DataFrame, texts: DataFrame, images: DataFrame | None, found: DataFrame, *, image_length: int
) -> DataFrame:
    """One row per item: item_id, item_key, its text's cell, its images' cells, and what its walkers have met, in order.

    All four sides are unique by their key, so no join multiplies rows; an item without walks keeps its features.

    Args:
        items: item_id of the usable items.
        texts: Rows of ITEM_TEXT_EMBEDDINGS.
        images: Rows of `images_by_item`; None = the shop has none.
        found: Rows of `found_by_item`.
        image_length: Numbers of an image vector; 0 = the shop has none.
    """
    keyed = items.select("item_id", item_key("item_id").alias("item_key"))
    with_text = keyed.join(texts.select("item_id", FROZEN_TEXT.values.name), on="item_id", how="left")
    if images is None:
        whole = with_text.withColumn("images", F.lit(None).cast("array<binary>"))
    else:
        whole = with_text.join(images.select("item_id", "images"), on="item_id", how="left")
    with_image = whole.mapInArrow(_mean_images(image_length), "item_id string, item_key long, node_embedding binary")
    return with_image.join(found, on="item_key", how="left")


def found_by_item(ranked: DataFrame) -> DataFrame:
    """One row per item: `item_key`, and `found`, its visited items by rank with how often."""
    entry = F.struct("rank", F.col("visited").alias("key"), "visit_count", "distance")
    by_item = ranked.groupBy(F.col("start").alias("item_key"))
    return by_item.agg(F.sort_array(F.collect_list(entry)).alias("found"))


def _mean_images(image_length: int) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            features = [_filled(batch.column(FROZEN_TEXT.values.name), EMBEDDING_DIM)]
            if image_length:
                features.append(_means(batch.column("images"), image_length))
            numbers = np.ascontiguousarray(np.concatenate(features, axis=1), "<f2")
            cells = pack_cells(numbers, np.full(len(batch), numbers.shape[1]))
            columns = [batch.column("item_id"), batch.column("item_key"), cells]
            yield pa.RecordBatch.from_arrays(columns, ["item_id", "item_key", "node_embedding"])

    return pack


def _filled(cells: Cells, length: int) -> npt.NDArray[np.float32]:
    """Cells of one vector or none as rows [row, length], zeros for none."""
    numbers, counts = unpack_cells(cells.fill_null(b""), "<f2")
    rows = np.zeros((len(counts), length), np.float32)
    rows[counts > 0] = numbers.reshape(-1, length)
    return rows


def _means(images: pa.ListArray, length: int) -> npt.NDArray[np.float32]:
    """The mean of each row's images at unit length [row, length], zeros for none."""
    counts = pc.list_value_length(images).fill_null(0).to_numpy()
    numbers, _ = unpack_cells(images.flatten(), "<f2")
    vectors = unit_rows(numbers.reshape(-1, length).astype(np.float32))
    sums = np.zeros((len(counts), length), np.float32)
    np.add.at(sums, np.repeat(np.arange(len(counts)), counts), vectors)
    return unit_rows(sums)


def unit_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each row at length 1; a row of zeros stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = vectors / np.where(lengths > 0, lengths, 1)
    return scaled


def pack_nodes(batch: pa.RecordBatch, neighbours: int, hard_from: int) -> pa.RecordBatch:
    """Rows of GRAPH_NODES.

    Args:
        batch: item_id, item_key, node_embedding and `found`.
        neighbours: graph.neighbours.
        hard_from: Rank from which on a visited item is a hard negative, unless both are in a group together.
    """
    found = batch.column("found").fill_null([]) if batch.column("found").null_count else batch.column("found")
    counts = pc.list_value_length(found).to_numpy().astype(np.int64)
    entries = found.flatten()
    rank, key, visit_count, distance = (pc.struct_field(entries, [n]).to_numpy() for n in range(4))
    row = np.repeat(np.arange(len(batch)), counts)
    is_near, is_hard = rank <= neighbours, (rank >= hard_from) & (distance > 1)
    near = np.bincount(row[is_near], minlength=len(batch))
    totals = np.bincount(row[is_near], visit_count[is_near], minlength=len(batch))
    weights = (visit_count[is_near] / totals[row[is_near]]).astype("<f4")
    hard = np.bincount(row[is_hard], minlength=len(batch))
    columns = {
        "item_id": batch.column("item_id"),
        "item_key": batch.column("item_key"),
        "node_embedding": batch.column("node_embedding"),
        "neighbour_keys": pack_cells(np.ascontiguousarray(key[is_near], "<i8"), near),
        "neighbour_weights": pack_cells(weights, near),
        "hard_keys": pack_cells(np.ascontiguousarray(key[is_hard], "<i8"), hard),
    }
    return pa.RecordBatch.from_pydict(columns)
