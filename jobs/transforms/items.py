"""Items that can be used: one row per id, each text feature one string; for the vocabulary and for the features."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.transforms.keys import item_key
from jobs.transforms.quarantine import (
    Check,
    accepted,
    copy_checks,
    is_blank,
    rejected,
    text_checks,
    with_copies,
    with_reject,
)
from schemas.tables import ITEMS, REJECTED_ITEMS


def split_items(items: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Separate the items that can be used from those that cannot.

    Of several rows with one item_id the fullest is kept, of rows as full the smallest by all columns. Each further row
    is rejected: as duplicate_item where it only repeats the kept row or a part of it, else as conflicting_item. Only
    rows whose id occurs more than once are shuffled and sorted: where there is none, Spark finds that out from the ids
    alone and leaves the rest of that branch out.

    Args:
        items: Rows of ITEMS.

    Returns:
        The usable rows, unique by item_id; the others as rows of REJECTED_ITEMS.
    """
    cure = "Give every product an id of its own."
    no_id = Check("null_id", is_blank("item_id"), "item_id", "an id that is not blank", cure)
    named = with_reject(items, ITEMS, [no_id, *text_checks(ITEMS)])
    # By key, as numbers are counted faster than strings; two ids with one key only take the longer way.
    sound = accepted(named).withColumn("item_key", item_key("item_id"))
    counted = sound.groupBy("item_key").agg(F.count("*").alias("row_count"))
    repeated = counted.where("row_count > 1").select("item_key")
    # `repeated` is unique by item_key, so neither join multiplies rows.
    single = sound.join(repeated, on="item_key", how="left_anti")
    several = sound.join(repeated, on="item_key", how="left_semi")
    cure = "Keep one row per product, or give variants ids of their own; the fullest row was used."
    chosen = with_reject(with_copies(several, ITEMS, ("item_id",)), ITEMS, copy_checks("item", "item_id", cure))
    usable = single.unionByName(accepted(chosen).drop("copy", "is_repeat")).drop("item_key")
    return usable, rejected(named, REJECTED_ITEMS).unionByName(rejected(chosen, REJECTED_ITEMS))


def joined_texts(items: DataFrame, text_features: Sequence[str]) -> DataFrame:
    """Each item's `texts`: one string per text feature, its values joined by a blank, null as an empty text.

    Source: ItemSage section 3.1 (several values are concatenated into one string).
    """
    return items.select("item_id", F.array(*[F.concat_ws(" ", name) for name in text_features]).alias("texts"))
