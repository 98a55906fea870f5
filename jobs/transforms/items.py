"""Items that can be used: one row per id, each text feature one string; for the vocabulary and for the features."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.transforms.keys import NO_ITEM, item_key, source_hash
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
from schemas.tables import ITEMS, MAX_TEXT_CHARACTERS, REJECTED_ITEMS, SOURCE_HASH, filtered


def split_items(items: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Separate the items that can be used from those that cannot.

    Of several rows with one item_id the fullest is kept, of rows as full the smallest by all columns. Each further row
    is rejected: as duplicate_item where it only repeats the kept row or a part of it, else as conflicting_item. Of
    several ids with one item_key, which training would take for one item, the smallest is kept and each other is
    rejected as key_collision, as is an id whose key means "no item". Only rows whose key occurs more than once are
    shuffled and sorted: where there is none, Spark finds that out from the keys
    alone and leaves the rest of that branch out.

    Args:
        items: Rows of ITEMS; further columns, such as those that results are filtered by, choose among equal rows
            alone, so that every job takes the same row.

    Returns:
        The usable rows, unique by item_id; the others as rows of REJECTED_ITEMS.
    """
    further = {name: kind for name, kind in items.dtypes if name not in ITEMS.column_names}
    texts = filtered(ITEMS, {name: "string" for name, kind in further.items() if kind == "string"})
    cure = "Give every product an id of its own."
    no_id = Check("null_id", is_blank("item_id"), "item_id", "an id that is not blank", cure)
    named = with_reject(items, ITEMS, [no_id, *text_checks(texts)])
    # By key, as numbers are counted faster than strings.
    sound = accepted(named).withColumn("item_key", item_key("item_id"))
    counted = sound.groupBy("item_key").agg(F.count("*").alias("row_count"))
    repeated = counted.where((F.col("row_count") > 1) | (F.col("item_key") == NO_ITEM)).select("item_key")
    # `repeated` is unique by item_key, so neither join multiplies rows.
    single = sound.join(repeated, on="item_key", how="left_anti")
    several = sound.join(repeated, on="item_key", how="left_semi")
    first_id = F.min("item_id").over(Window.partitionBy("item_key"))
    own_key = with_reject(several.withColumn("first_id", first_id), ITEMS, [_collision()])
    cure = "Keep one row per product, or give variants ids of their own; the fullest row was used."
    numbered = with_copies(own_key, ITEMS, ("item_id",), list(further))
    chosen = with_reject(numbered, ITEMS, copy_checks("item", "item_id", cure))
    usable = single.unionByName(accepted(chosen).drop("copy", "is_repeat", "first_id")).drop("item_key")
    return usable, rejected(named, REJECTED_ITEMS).unionByName(rejected(chosen, REJECTED_ITEMS))


def _collision() -> Check:
    """An id that shares its 64-bit key with a smaller one: by chance once in ten billion items, or made to do so."""
    is_no_item = F.col("item_key") == NO_ITEM
    other = F.when(is_no_item, F.lit("queries that show no item")).otherwise(F.concat(F.lit("item "), "first_id"))
    expected = F.concat(F.lit("a 64-bit key (xxhash64 of the id) of its own; it is also that of "), other)
    cure = "Give the product another id; whoever names products may have made this one to replace another."
    is_bad = is_no_item | (F.col("first_id") != F.col("item_id"))
    return Check("key_collision", is_bad, "item_id", expected, cure)


def joined_texts(items: DataFrame, text_features: Sequence[str], kept: Sequence[str] = ()) -> DataFrame:
    """Each item's `texts`: one string per text feature, its values joined by a blank, null as an empty text.

    Columns of `kept` stay as they are.

    Source: ItemSage section 3.1 (several values are concatenated into one string).
    """
    texts = F.array(*[F.concat_ws(" ", name) for name in text_features]).alias("texts")
    return items.select("item_id", texts, *kept)


def item_texts(items: DataFrame, names: Sequence[str]) -> DataFrame:
    """Each item's `text`, the named text features joined by a blank and cut, `is_cut` and the text's SOURCE_HASH.

    A null is an empty text.
    """
    whole = F.concat_ws(" ", *names)
    text = F.substring(whole, 1, MAX_TEXT_CHARACTERS).alias("text")
    texts = items.select("item_id", text, (F.char_length(whole) > MAX_TEXT_CHARACTERS).alias("is_cut"))
    return texts.withColumn(SOURCE_HASH, source_hash("text"))


def broken_texts(items: DataFrame, text_features: Sequence[str]) -> dict[str, int]:
    """Text feature -> how many of its texts are no UTF-8; features without such a text are left out."""
    counts = [F.count_if(~F.is_valid_utf8(F.concat_ws(" ", name))).alias(name) for name in text_features]
    row = items.agg(*counts).first()
    return {name: count for name, count in (row.asDict() if row else {}).items() if count}
