"""Queries, checked: each is accepted, or rejected for one reason; and the catalog texts an encoder is fitted on."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.quarantine import Check, not_a_vector, with_reject
from schemas.tables import EMBEDDING_DIM, QUERIES, TEXT_FEATURES

FIT_ITEMS = 100_000
"""Most catalog items the encoder is fitted on, chosen by hash: a whole catalog need not fit on the driver."""


FIT_FEATURES = tuple(name for name in TEXT_FEATURES if name not in ("merchant_domain", "product_links", "size"))
"""Text features that are language; links and sizes would only fill the vocabulary."""


def with_verdicts(queries: DataFrame) -> DataFrame:
    """Add `has_text`, and `reject` where a query cannot be used as it stands."""
    is_blank_space = F.col("embedding_space").isNull() | ~F.col("embedding_space").rlike(r"\S")
    has_embedding = F.col("query_embedding").isNotNull()
    length = F.coalesce("embedding_length", F.lit(EMBEDDING_DIM))
    first = Window.partitionBy("query_id").orderBy(*[name for name in QUERIES.column_names if name != "query_id"])
    checks = [
        Check("null_id", _is_blank("query_id"), "query_id", "an id", "Give the query an id."),
        Check("null_kind", _is_blank("query_kind"), "query_kind", "closeup, search, ...", "Say which kind it is."),
        Check(
            "duplicate_id", F.col("copy") > 1, "query_id", "one row per query_id",
            "Keep one row; the first one by content was used.",
        ),
        Check(
            "unnamed_space", has_embedding & is_blank_space, "embedding_space",
            "name and version of the encoder", "Name the encoder that made the embedding, such as pinsage-2026-01.",
        ),
        Check(
            "not_a_vector", not_a_vector("query_embedding", length), "query_embedding",
            "finite numbers, not all zero, as many as most embeddings of its space have",
            "Correct it, or leave it null to have the text embedded.",
        ),
        Check(
            "no_embedding_no_text", ~has_embedding & ~F.col("has_text"), "text",
            "a text or an embedding", "Give the query one of them.",
        ),
    ]  # fmt: skip
    # The right side is unique by embedding_space.
    sized = queries.join(embedding_lengths(queries), on="embedding_space", how="left")
    flagged = sized.withColumn("has_text", ~_is_blank("text")).withColumn("copy", F.row_number().over(first))
    return with_reject(flagged, QUERIES, checks)


def embedding_lengths(queries: DataFrame) -> DataFrame:
    """How many numbers the embeddings of each space have: embedding_space, embedding_length.

    The length of most of them counts; of two as frequent, 256, or else the larger.
    """
    present = queries.where(F.col("query_embedding").isNotNull())
    sizes = present.select("embedding_space", F.size("query_embedding").alias("size"))
    counts = sizes.groupBy("embedding_space", "size").agg(F.count("*").alias("row_count"))
    rank = F.struct("row_count", F.col("size") == EMBEDDING_DIM, "size")
    return counts.groupBy("embedding_space").agg(F.max_by("size", rank).alias("embedding_length"))


def catalog_texts(items: DataFrame, limit: int = FIT_ITEMS) -> DataFrame:
    """One column `text`: what the catalog says about at most `limit` items, chosen by hash, sorted by item_id."""
    parts = [F.array_join(name, " ") if TEXT_FEATURES[name] else F.col(name) for name in FIT_FEATURES]
    texts = items.where(F.col("item_id").isNotNull()).select("item_id", F.concat_ws(" ", *parts).alias("text"))
    chosen = texts.where(F.col("text").rlike(r"\S")).orderBy(F.xxhash64("item_id"), "item_id", "text").limit(limit)
    return chosen.orderBy("item_id", "text").select("text")


def _is_blank(column: str) -> Column:
    return F.col(column).isNull() | ~F.col(column).rlike(r"\S")
