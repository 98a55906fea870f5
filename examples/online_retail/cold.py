"""A cold slice of the log: few training pairs, and half of the items never bought in training.

What a young shop looks like: most of what it will sell next month it has not sold yet. The test window stays as it is.
Of 3,785 items 1,893 are held out. 569 baskets with 66,028 events are left, whose targets are 1,060 items, so that
57.5 % of the 445,858 held-out pairs have an item that training has not seen, where the whole log has 1.3 %.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.settings import DateSettings

TRAINING_PAIRS = 60_000
"""Distinct pairs of query and item that are left of the training window."""


def cold_slice(events: DataFrame, dates: DateSettings) -> DataFrame:
    """The events of the test window, and of the training window those of `TRAINING_PAIRS` pairs.

    No item of the held-out half is a target in training; as a query it may occur. Of the other half, whole baskets are
    taken in the order of a hash, up to the last pair that is needed, so that pairs repeat as they do in a young log.

    Args:
        events: Rows of engagement_logs whose event_id begins with the basket.
        dates: The windows.
    """
    when, pair = F.col("event_ts"), ["query_id", "item_id"]
    is_training = (when >= F.lit(dates.train_start)) & (when < F.lit(dates.train_end))
    basket = F.md5(F.substring_index("event_id", "|", 1))
    candidates = events.where(is_training & ~is_held_out("item_id")).withColumn("basket", basket)
    first_seen = candidates.groupBy(*pair).agg(F.min("basket").alias("first_basket"))
    chosen = first_seen.orderBy("first_basket", *pair).limit(TRAINING_PAIRS)
    last = chosen.agg(F.max("first_basket")).first()
    assert last is not None  # an aggregate has one row
    # query_id, item_id are unique in `chosen`.
    training = candidates.where(F.col("basket") <= F.lit(last[0])).join(chosen, on=pair, how="left_semi")
    return training.select(*events.columns).unionByName(events.where(when >= F.lit(dates.test_start)))


def is_held_out(item_id: str) -> Column:
    """Whether an item belongs to the half, by hash, that nobody buys in training."""
    return F.substring(F.md5(item_id), 1, 1) < "8"
