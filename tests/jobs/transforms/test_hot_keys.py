"""A hot key costs nothing: the same rows, in partitions of like size."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.transforms.hot_keys import hot_keys, spread_join


@pytest.fixture
def shuffled(spark: SparkSession) -> Iterator[SparkSession]:
    """A session whose joins shuffle to 8 partitions, as on tables too large to broadcast."""
    changed = {"spark.sql.shuffle.partitions": "8", "spark.sql.autoBroadcastJoinThreshold": "-1"}
    before = {key: spark.conf.get(key) for key in changed}
    for key, value in changed.items():
        spark.conf.set(key, value)
    yield spark
    for key, value in before.items():
        spark.conf.set(key, value)


def events(spark: SparkSession) -> DataFrame:
    """1,000 events, 60 % of them on item 0."""
    item = F.coalesce(F.when(F.col("id") % 10 < 6, F.lit("0")), F.col("id").cast("string"))
    return spark.range(1_000).select(
        F.concat(F.lit("e"), "id").alias("event_id"), item.alias("item_id"), F.lit("q").alias("query_id")
    )


def test_keys_above_the_share_are_found(shuffled: SparkSession) -> None:
    assert hot_keys(events(shuffled), ("query_id", "item_id"), row_count=1_000) == {
        "query_id": ["q"],
        "item_id": ["0"],
    }
    assert hot_keys(events(shuffled), ("item_id",), row_count=100_000) == {"item_id": []}


@pytest.mark.parametrize("how", ["left", "inner"])
@pytest.mark.fault("C8", "recovered", "60 % of the events on one item, all on one query")
def test_spreading_changes_no_row_and_evens_the_partitions(shuffled: SparkSession, how: str) -> None:
    items = shuffled.range(0, 990).select(F.col("id").cast("string").alias("item_id"), F.col("id").alias("item_key"))

    def joined(hot: list[str]) -> DataFrame:
        return spread_join(events(shuffled), items, on="item_id", how=how, hot=hot, spread_by="event_id")

    def partition_sizes(rows: DataFrame) -> list[int]:
        return sorted(row["count"] for row in rows.groupBy(F.spark_partition_id()).count().collect())

    plain, spread = joined([]), joined(["0"])
    assert sorted(plain.collect()) == sorted(spread.collect(), key=tuple)
    assert partition_sizes(plain)[-1] > 6 * median(partition_sizes(plain))
    assert partition_sizes(spread)[-1] < 3 * median(partition_sizes(spread))
