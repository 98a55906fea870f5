"""Pairs: weights by age, caps by hash, and files that are exact whatever the partitions."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.transforms.training_pairs import (
    FileLayout,
    capped,
    laid_out,
    packed,
    pairs_of,
    validation_pairs,
    with_file,
)

TRAIN_END = datetime(2026, 2, 20, tzinfo=timezone.utc)
VALIDATION_START = TRAIN_END - timedelta(days=5)
EVENT = (
    "task string, window string, query_id string, item_id string, "
    "item_key long, query_item_key long, event_ts timestamp"
)


def pairs_from(spark: SparkSession, *ages_days: float, half_life_days: float) -> DataFrame:
    """One pair with an event of each age."""
    rows = [("t", "training", "q", "i", 1, 0, TRAIN_END - timedelta(days=age)) for age in ages_days]
    events = spark.createDataFrame(rows, EVENT)
    return pairs_of(events, train_end=TRAIN_END, validation_start=VALIDATION_START, half_life_days=half_life_days)


def weights(spark: SparkSession, *ages_days: float, half_life_days: float) -> list[Any]:
    pairs = pairs_from(spark, *ages_days, half_life_days=half_life_days)
    return [tuple(row) for row in pairs.select("engagement_count", "pair_weight").collect()]


@pytest.mark.parametrize(
    ("ages_days", "half_life_days", "fit", "validation"),
    [
        ((15, 10, 4), 5, (2, 0.375), [(1, 1.0)]),
        ((15, 10), 0, (2, 2.0), []),
        ((5, 4, 0.5), 0, (0, 0.0), [(3, 3.0)]),
        ((5.00001,), 0, (1, 1.0), []),
    ],
)
def test_a_pair_knows_what_is_of_before_the_validation_window(
    spark: SparkSession, ages_days: tuple[float, ...], half_life_days: float, fit: Any, validation: Any
) -> None:
    pairs = pairs_from(spark, *ages_days, half_life_days=half_life_days)
    assert [tuple(row) for row in pairs.select("fit_count", "fit_weight").collect()] == [fit]
    measured = validation_pairs(pairs)
    assert [tuple(row) for row in measured.select("engagement_count", "pair_weight").collect()] == validation
    assert measured.where("window != 'validation'").count() == 0
    assert validation_pairs(pairs.withColumn("window", F.lit("held_out"))).count() == 0


def test_an_event_weighs_half_after_each_half_life(spark: SparkSession) -> None:
    assert weights(spark, 5, 10, half_life_days=5) == [(2, 0.75)]
    assert weights(spark, 5, 10, half_life_days=0) == [(2, 2.0)]


def test_a_held_out_event_weighs_one(spark: SparkSession) -> None:
    assert weights(spark, -3, -6, half_life_days=5) == [(2, 2.0)]


def test_an_ancient_event_still_weighs_something(spark: SparkSession) -> None:
    [(_, weight)] = weights(spark, 5_000, half_life_days=5)
    assert 0 < weight < 1e-9


def grid(spark: SparkSession, queries: int, items: int) -> DataFrame:
    """One pair of every query with every item, in one task."""
    names = [("t", "training", f"q{q}", f"i{i}") for q in range(queries) for i in range(items)]
    return spark.createDataFrame(names, "task string, window string, query_id string, item_id string")


def test_caps_keep_the_same_pairs_whatever_the_order(spark: SparkSession) -> None:
    pairs = grid(spark, 20, 10)
    kept = capped(pairs, per_item=8, per_query=3).collect()
    assert sorted(kept) == sorted(capped(pairs.orderBy(F.desc("item_id")), per_item=8, per_query=3).collect())
    per_item, per_query = ({row[place] for row in kept} for place in ("item_id", "query_id"))
    assert len(per_item) == 10
    assert all(sum(row["item_id"] == name for row in kept) <= 8 for name in per_item)
    assert all(sum(row["query_id"] == name for row in kept) <= 3 for name in per_query)
    assert capped(pairs, per_item=0, per_query=0).count() == 200


def test_capped_pairs_of_one_item_lie_in_all_files(spark: SparkSession) -> None:
    # The pairs a cap keeps have the smallest hashes; placing by the same hash would put them in the first file.
    pairs = grid(spark, 400, 1).union(grid(spark, 6, 20).where("item_id != 'i0'"))
    kept = capped(pairs, per_item=20, per_query=0)
    files = (
        with_file(kept, FileLayout({"training_t": 34}, {"training_t": 0}, 4))
        .where("item_id = 'i0'")
        .groupBy("file")
        .count()
        .collect()
    )
    assert len(files) == 4
    assert max(row["count"] for row in files) < 14


@pytest.mark.parametrize("partitions", [1, 5])
def test_each_file_is_one_partition_of_exact_size(spark: SparkSession, partitions: int) -> None:
    click = grid(spark, 10, 10)
    save = grid(spark, 7, 10).withColumn("task", F.lit("closeup_save"))
    layout = FileLayout({"training_t": 30}, {"training_t": 0}, 4) + FileLayout(
        {"training_closeup_save": 70}, {"training_closeup_save": 0}, 1
    )
    placed = with_file(click.union(save).repartition(partitions), layout)
    rows = laid_out(placed, layout.file_count).withColumn("partition", F.spark_partition_id()).collect()
    assert [sum(row["file"] == file for row in rows) for file in range(5)] == [30, 30, 30, 10, 70]
    assert all(row["partition"] == row["file"] for row in rows)
    assert all((row["file"] == 4) == (row["task"] == "closeup_save") for row in rows)
    assert sorted(row["position"] for row in rows if row["file"] < 4) == list(range(100))
    for partition in range(5):
        positions = [row["position"] for row in rows if row["partition"] == partition]
        assert positions == sorted(positions)


def test_files_are_numbered_through_the_tasks() -> None:
    layout = FileLayout.of({"a": 100, "b": 0, "c": 5}, 30)
    assert (layout.rows_per_file, layout.file_count) == ({"a": 25, "b": 1, "c": 5}, 5)
    assert layout.first_file == {"a": 0, "b": 4, "c": 4}


def queries(spark: SparkSession, *vectors: list[float]) -> DataFrame:
    rows = [(f"q{n}", vector) for n, vector in enumerate(vectors)]
    return spark.createDataFrame(rows, "query_id string, query_embedding array<float>")


def test_packing_keeps_ids_and_half_precision_numbers(spark: SparkSession) -> None:
    numbers = np.random.default_rng(1).normal(size=(3, 256)).astype("<f4")
    rows = packed(queries(spark, *numbers.tolist()).coalesce(1)).collect()
    assert {row["query_id"]: bytes(row["query_embedding"]) for row in rows} == {
        f"q{n}": vector.astype("<f2").tobytes() for n, vector in enumerate(numbers)
    }


def test_a_vector_of_another_length_is_refused(spark: SparkSession) -> None:
    with pytest.raises(PythonException, match=r"query_embeddings.query_embedding: expected 256 numbers"):
        packed(queries(spark, [1.0] * 255, [1.0] * 257).coalesce(1)).collect()
