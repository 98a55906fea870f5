"""Each row is accepted or rejected, once, for the first check it fails."""

from __future__ import annotations

from typing import Any

import pytest
from chispa import assert_df_equality
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.transforms.quarantine import Check, accepted, not_a_vector, rejected, with_reject
from schemas.tables import QUERIES, REJECTED_QUERIES


def checks() -> list[Check]:
    return [
        Check("null_id", F.col("query_id").isNull(), "query_id", "an id", "Add one."),
        Check("short_text", F.length("text") < 3, "text", "three letters", "Write more."),
    ]


def test_rows_are_split_by_the_first_check_they_fail(spark: SparkSession) -> None:
    schema = "query_id string, text string"
    rows = spark.createDataFrame([("a", "lamp"), ("b", "x"), (None, "x"), ("c", None)], schema)
    checked = with_reject(rows, QUERIES, checks())
    assert_df_equality(accepted(checked), spark.createDataFrame([("a", "lamp"), ("c", None)], schema))
    assert [tuple(row) for row in rejected(checked, REJECTED_QUERIES).collect()] == [
        ("b", "short_text", "queries", "text", "three letters", "Write more."),
        (None, "null_id", "queries", "query_id", "an id", "Add one."),
    ]


@pytest.mark.parametrize(
    ("vector", "is_bad"),
    [
        ([1.0, 0.0], False),
        ([1e-30, 0.0], False),
        (None, None),
        ([], True),
        ([1.0], True),
        ([1.0, 2.0, 3.0], True),
        ([0.0, 0.0], True),
        ([0.0, -0.0], True),
        ([1.0, None], True),
        ([None, None], True),
        ([0.0, None], True),
        ([1.0, float("nan")], True),
        ([float("inf"), 1.0], True),
        ([float("-inf"), 1.0], True),
    ],
)
def test_a_vector_is_a_list_of_finite_numbers_of_one_length(spark: SparkSession, vector: Any, is_bad: Any) -> None:
    for kind in ("float", "double"):
        rows = spark.createDataFrame([(vector,)], f"embedding array<{kind}>")
        assert rows.select(not_a_vector("embedding", 2)).collect() == [(is_bad,)]
