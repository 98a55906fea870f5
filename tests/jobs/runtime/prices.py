"""A small table for the tests of storage."""

from __future__ import annotations

from typing import Any

from pyspark.sql import DataFrame, SparkSession

from jobs.runtime import table_io
from schemas.columns import Column, Table

PRICES = Table(
    "prices",
    "one price",
    (Column("item_id", "string", "the item"), Column("price", "int64", "cents", nullable=True)),
    key=("item_id",),
)


def prices(spark: SparkSession, *rows: tuple[Any, ...]) -> DataFrame:
    return spark.createDataFrame(list(rows), "item_id string, price long")


def rows_at(spark: SparkSession, uri: str, version: int | None = None) -> list[tuple[Any, ...]]:
    return sorted(tuple(row) for row in table_io.read(spark, uri, PRICES, version=version).collect())
