"""From checked events to (query, item) pairs, and from pairs to training rows laid out file by file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.engagements import HELD_OUT, NEGATIVE, TRAINING, VALIDATION
from jobs.transforms.hot_keys import spread_join
from jobs.transforms.keys import query_key
from schemas.cells import pack_cells
from schemas.tables import EMBEDDING_DIM

_UNITS = float(1 << 32)
_BUCKETS = 64
_DAY_US = 86_400_000_000
_ROWS_PER_FILE, _MOST_FILES = 2_048, 2_000
_NEGATIVES_PER_QUERY = 16
"""Negatives of a query that its pairs choose among."""


def pairs_of(
    engagements: DataFrame, *, train_end: datetime, validation_start: datetime, half_life_days: float
) -> DataFrame:
    """Counted events, summed to one row per (task, window, query, item).

    pair_weight = sum over the pair's events of 2 ** (-age / half_life); an event after train_end has age 0,
    so that the weight of a held-out pair is its count. fit_count and fit_weight are the same sums over the events
    before validation_start alone.

    Args:
        engagements: The accepted rows of `checked_engagements`, without the negatives.
        train_end: Where age is counted from.
        validation_start: First instant of the validation window.
        half_life_days: Age at which an event weighs half; 0 = every event weighs 1.
    """
    age_days = (F.unix_micros(F.lit(train_end)) - F.unix_micros("event_ts")) / F.lit(_DAY_US)
    halvings = F.greatest(age_days, F.lit(0.0)) / F.lit(half_life_days or float("inf"))
    # Summed as whole units, because a sum of floats depends on the order of the rows.
    units = F.ceil(F.pow(F.lit(2.0), -halvings) * F.lit(_UNITS))
    is_fit = (F.col("event_ts") < F.lit(validation_start)).cast("long")
    keys = ("task", "window", "query_id", "item_id", "item_key", "query_item_key")
    sums = engagements.groupBy(*keys).agg(
        F.count("*").alias("engagement_count"),
        F.sum(units).alias("units"),
        F.sum(is_fit).alias("fit_count"),
        F.sum(units * is_fit).alias("fit_units"),
    )
    return sums.select(
        *keys,
        query_key("query_id").alias("query_key"),
        "engagement_count",
        _weight("units").alias("pair_weight"),
        "fit_count",
        _weight("fit_units").alias("fit_weight"),
    )


def _weight(units: str) -> Column:
    return (F.col(units) / F.lit(_UNITS)).cast("float")


def validation_pairs(pairs: DataFrame) -> DataFrame:
    """The training pairs that were engaged in the validation window, with what they count there.

    They are measured on, as held-out pairs are: an event weighs 1, and no cap cuts them.

    Args:
        pairs: See `pairs_of`.
    """
    count = F.col("engagement_count") - F.col("fit_count")
    engaged = pairs.where((F.col("window") == TRAINING) & (count > 0))
    return engaged.withColumns(
        {"window": F.lit(VALIDATION), "engagement_count": count, "pair_weight": count.cast("float")}
    )


def capped(pairs: DataFrame, *, per_item: int, per_query: int) -> DataFrame:
    """At most so many pairs of an item, and then of a query, in each task and window; 0 = no cap.

    Which pairs stay is decided by a hash of their ids, as good as random and always the same. The pairs of the whole
    training window compete: a pair of the validation window may decide which earlier ones stay, never what they weigh.
    """
    for column, max_pairs in (("item_id", per_item), ("query_id", per_query)):
        if max_pairs:
            # Kept as a filter on row_number: Spark then cuts each map partition to the cap before the shuffle.
            rivals = Window.partitionBy("task", "window", column)
            rank = F.row_number().over(rivals.orderBy(F.xxhash64("query_id", "item_id"), "query_id", "item_id"))
            pairs = pairs.withColumn("rank", rank).where(F.col("rank") <= max_pairs).drop("rank")
    return pairs


def with_negatives(packed_queries: DataFrame, engagements: DataFrame, weights: dict[str, float]) -> DataFrame:
    """Add `negatives`: up to 16 items with a negative engagement, as (rank, item_key, weight); null = none.

    Which ones stay is decided by a hash, as in `capped`. An item with several engagements has the largest weight.

    Differs from the paper: it has in-batch and random negatives alone. Assumed: 16 say enough of a query.

    Args:
        packed_queries: See `packed`; unique by query_id.
        engagements: The accepted rows of `checked_engagements`.
        weights: Name of each negative engagement -> its weight.
    """
    if not weights:
        none = F.lit(None).cast("array<struct<rank: int, item_key: bigint, weight: float>>")
        return packed_queries.withColumn("negatives", none)
    weight = F.create_map(*[F.lit(part) for entry in weights.items() for part in entry])[F.col("task")].cast("float")
    pairs = engagements.where(F.col("window") == NEGATIVE).groupBy("query_id", "item_id", "item_key")
    rivals = Window.partitionBy("query_id").orderBy(F.xxhash64(F.lit("negative"), "query_id", "item_id"), "item_id")
    ranked = pairs.agg(F.max(weight).alias("weight")).withColumn("rank", F.row_number().over(rivals))
    kept = ranked.where(F.col("rank") <= _NEGATIVES_PER_QUERY).groupBy("query_id")
    lists = kept.agg(F.sort_array(F.collect_list(F.struct("rank", "item_key", "weight"))).alias("negatives"))
    # `lists` is unique by query_id.
    return packed_queries.join(lists, on="query_id", how="left")


def _with_negative(rows: DataFrame) -> DataFrame:
    """Choose one of the `negatives` for each pair, by a hash; never its own item, nor the one that the query shows."""
    others = F.filter("negatives", lambda one: ~one["item_key"].isin(F.col("item_key"), F.col("query_item_key")))
    place = F.pmod(F.xxhash64(F.lit("negative"), "query_id", "item_id"), F.greatest(F.size("others"), F.lit(1)))
    chosen = F.get("others", place.cast("int"))
    return rows.withColumn("others", others).select(
        *[name for name in rows.columns if name != "negatives"],
        F.coalesce(chosen["item_key"], F.lit(0).cast("long")).alias("negative_item_key"),
        F.coalesce(chosen["weight"], F.lit(0).cast("float")).alias("negative_weight"),
    )


def even_file_rows(rows: int, max_rows: int) -> int:
    """Rows per file, `max_rows` or somewhat fewer, so that the last file is at most 5 % shorter than the others.

    Args:
        rows: Of the whole table.
        max_rows: training_tables.rows_per_file; 0 = 2,048, and more where that would be over 2,000 files: each costs a
            task that writes it, 2 KB of the table's log, and the reading of its footer in every epoch.
    """
    max_rows = max_rows or max(_ROWS_PER_FILE, -(-rows // _MOST_FILES))
    most = min(max_rows, max(rows, 1))
    return next(size for size in range(most, 0, -1) if -rows % size <= size // 20)


@dataclass(frozen=True)
class FileLayout:
    """Which files the rows of several tables fill; files are numbered through, table after table.

    Attributes:
        rows_per_file: Table -> rows of every file but the last.
        first_file: Table -> number of its first file.
        file_count: Files of all tables.
    """

    rows_per_file: dict[str, int]
    first_file: dict[str, int]
    file_count: int

    @classmethod
    def of(cls, row_counts: dict[str, int], max_rows: int) -> FileLayout:
        """Files of about `max_rows` rows for tables of these sizes, given by name."""
        rows_per_file = {table: even_file_rows(count, max_rows) for table, count in row_counts.items()}
        counts = [-(-count // rows_per_file[table]) for table, count in row_counts.items()]
        first_file = dict(zip(row_counts, accumulate(counts, initial=0), strict=False))
        return cls(rows_per_file, first_file, sum(counts))

    def __add__(self, other: FileLayout) -> FileLayout:
        """The files of both, those of `other` numbered behind these."""
        behind = {table: self.file_count + first for table, first in other.first_file.items()}
        return FileLayout(
            self.rows_per_file | other.rows_per_file, self.first_file | behind, self.file_count + other.file_count
        )


def with_file(pairs: DataFrame, layout: FileLayout) -> DataFrame:
    """Add `position`, which numbers each table's pairs from 0 in random-looking order, and `file`, the file's number.

    Args:
        pairs: Pairs of any tasks and windows; a pair's table is `<window>_<task>`.
        layout: Which files they fill.
    """
    # Not the hash of `capped`: the pairs it keeps have the smallest ones, and would all lie in the first files.
    shuffled = F.xxhash64(F.lit("file"), "query_id", "item_id")
    named = pairs.withColumns({"table": F.concat_ws("_", "window", "task"), "shuffled": shuffled})
    placed = named.withColumn("bucket", F.pmod("shuffled", F.lit(_BUCKETS)))
    sizes = placed.groupBy("table", "bucket").agg(F.count("*").alias("size"))
    earlier = Window.partitionBy("table").orderBy("bucket").rowsBetween(Window.unboundedPreceding, -1)
    starts = sizes.select("table", "bucket", F.coalesce(F.sum("size").over(earlier), F.lit(0)).alias("start"))
    inside = Window.partitionBy("table", "bucket").orderBy("shuffled", "query_id", "item_id")
    # `starts` is unique by table and bucket.
    numbered = placed.join(F.broadcast(starts), on=["table", "bucket"], how="inner").withColumn(
        "position", F.col("start") + F.row_number().over(inside) - 1
    )
    file = F.floor(F.col("position") / _by_table(layout.rows_per_file)) + _by_table(layout.first_file)
    return numbered.select(*pairs.columns, "position", file.cast("int").alias("file"))


def _by_table(numbers: dict[str, int]) -> Column:
    """The number of each row's table."""
    return F.create_map(*[F.lit(part) for entry in numbers.items() for part in entry])[F.col("table")]


