"""Items that can be used: one row per id, each text feature one string; for the vocabulary and for the features."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.quarantine import Check, accepted, rejected, with_reject
from schemas.tables import ITEMS, REJECTED_ITEMS


def split_items(items: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Separate the items that can be used from those that cannot.

    Of several rows with one item_id the smallest by all columns is kept, whether the rows are equal or not; each
    further row is rejected as duplicate_item.

    Args:
        items: Rows of ITEMS.

    Returns:
        The usable rows, unique by item_id; the others as rows of REJECTED_ITEMS.
    """
    cure = "Give every product an id of its own."
    is_blank = F.col("item_id").isNull() | (F.trim("item_id") == "")
    named = with_reject(items, ITEMS, [Check("null_id", is_blank, "item_id", "an id that is not blank", cure)])
    other_columns = [name for name in ITEMS.column_names if name != "item_id"]
    copies = Window.partitionBy("item_id").orderBy(*other_columns)
    numbered = accepted(named).withColumn("copy", F.row_number().over(copies))
    cure = "Keep one row per product; the smallest row by all columns was used."
    duplicate = Check("duplicate_item", F.col("copy") > 1, "item_id", "one row per item_id", cure)
    unique = with_reject(numbered, ITEMS, [duplicate])
    return accepted(unique).drop("copy"), rejected(named, REJECTED_ITEMS).unionByName(rejected(unique, REJECTED_ITEMS))


def joined_texts(items: DataFrame, text_features: Sequence[str]) -> DataFrame:
    """Each item's text features as one string each: the values of a feature joined by a blank, null as an empty text.

    Source: ItemSage section 1.2 of its notes (several values are concatenated into one string).
    """
    return items.select("item_id", *[F.concat_ws(" ", name).alias(name) for name in text_features])
