"""split_items: every id once, however often it came and whichever way Spark took to find that out."""

from __future__ import annotations

from typing import Any

import pytest
from chispa import assert_df_equality
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.transforms import items
from jobs.transforms.items import joined_texts, split_items
from schemas.spark import conform
from schemas.tables import ITEMS, MAX_ID_BYTES, QUERIES

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


FULL = ("P1", "red mug", ["red"])
BARE, PART, BLANK = ("P1", None, None), ("P1", "red mug", None), ("P1", " ", [])
VARIANT, MORE = ("P1", None, ["blue"]), ("P1", "red mug", ["red", "blue"])


@pytest.mark.fault("t32", "recovered", "bare rows of a product beside its full row")
@pytest.mark.parametrize(
    ("rows", "kept", "reason"),
    [
        ([BARE, FULL], FULL, "duplicate_item"),
        ([PART, FULL], FULL, "duplicate_item"),
        ([BLANK, FULL], FULL, "duplicate_item"),
        ([FULL, FULL], FULL, "duplicate_item"),
        ([VARIANT, FULL], FULL, "conflicting_item"),
        ([MORE, FULL], FULL, "conflicting_item"),
        ([BLANK, BARE], BARE, "duplicate_item"),
    ],
)
def test_the_fullest_row_of_an_item_is_kept(
    spark: SparkSession, rows: list[tuple[Any, ...]], kept: tuple[Any, ...], reason: str
) -> None:
    for ordered in (rows, rows[::-1]):
        df = spark.createDataFrame(ordered, "item_id string, title string, colors array<string>").repartition(2)
        usable, rejects = split_items(conform(df, ITEMS))
        assert [tuple(row) for row in usable.select("item_id", "title", "colors").collect()] == [kept]
        assert [row["reason"] for row in rejects.collect()] == [reason]


LATIN_1, SURROGATE = "Café".encode("latin-1"), b"a \xed\xa0\x80 b"


@pytest.mark.fault("t06", "recovered", "a title and a colour that are no UTF-8")
@pytest.mark.fault("C11", "recovered", "a surrogate's bytes in a text")
@pytest.mark.parametrize("column", ["item_id", "title", "colors"])
@pytest.mark.parametrize("text", [LATIN_1, SURROGATE])
def test_a_text_that_is_no_utf_8_rejects_its_row_alone(spark: SparkSession, column: str, text: bytes) -> None:
    good = {"item_id": "X'676F6F64'", "title": "X'C3A9'", "colors": "X'C3A9'"}
    bad = good | {"item_id": "X'626164'"} | {column: f"X'{text.hex()}'"}
    rows = [
        f"SELECT CAST({row['item_id']} AS STRING) AS item_id, CAST({row['title']} AS STRING) AS title, "
        f"array('red', CAST({row['colors']} AS STRING)) AS colors"
        for row in (good, bad)
    ]
    usable, rejects = split_items(conform(spark.sql(" UNION ALL ".join(rows)), ITEMS))
    assert [(row["item_id"], row["title"]) for row in usable.collect()] == [("good", "é")]
    [row] = rejects.collect()
    assert (row["reason"], row["source_column"]) == ("bad_text", column)
    assert ("\ufffd" in row["item_id"]) == (column == "item_id")


@pytest.mark.fault("C5", "recovered", "an item_id of 10 MB")
def test_an_id_has_a_length_limit(spark: SparkSession) -> None:
    ids = ["i" * MAX_ID_BYTES, "é" * (MAX_ID_BYTES // 2), "é" * (MAX_ID_BYTES // 2) + "i", "tab\tand\x00\x1b[2J"]
    usable, rejects = split_items(conform(spark.createDataFrame([(i,) for i in ids], "item_id string"), ITEMS))
    assert {row["item_id"] for row in usable.collect()} == {ids[0], ids[1], ids[3]}
    assert [(row["reason"], row["source_column"]) for row in rejects.collect()] == [("long_id", "item_id")]
    limit = f"at most {MAX_ID_BYTES} bytes"
    assert all(limit in table.column(name).doc for table, name in ((ITEMS, "item_id"), (QUERIES, "query_id")))


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