def training_rows(
    pairs: DataFrame, packed_queries: DataFrame, features: DataFrame, *, hot: dict[str, list[str]]
) -> DataFrame:
    """Pairs with the query's embedding, one of its negatives and the item's features.

    Args:
        pairs: One row per (query, item).
        packed_queries: See `packed` and `with_negatives`; unique by query_id.
        features: The feature columns of item_features; unique by item_id.
        hot: Frequent query_ids and item_ids of the pairs; see `hot_keys`.
    """
    with_query = spread_join(
        pairs, packed_queries, on="query_id", how="inner", hot=hot["query_id"], spread_by="item_id"
    )
    with_negative = _with_negative(with_query)
    return spread_join(with_negative, features, on="item_id", how="inner", hot=hot["item_id"], spread_by="query_id")


def measured_rows(pairs: DataFrame, packed_queries: DataFrame, layout: FileLayout, hot: list[str]) -> DataFrame:
    """The rows of the held-out and the validation tables of all tasks; those of validation with the query's embedding.

    Args:
        pairs: The pairs of all tasks and windows, before the caps.
        packed_queries: See `packed`; unique by query_id.
        layout: Which files the rows fill.
        hot: Frequent query_ids; see `hot_keys`.
    """
    held_out = with_file(pairs.where(F.col("window") == HELD_OUT), layout)
    validation = with_file(validation_pairs(pairs), layout)
    with_query = spread_join(validation, packed_queries, on="query_id", how="inner", hot=hot, spread_by="item_id")
    return held_out.unionByName(with_query, allowMissingColumns=True)


