"""Items that can be used: one row per id, each text feature one string; for the vocabulary and for the features."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.keys import item_key
from jobs.transforms.quarantine import Check, accepted, rejected, with_reject
from schemas.tables import ITEMS, REJECTED_ITEMS


def split_items(items: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Separate the items that can be used from those that cannot.

    Of several rows with one item_id the smallest by all columns is kept, whether the rows are equal or not; each
    further row is rejected as duplicate_item. Only rows whose id occurs more than once are shuffled and sorted: where
    there is none, Spark finds that out from the ids alone and leaves the rest of that branch out.

    Args:
        items: Rows of ITEMS.

    Returns:
        The usable rows, unique by item_id; the others as rows of REJECTED_ITEMS.
    """
    cure = "Give every product an id of its own."
    is_blank = F.col("item_id").isNull() | (F.trim("item_id") == "")
    named = with_reject(items, ITEMS, [Check("null_id", is_blank, "item_id", "an id that is not blank", cure)])
    # By key, as numbers are counted faster than strings; two ids with one key only take the longer way.
    sound = accepted(named).withColumn("item_key", item_key("item_id"))
    counted = sound.groupBy("item_key").agg(F.count("*").alias("row_count"))
    repeated = counted.where("row_count > 1").select("item_key")
    # `repeated` is unique by item_key, so neither join multiplies rows.
    single = sound.join(repeated, on="item_key", how="left_anti")
    several = sound.join(repeated, on="item_key", how="left_semi")
    other_columns = [name for name in ITEMS.column_names if name != "item_id"]
    copies = Window.partitionBy("item_id").orderBy(*other_columns)
    numbered = several.withColumn("copy", F.row_number().over(copies))
    cure = "Keep one row per product; the smallest row by all columns was used."
    duplicate = Check("duplicate_item", F.col("copy") > 1, "item_id", "one row per item_id", cure)
    chosen = with_reject(numbered, ITEMS, [duplicate])
    usable = single.unionByName(accepted(chosen).drop("copy")).drop("item_key")
    return usable, rejected(named, REJECTED_ITEMS).unionByName(rejected(chosen, REJECTED_ITEMS))


def joined_texts(items: DataFrame, text_features: Sequence[str]) -> DataFrame:
    """Each item's `texts`: one string per text feature, its values joined by a blank, null as an empty text.

    Source: ItemSage section 3.1 (several values are concatenated into one string).
    """
    return items.select("item_id", F.array(*[F.concat_ws(" ", name) for name in text_features]).alias("texts"))
