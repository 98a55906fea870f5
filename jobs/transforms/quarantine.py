"""Splitting a table into rows that can be used and rows that cannot, each of these with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.columns import Table


@dataclass(frozen=True)
class Check:
    """One way for a row to be unusable.

    Attributes:
        reason: Short machine-readable cause.
        is_bad: True where the row fails; null counts as false, so test nulls explicitly.
        column: The column at fault.
        expected: What it should have held; a column where that differs from row to row.
        cure: What the user can do.
    """

    reason: str
    is_bad: Column
    column: str
    expected: str | Column
    cure: str


def with_reject(df: DataFrame, source: Table, checks: list[Check]) -> DataFrame:
    """Add the struct column `reject`: the first check a row fails, or null where it passes all."""
    verdicts = [
        F.when(
            check.is_bad,
            F.struct(
                F.lit(check.reason).alias("reason"),
                F.lit(source.name).alias("source_table"),
                F.lit(check.column).alias("source_column"),
                F.lit(check.expected).alias("expected"),
                F.lit(check.cure).alias("cure"),
            ),
        )
        for check in checks
    ]
    return df.withColumn("reject", F.coalesce(*verdicts))


def accepted(df: DataFrame) -> DataFrame:
    """The rows of `with_reject` that passed, without the verdict."""
    return df.where(F.col("reject").isNull()).drop("reject")


def rejected(df: DataFrame, table: Table) -> DataFrame:
    """The rows of `with_reject` that failed, as the columns of a rejected_* table."""
    flat = df.where(F.col("reject").isNotNull()).select("*", "reject.*")
    return flat.select(*table.column_names)


def not_a_vector(column: str, length: int | Column) -> Column:
    """True where a present list of numbers has another length, or holds a null, NaN or infinity, or is all zero.

    A null list gives null; check for null first.
    """
    numbers = F.col(column)
    largest = F.lit(3.4028235e38)
    has_bad_number = F.exists(numbers, lambda x: x.isNull() | F.isnan(x) | (F.abs(x) > largest))
    is_all_zero = F.forall(numbers, lambda x: x == 0)
    return (F.size(numbers) != length) | has_bad_number | is_all_zero
