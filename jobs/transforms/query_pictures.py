"""Queries that show a product, with the embedding of its pictures: a viewed image, as the paper's closeup is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.cells import to_list_column, to_matrix


def with_picture_embeddings(
    queries: DataFrame, images: DataFrame, query_kinds: Collection[str], space: str, max_images: int
) -> DataFrame:
    """Give queries of some kinds that have no embedding the mean of the pictures of the product that they show.

    Assumed: the mean over the product's pictures, each at unit length, as the head over them learns; the paper embeds
    the one image that was viewed.

    Args:
        queries: Rows of QUERIES.
        images: Rows of ITEM_IMAGES as embed_images writes them, unique by item_id and position.
        query_kinds: The kinds. Queries of others stay as they are, and so does one whose product has no picture.
        space: The embedding space of the images.
        max_images: Most images of one item, the first by position.
    """
    is_bare = F.col("query_embedding").isNull() & F.col("query_kind").isin(list(query_kinds))
    # Null where there is no kind. The others take no part in the join, which would deal them all to one task.
    others = queries.where(~F.coalesce(is_bare, F.lit(False)))
    bare = queries.where(is_bare)
    shown = bare.select(F.col("query_item_id").alias("item_id")).distinct()
    known = images.join(shown, on="item_id", how="left_semi")
    in_order = F.sort_array(F.collect_list(F.struct("position", "image_embedding"))).getField("image_embedding")
    by_item = known.groupBy("item_id").agg(F.slice(in_order, 1, max_images).alias("vectors"))
    means = by_item.mapInArrow(_means, "query_item_id string, picture_embedding array<float>")
    # The right side is unique by query_item_id, so the join neither multiplies nor drops queries.
    joined = bare.join(means, on="query_item_id", how="left")
    found = F.col("picture_embedding")
    filled = {
        "query_embedding": found,
        "embedding_space": F.when(found.isNotNull(), F.lit(space)).otherwise(F.col("embedding_space")),
    }
    return others.unionByName(joined.withColumns(filled).select(*queries.columns))


def _means(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The mean of each item's vectors."""
    for batch in batches:
        vectors = batch.column("vectors")
        counts, values = pc.list_value_length(vectors).to_numpy(), to_matrix(vectors.flatten())
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        means = np.add.reduceat(unit, np.cumsum(counts) - counts) / counts[:, None]
        columns = [batch.column("item_id"), to_list_column(means.astype(np.float32))]
        yield pa.RecordBatch.from_arrays(columns, ["query_item_id", "picture_embedding"])
