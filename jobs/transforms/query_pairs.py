"""From checked engagements to pairs of distinct texts and items, in which the text stands for the query."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.transforms.keys import NO_ITEM, query_item_key
from schemas.tables import MAX_TEXT_CHARACTERS, SOURCE_HASH

TEXT = "text"
"""In the place of a task's name: the pairs of all query kinds and engagements are one table."""


def texts_of(queries: DataFrame, embeddings: DataFrame, query_kinds: tuple[str, ...]) -> DataFrame:
    """The texts of some kinds' queries: query_id, text, query_item_key, query_embedding; unique by query_id.

    Of several queries with one text, that of the smallest id says which item is shown, and has the frozen embedding.
    One that is another by now than embed_queries read has no row: its embedding is that of another text.

    Args:
        queries: The accepted rows of `with_verdicts`; unique by query_id.
        embeddings: query_embeddings; unique by query_id.
        query_kinds: The kinds.
    """
    wanted = queries.where(F.col("query_kind").isin(list(query_kinds)) & F.col("has_text"))
    texts = wanted.select("query_id", SOURCE_HASH, F.substring("text", 1, MAX_TEXT_CHARACTERS).alias("text"))
    shown = query_item_key("query_item_id").alias("query_item_key")
    made = embeddings.select("query_id", SOURCE_HASH, shown, "query_embedding")
    # `made` is unique by query_id.
    embedded = texts.join(made, on=["query_id", SOURCE_HASH], how="inner").drop(SOURCE_HASH)
    first = embedded.groupBy("text").agg(
        F.min_by(F.struct("query_item_key", "query_embedding"), "query_id").alias("first")
    )
    # `first` is unique by text.
    return embedded.select("query_id", "text").join(first, on="text", how="inner").select("query_id", "text", "first.*")


def changed_queries(queries: DataFrame, embeddings: DataFrame, query_kinds: tuple[str, ...]) -> int:
    """How many queries of some kinds are others by now than embed_queries read; arguments as of `texts_of`."""
    wanted = queries.where(F.col("query_kind").isin(list(query_kinds)) & F.col("has_text"))
    made = embeddings.select("query_id", F.col(SOURCE_HASH).alias("embedded_hash"))
    # `made` is unique by query_id.
    joined = wanted.select("query_id", SOURCE_HASH).join(made, on="query_id", how="inner")
    return joined.where(F.col(SOURCE_HASH) != F.col("embedded_hash")).count()


def by_text(engagements: DataFrame, texts: DataFrame) -> DataFrame:
    """Counted engagements with the text in the place of the query's id, and one task for all of them.

    Args:
        engagements: The accepted rows of `checked_engagements`.
        texts: Rows of `texts_of`.
    """
    known = texts.select("query_id", "text", "query_item_key")
    # `known` is unique by query_id.
    matched = engagements.drop("query_item_key").join(known, on="query_id", how="inner")
    return matched.withColumns({"query_id": F.col("text"), "task": F.lit(TEXT)}).drop("text")


def with_capped_weights(pairs: DataFrame, most: float) -> DataFrame:
    """No pair weighs more than `most`, in the fit pass neither; 0 = no cap.

    A pair that is repeated a thousand times is not known a thousand times as well.
    """
    if not most:
        return pairs
    names = ("pair_weight", "fit_weight")
    return pairs.withColumns({name: F.least(name, F.lit(most)).cast("float") for name in names})


def item_text_pairs(texts: DataFrame, features: DataFrame) -> DataFrame:
    """Each item with its own text, as pairs of one task; and the frozen embedding of the text in the query's place.

    Items whose text is blank, or unknown to the frozen encoder, have no row.

    Args:
        texts: Rows of `item_texts`; unique by item_id.
        features: item_features; unique by item_id.
    """
    embedded = features.select("item_id", "item_key", F.col("text_embedding").alias("query_embedding"))
    spoken = texts.where(F.trim("text") != "").select("item_id", F.col("text").alias("query_id"))
    # `embedded` is unique by item_id.
    rows = spoken.join(embedded.where(F.length("query_embedding") > 0), on="item_id", how="inner")
    one, nothing = F.lit(1).cast("float"), F.lit(NO_ITEM).cast("long")
    return rows.select(
        "*", F.lit(TEXT).alias("task"), F.lit("item").alias("window"), F.xxhash64("query_id").alias("query_key"),
        nothing.alias("query_item_key"), F.lit(1).cast("long").alias("engagement_count"), one.alias("pair_weight"),
        one.alias("fit_weight"), F.lit(1).cast("long").alias("fit_count"), nothing.alias("negative_item_key"),
        F.lit(0).cast("float").alias("negative_weight"),
    )  # fmt: skip