def laid_out(rows: DataFrame, file_count: int) -> DataFrame:
    """One partition per value of `file`, in order of `position`, so that each write task writes one file.

    `repartition(n, key)` sends a row to partition pmod(hash(key), n), where files collide; this takes, for each
    file, the smallest key that leads to a partition of its own.
    """
    files = max(file_count, 1)
    key = F.col("id").cast("int").alias("partition_key")
    # 32 n candidates miss one of n partitions with probability n * exp(-32).
    candidates = rows.sparkSession.range(32 * files).select(key)
    targets = candidates.select("partition_key", F.pmod(F.hash("partition_key"), F.lit(files)).alias("file"))
    keys = targets.groupBy("file").agg(F.min("partition_key").alias("partition_key"))
    targeted = rows.join(F.broadcast(keys), on="file", how="inner")
    return targeted.repartition(files, "partition_key").sortWithinPartitions("file", "position").drop("partition_key")


def packed(queries: DataFrame) -> DataFrame:
    """query_id and the embedding as little-endian float16, 512 bytes, packed once per query."""
    columns = queries.select("query_id", "query_embedding")
    return columns.mapInArrow(_pack, "query_id string, query_embedding binary")


def _pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        vectors = batch.column(1)
        if not np.all(np.diff(vectors.offsets.to_numpy()) == EMBEDDING_DIM):
            raise ValueError(f"query_embeddings.query_embedding: expected {EMBEDDING_DIM} numbers in every row")
        numbers = vectors.flatten().to_numpy(zero_copy_only=False).astype("<f2")
        cells = pack_cells(numbers, np.full(len(batch), EMBEDDING_DIM))
        yield pa.RecordBatch.from_arrays([batch.column(0), cells], names=["query_id", "query_embedding"])
