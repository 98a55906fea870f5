"""split_items: every id once, however often it came and whichever way Spark took to find that out."""

from __future__ import annotations

import pytest
from chispa import assert_df_equality
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.transforms import items
from jobs.transforms.items import joined_texts, split_items
from schemas.spark import conform
from schemas.tables import ITEMS

ROWS = [("once", "b"), ("twice", "b"), ("twice", "a"), ("thrice", "c"), ("thrice", "a"), ("thrice", "a")]


def split(spark: SparkSession) -> tuple[DataFrame, DataFrame]:
    usable, rejected = split_items(conform(spark.createDataFrame(ROWS, "item_id string, title string"), ITEMS))
    return usable.select("item_id", "title"), rejected.groupBy("item_id").agg(F.count("*").alias("rows"))


@pytest.mark.parametrize("is_adaptive", ["false", "true"])
def test_of_several_rows_of_an_item_the_smallest_is_kept(spark: SparkSession, is_adaptive: str) -> None:
    before = spark.conf.get("spark.sql.adaptive.enabled")
    assert before is not None
    spark.conf.set("spark.sql.adaptive.enabled", is_adaptive)
    try:
        usable, rejected = split(spark)
        kept = spark.createDataFrame([("once", "b"), ("twice", "a"), ("thrice", "a")], "item_id string, title string")
        assert_df_equality(usable, kept, ignore_row_order=True)
        others = spark.createDataFrame([("twice", 1), ("thrice", 2)], "item_id string, rows long")
        assert_df_equality(rejected, others, ignore_row_order=True, ignore_nullable=True)
    finally:
        spark.conf.set("spark.sql.adaptive.enabled", before)


def test_two_ids_with_one_key_are_two_items(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [sorted(map(tuple, rows.collect())) for rows in split(spark)]
    monkeypatch.setattr(items.F, "xxhash64", lambda *_: F.lit(7).cast("long"))
    assert [sorted(map(tuple, rows.collect())) for rows in split(spark)] == expected


def test_values_are_joined_and_nothing_is_null(spark: SparkSession) -> None:
    rows = spark.createDataFrame([("1", "Red mug", ["red", "blue"]), ("2", None, None)],
                                 "item_id string, title string, colors array<string>")  # fmt: skip
    texts = joined_texts(rows, ["colors", "title"])
    expected = spark.createDataFrame(
        [("1", ["red blue", "Red mug"]), ("2", ["", ""])], "item_id string, texts array<string>"
    )
    assert_df_equality(texts, expected, ignore_nullable=True)
