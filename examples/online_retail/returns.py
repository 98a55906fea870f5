"""What customers sent back: cancelled invoice lines as engagements `return`, which may count against an item.

A cancellation names a customer and a stock code, but no invoice. It is taken to cancel the customer's latest earlier
basket with that item; each other item of that basket, as a query, then led to an item that was sent back.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from examples.online_retail.raw_rows import RAW_ROWS

_LINE = RAW_ROWS.key


def returned_lines(lines: DataFrame, used: DataFrame) -> DataFrame:
    """The cancelled lines whose basket is known: each once, with that `basket` and the rest of what the line says.

    `used` has the items of a basket once, so that a customer and an item meet each of his baskets with it.

    Args:
        lines: Rows of `checked_lines`.
        used: Rows of `split_rows`; unique by invoice_no and item_id.
    """
    cancelled = lines.where(F.col("reject.reason") == "cancellation")
    bought = used.select(
        "user_id", "item_id", F.col("invoice_no").alias("basket"), F.col("event_ts").alias("bought_ts")
    )
    # Without a customer there is nothing to find: a null meets no null.
    earlier = cancelled.join(bought, on=["user_id", "item_id"], how="inner").where("bought_ts < event_ts")
    latest_first = Window.partitionBy(*_LINE).orderBy(F.desc("bought_ts"), "basket")
    latest = earlier.withColumn("rank", F.row_number().over(latest_first)).where("rank = 1")
    return latest.select(*_LINE, "invoice_no", "event_ts", "user_id", "item_id", "basket")


def without_returned(rejected: DataFrame, returned: DataFrame) -> DataFrame:
    """The rejected lines but for those that gave an engagement `return`; `returned` is unique by file and row."""
    return rejected.join(returned.select(*_LINE), on=list(_LINE), how="left_anti")
