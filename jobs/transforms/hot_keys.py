"""Joins that one very frequent key cannot slow down.

A shuffled join sends all rows of a key to one partition: an item with 60 % of the events makes one partition
thirteen times the median. Keys above a measured share are therefore spread over several copies of their row.
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

HOT_SHARE = 0.01
"""Share of the rows above which a key is spread; at most 1 / HOT_SHARE keys are."""

COPIES = 64
"""Copies of a hot key's row, each joined with its part of the rows."""


def hot_keys(rows: DataFrame, columns: tuple[str, ...], *, row_count: int) -> dict[str, list[str]]:
    """The keys of each column that hold more than HOT_SHARE of the rows, from one pass over them.

    Args:
        rows: Any rows.
        columns: String columns that will be joined on.
        row_count: How many rows there are.
    """
    named = [F.struct(F.lit(column).alias("column"), F.col(column).alias("key")) for column in columns]
    counts = rows.select(F.explode(F.array(*named)).alias("entry")).groupBy("entry.column", "entry.key").count()
    # A key that is no text cannot come to Python, and matches nothing.
    is_hot = F.is_valid_utf8("key") & (F.col("count") > HOT_SHARE * row_count)
    found = sorted((row["column"], row["key"]) for row in counts.where(is_hot).collect())
    return {name: [key for column, key in found if column == name] for name in columns}


def spread_join(rows: DataFrame, facts: DataFrame, *, on: str, how: str, hot: list[str], spread_by: str) -> DataFrame:
    """Join rows to facts, of which there is at most one per key, with the rows of hot keys spread evenly.

    Args:
        rows: The many side; keeps its number of rows in a left join.
        facts: The one side, unique by `on`.
        on: The key.
        how: inner or left.
        hot: The keys to spread; see `hot_keys`.
        spread_by: A column of `rows` that tells the rows of one key apart.
    """
    if not hot:
        return rows.join(facts, on=on, how=how)
    is_hot = F.col(on).isin(hot)
    copy = F.when(is_hot, F.pmod(F.xxhash64(spread_by), F.lit(COPIES)))
    copies = F.when(is_hot, F.sequence(F.lit(0).cast("long"), F.lit(COPIES - 1).cast("long")))
    spread = rows.withColumn("copy", F.coalesce(copy, F.lit(0).cast("long")))
    copied = facts.withColumn("copy", F.explode(F.coalesce(copies, F.array(F.lit(0).cast("long")))))
    return spread.join(copied, on=[on, "copy"], how=how).drop("copy")
