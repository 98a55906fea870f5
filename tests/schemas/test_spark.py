"""conform: exactly the declared columns, or an error that names table, column, expectation, finding and cure."""

from __future__ import annotations

from typing import Any

import pytest
from chispa import assert_df_equality
from pyspark.sql import SparkSession
from pyspark.sql import types as T

from schemas import tables
from schemas.columns import Column, Table
from schemas.errors import TableError
from schemas.spark import conform, struct_type

SHOPS = Table(
    "shops",
    "one shop",
    (
        Column("shop_id", "string", "the shop"),
        Column("visit_count", "int64", "visits"),
        Column("place", "vector", "where it is", nullable=True, optional=True, shape=(2,)),
        Column("names", "strings", "what people call it", nullable=True, optional=True),
    ),
    key=("shop_id",),
)


def test_every_table_has_a_spark_schema_and_a_key_among_its_columns() -> None:
    declared = [value for value in vars(tables).values() if isinstance(value, Table)]
    assert len(declared) > 10
    for table in declared:
        assert struct_type(table).names == list(table.column_names)
        assert set(table.key) <= set(table.column_names)
        assert len(set(table.column_names)) == len(table.column_names)


def test_nullability_is_the_declared_one() -> None:
    assert [field.nullable for field in struct_type(SHOPS)] == [False, False, True, True]


def test_columns_are_ordered_widened_and_completed(spark: SparkSession) -> None:
    given = spark.createDataFrame(
        [(7, "lädchen 🛒", [1.0, 2.0], "x", "Laden")],
        "visit_count int, shop_id string, place array<double>, unknown string, names string",
    )
    expected = spark.createDataFrame(
        [("lädchen 🛒", 7, [1.0, 2.0], ["Laden"])],
        "shop_id string, visit_count long, place array<float>, names array<string>",
    )
    assert_df_equality(conform(given, SHOPS), expected, ignore_nullable=True)


def test_absent_optional_columns_become_nulls(spark: SparkSession) -> None:
    given = spark.createDataFrame([("a", 1)], "shop_id string, visit_count long")
    assert conform(given, SHOPS).collect() == [("a", 1, None, None)]


def test_a_null_name_stays_null_rather_than_a_list_of_nothing(spark: SparkSession) -> None:
    given = spark.createDataFrame([("a", 1, None)], "shop_id string, visit_count long, names string")
    assert conform(given, SHOPS).collect() == [("a", 1, None, None)]


@pytest.mark.parametrize(
    ("schema", "column", "parts"),
    [
        ("shop_id string, visits long", "visit_count", ["a column of type bigint (visits)", "shop_id, visits", "Add"]),
        ("shop_id long, visit_count long", "shop_id", ["type string", "found type bigint", "Cast"]),
        ("shop_id string, visit_count decimal(10,0)", "visit_count", ["type bigint", "found type decimal(10,0)"]),
        ("shop_id string, visit_count long, place string", "place", ["array<float>", "found type string"]),
    ],
)
def test_a_missing_or_mistyped_column_is_named(spark: SparkSession, schema: str, column: str, parts: list[str]) -> None:
    with pytest.raises(TableError) as caught:
        conform(spark.createDataFrame([], schema), SHOPS)
    assert (caught.value.table, caught.value.column) == ("shops", column)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("kind", "hint"), [(T.TimestampNTZType(), "which zone the naive time is in"), (T.DateType(), "no time of day")]
)
def test_a_time_without_a_zone_is_refused(spark: SparkSession, kind: Any, hint: str) -> None:
    events = Table("events", "one event", (Column("event_ts", "timestamp", "when"),))
    given = spark.createDataFrame([], T.StructType([T.StructField("event_ts", kind)]))
    with pytest.raises(TableError, match=hint):
        conform(given, events)
