"""Queries, checked: each is accepted, or rejected for one reason; and the catalog texts an encoder is fitted on."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.keys import source_hash
from jobs.transforms.quarantine import (
    Check,
    copy_checks,
    is_blank,
    not_a_vector,
    text_checks,
    with_copies,
    with_reject,
)
from schemas.tables import EMBEDDING_DIM, MAX_TEXT_CHARACTERS, QUERIES, SOURCE_HASH, TEXT_FEATURES

FIT_ITEMS = 100_000
"""Most catalog items the encoder is fitted on, chosen by hash: a whole catalog need not fit on the driver."""

FIT_CHARACTERS = 50_000_000
"""Most characters of their texts together: of longer texts fewer items are taken."""

TEXTS_PER_GROUP, CHARACTERS_PER_GROUP = 4_096, 1_048_576
"""Texts, and about how many characters, that are encoded together: the same texts whatever the partitions are."""

FIT_FEATURES = tuple(name for name in TEXT_FEATURES if name not in ("merchant_domain", "product_links", "size"))
"""Text features that are language; links and sizes would only fill the vocabulary."""

_SOURCE = ("query_kind", "text", "query_embedding", "embedding_space", "query_item_id")
"""What a row of query_embeddings is made of, beside its id."""


def with_verdicts(queries: DataFrame, picture_kinds: Collection[str] = ()) -> DataFrame:
    """Add `has_text`, SOURCE_HASH, and `reject` where a query cannot be used as it stands.

    See `with_copies` for repeated ids.

    Args:
        queries: Rows of QUERIES, after `with_picture_embeddings` where any kind is embedded by pictures.
        picture_kinds: Those kinds. A query of them without an embedding is rejected, whatever text it has: of one kind
            all embeddings lie in one space.
    """
    has_embedding = F.col("query_embedding").isNotNull()
    length = F.coalesce("embedding_length", F.lit(EMBEDDING_DIM))
    checks = [
        Check("null_id", is_blank("query_id"), "query_id", "an id", "Give the query an id."),
        Check("null_kind", is_blank("query_kind"), "query_kind", "closeup, search, ...", "Say which kind it is."),
        *text_checks(QUERIES),
        Check(
            "unnamed_space", has_embedding & is_blank("embedding_space"), "embedding_space",
            "name and version of the encoder where an embedding is given",
            "Add the column embedding_space, or fill it: name the encoder of the embedding, such as pinsage-2026-01.",
        ),
        Check(
            "not_a_vector", not_a_vector("query_embedding", length), "query_embedding",
            "finite numbers, not all zero, as many as most embeddings of its space have",
            "Correct it, or leave it null to have the query embedded.",
        ),
        Check(
            "no_picture", ~has_embedding & F.col("query_kind").isin(list(picture_kinds)), "query_item_id",
            "a product in item_pictures with a usable picture, as pictures.query_kinds names the query's kind",
            "Give the product a picture, or take the kind out of pictures.query_kinds.",
        ),
        Check(
            "no_embedding_no_text", ~has_embedding & ~F.col("has_text"), "text",
            "a text or an embedding", "Give the query one of them.",
        ),
    ]  # fmt: skip
    # The right side is unique by embedding_space.
    sized = queries.join(embedding_lengths(queries), on="embedding_space", how="left")
    hashed = sized.withColumn(SOURCE_HASH, source_hash(*_SOURCE))
    sound = with_reject(hashed.withColumn("has_text", ~is_blank("text")), QUERIES, checks)
    numbered = with_copies(sound, QUERIES, ("query_id",))
    cure = "Keep one row per query, or give each an id of its own; the fullest row was used."
    return with_reject(numbered, QUERIES, copy_checks("query", "query_id", cure))


def embedding_lengths(queries: DataFrame) -> DataFrame:
    """How many numbers the embeddings of each space have: embedding_space, embedding_length.

    The length of most of them counts; of two as frequent, 256, or else the larger.
    """
    present = queries.where(F.col("query_embedding").isNotNull())
    sizes = present.select("embedding_space", F.size("query_embedding").alias("size"))
    counts = sizes.groupBy("embedding_space", "size").agg(F.count("*").alias("row_count"))
    rank = F.struct("row_count", F.col("size") == EMBEDDING_DIM, "size")
    return counts.groupBy("embedding_space").agg(F.max_by("size", rank).alias("embedding_length"))


class TextCounts(NamedTuple):
    """How many texts are embedded, how many of them are cut, and into how many groups they go."""

    texts: int
    cut: int
    groups: int


def count_texts(usable: DataFrame) -> TextCounts:
    """Count the texts among accepted queries that have no embedding."""
    length = F.char_length("text")
    counts = {
        "texts": F.count("*"),
        "cut": F.count_if(length > MAX_TEXT_CHARACTERS),
        "characters": F.coalesce(F.sum(F.least(length, F.lit(MAX_TEXT_CHARACTERS))), F.lit(0)),
    }
    totals = usable.where("query_embedding IS NULL").agg(*[count.alias(name) for name, count in counts.items()])
    ((texts, cut, characters),) = totals.collect()
    return TextCounts(texts, cut, 1 + max(texts // TEXTS_PER_GROUP, characters // CHARACTERS_PER_GROUP))


def catalog_texts(items: DataFrame, limit: int = FIT_ITEMS) -> DataFrame:
    """One column `text`: what the catalog says about at most `limit` items, chosen by hash, sorted by item_id.

    A text that is no UTF-8 is left out, the item's others are not. Memory is bounded: a text is cut at
    MAX_TEXT_CHARACTERS, and all together at about FIT_CHARACTERS.
    """
    parts = [F.array_join(name, " ") if TEXT_FEATURES[name] else F.col(name) for name in FIT_FEATURES]
    said = F.concat_ws(" ", *[F.when(F.is_valid_utf8(part), part) for part in parts])
    is_usable = F.col("item_id").isNotNull() & F.is_valid_utf8("item_id") & said.rlike(r"\S")
    texts = items.where(is_usable).select("item_id", F.substring(said, 1, MAX_TEXT_CHARACTERS).alias("text"))
    by_hash = [F.xxhash64("item_id"), F.col("item_id"), F.col("text")]
    chosen = texts.orderBy(*by_hash).limit(limit)
    # One window over everything is one task, of at most `limit` rows.
    so_far = F.sum(F.char_length("text")).over(Window.partitionBy(F.lit(0)).orderBy(*by_hash))
    bounded = chosen.withColumn("characters", so_far).where(F.col("characters") <= FIT_CHARACTERS)
    return bounded.orderBy("item_id", "text").select("text")
