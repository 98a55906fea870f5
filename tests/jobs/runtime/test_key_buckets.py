"""What buckets of hashes leave out of a merge, and that they leave out no row that has changed."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.runtime.key_buckets import changed_buckets, is_in_buckets


@pytest.mark.parametrize("count", [1, 8, 9, 700, 40_000])
@pytest.mark.parametrize("key", ["id", "number"])
def test_buckets_leave_out_most_rows_and_none_that_has_changed(spark: SparkSession, count: int, key: str) -> None:
    rows = spark.range(200_000).select(F.concat(F.lit("i"), "id").alias("id"), F.col("id").alias("number"))
    changed = rows.where(F.col("number") < count)
    buckets = changed_buckets(changed.select(key), count)
    assert buckets is not None
    found = rows.where(is_in_buckets(F.col(key), buckets))
    assert found.where(F.col("number") < count).count() == count
    assert found.count() < count + 0.2 * 200_000


def test_too_many_changes_for_buckets_are_merged_without(spark: SparkSession) -> None:
    assert changed_buckets(spark.range(1), 1 << 17) is not None
    assert changed_buckets(spark.range(1), (1 << 17) + 1) is None
