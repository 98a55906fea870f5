"""Splitting a table into rows that can be used and rows that cannot, each of these with its reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from schemas import columns
from schemas.columns import Table
from schemas.tables import MAX_ID_BYTES


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
    """Add the struct column `reject`: the first check a row fails, or null where it passes all.

    A row that has a `reject` already keeps it.
    """
    # By its number, as Spark compiles a choice among numbers in a fraction of the time that structs of strings take.
    first = reduce(
        lambda chosen, number: chosen.when(checks[number].is_bad, number),
        range(1, len(checks)),
        F.when(checks[0].is_bad, 0),
    )
    earlier = [F.col("reject")] if "reject" in df.columns else []
    return df.withColumn("reject", F.coalesce(*earlier, F.get(_verdicts(source, checks), first)))


def _verdicts(source: Table, checks: list[Check]) -> Column:
    """What each check says of a row that fails it [check].

    Where that follows from the check alone it is one literal, which Spark reads once as it plans: put together from a
    literal for each text, each a call of the JVM, it takes longer than the checks of a small table.
    """
    said = [
        {
            "reason": check.reason,
            "source_table": source.name,
            "source_column": check.column,
            "expected": check.expected,
            "cure": check.cure,
        }
        for check in checks
    ]
    if all(isinstance(check.expected, str) for check in checks):
        texts = T.StructType([T.StructField(name, T.StringType()) for name in said[0]])
        return F.from_json(F.lit(json.dumps(said)), T.ArrayType(texts))
    return F.array(*[F.struct(*[F.lit(text).alias(name) for name, text in one.items()]) for one in said])


def accepted(df: DataFrame) -> DataFrame:
    """The rows of `with_reject` that passed, without the verdict."""
    return df.where(F.col("reject").isNull()).drop("reject")


def rejected(df: DataFrame, table: Table) -> DataFrame:
    """The rows of `with_reject` that failed, as the columns of a rejected_* table; strings made valid UTF-8."""
    flat = df.where(F.col("reject").isNotNull()).select("*", "reject.*")
    return flat.select(*[_readable(flat, name) for name in table.column_names])


def _readable(df: DataFrame, name: str) -> Column:
    """A column that every reader can show: bytes that are no UTF-8 become U+FFFD, and what is too long is cut."""
    is_text = df.schema[name].dataType.simpleString() == "string"
    return readable(df[name]).alias(name) if is_text else F.col(name)


def readable(text: Column) -> Column:
    """A text as a rejected_* table holds it; of any id that can be used it is the id."""
    return F.make_valid_utf8(F.substring(text, 1, MAX_ID_BYTES))


def is_blank(column: str) -> Column:
    """True where a string is null or holds nothing but blanks."""
    return F.col(column).isNull() | ~_says_something(F.col(column))


def _says_something(text: Column) -> Column:
    # Blanks sort before "!": few rows, if any, need the slower look.
    return (text >= "!") | text.rlike(r"\S")


def text_checks(table: Table) -> list[Check]:
    """Of every string column of an input: is it UTF-8, and is an id or a name as short as the schema says?"""
    checks = []
    for column in table.columns:
        if column.kind in ("string", "strings"):
            is_valid = F.is_valid_utf8(F.concat_ws(" ", column.name))
            checks.append(
                Check("bad_text", ~is_valid, column.name, "text in UTF-8", "Write the text as UTF-8 where it is made.")
            )
        if column.max_bytes:
            expected = f"at most {column.max_bytes} bytes of UTF-8"
            is_long = F.octet_length(column.name) > column.max_bytes
            checks.append(
                Check("long_id", is_long, column.name, expected, "Give it a short id, and keep texts in text columns.")
            )
    return checks


def with_copies(df: DataFrame, table: Table, key: tuple[str, ...], ties: Sequence[str] = ()) -> DataFrame:
    """Number the rows of one key, the fullest first, and say which rows only repeat the first.

    The fullest row has most columns that say something: nulls, blank strings and empty lists do not. Of rows as full
    the smallest by all columns comes first, so neither files nor partitions matter. Rows with a `reject` take no part.

    Args:
        df: Rows of `table`.
        table: What they mean.
        key: Columns of the key.
        ties: Further columns, whose smallest values come first among rows that are equal otherwise.

    Returns:
        The rows with `copy` (from 1), and `is_repeat`: true where the row says nothing that the first does not say.
    """
    others = [column for column in table.columns if column.name not in key]
    names = [column.name for column in others]
    is_out = F.col("reject").isNotNull() if "reject" in df.columns else F.lit(False)
    # The hash keeps rows without an id from meeting in one partition.
    apart = F.when(is_out, F.xxhash64(*names))
    said = df.withColumns({"apart": apart, "said": F.array(*[_said(column) for column in others])})
    fullness = F.size(F.filter("said", lambda value: value.isNotNull()))
    last = [F.asc_nulls_last(name) for name in ties]
    copies = Window.partitionBy(*key, "apart").orderBy(F.desc("fullness"), *names, *last)
    numbered = said.withColumn("fullness", fullness).withColumns(
        {"copy": F.row_number().over(copies), "first_said": F.first("said").over(copies)}
    )
    adds_nothing = F.zip_with("said", "first_said", lambda mine, first: mine.isNull() | mine.eqNullSafe(first))
    return numbered.withColumn("is_repeat", F.forall(adds_nothing, lambda value: value)).drop(
        "apart", "said", "fullness", "first_said"
    )


def _said(column: columns.Column) -> Column:
    """A hash of what a column says, or null where it says nothing."""
    value, says = F.col(column.name), F.col(column.name).isNotNull()
    if column.kind in ("string", "strings"):
        value = F.concat_ws(" ", column.name)
        says = _says_something(value)
    return F.when(says, F.xxhash64(value))


def copy_checks(noun: str, column: str, cure: str) -> list[Check]:
    """The verdicts on rows of `with_copies`: duplicate_<noun> is harmless, conflicting_<noun> is not.

    Args:
        noun: What a row is.
        column: The column at fault.
        cure: What to do about rows that differ.
    """
    is_copy, one = F.col("copy") > 1, f"one row per {column}"
    harmless = "Nothing: it repeats the row that is used, or a part of it."
    return [
        Check(f"duplicate_{noun}", is_copy & F.col("is_repeat"), column, one, harmless),
        Check(f"conflicting_{noun}", is_copy & ~F.col("is_repeat"), column, one, cure),
    ]


def not_a_vector(column: str, length: int | Column) -> Column:
    """True where a present list of numbers has another length, or holds a null, NaN or infinity, or is all zero.

    A null list gives null; check for null first.
    """
    numbers = F.col(column)
    largest = F.lit(3.4028235e38)
    has_bad_number = F.exists(numbers, lambda x: x.isNull() | F.isnan(x) | (F.abs(x) > largest))
    is_all_zero = F.forall(numbers, lambda x: x == 0)
    return (F.size(numbers) != length) | has_bad_number | is_all_zero
