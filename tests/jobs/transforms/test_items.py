"""split_items: every id once, however often it came and whichever way Spark took to find that out."""

from __future__ import annotations

from typing import Any

import pytest
from chispa import assert_df_equality
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.transforms import items
from jobs.transforms.items import joined_texts, split_items
from jobs.transforms.keys import item_key
from schemas.columns import Kind
from schemas.spark import conform
from schemas.tables import ITEMS, MAX_ID_BYTES, QUERIES, filtered

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


def test_columns_to_filter_by_choose_among_equal_rows_alone(spark: SparkSession) -> None:
    rows = [("a", "Lamp", None, 1.0), ("a", "Lamp", "shed", 2.0), ("a", "Lamp", "barn", 3.0), ("b", None, "yard", 0.0)]
    rows += [("b", "Rug", None, None)]
    for ordered in (rows, rows[::-1]):
        df = spark.createDataFrame(ordered, "item_id string, title string, store string, price double").repartition(2)
        filters: dict[str, Kind] = {"store": "string", "price": "float64"}
        usable, rejects = split_items(conform(df, filtered(ITEMS, filters)))
        kept = {tuple(row) for row in usable.select("item_id", "title", "store", "price").collect()}
        assert kept == {("a", "Lamp", "barn", 3.0), ("b", "Rug", None, None)}
        assert {row["reason"] for row in rejects.collect()} == {"duplicate_item"}


def test_a_filter_s_text_that_is_no_utf_8_rejects_its_row(spark: SparkSession) -> None:
    rows = spark.sql("SELECT 'a' AS item_id, CAST(X'43E9' AS STRING) AS store UNION ALL SELECT 'b', 'shed'")
    usable, rejects = split_items(conform(rows, filtered(ITEMS, {"store": "string"})))
    assert [row["item_id"] for row in usable.collect()] == ["b"]
    assert [(row["reason"], row["source_column"]) for row in rejects.collect()] == [("bad_text", "store")]


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


def colliding_ids() -> tuple[str, str]:
    """Two ids of 16 letters, digits and signs with one xxhash64 (seed 42), made in seconds: as a shop's supplier could.

    For any two first halves there are second halves with which their hashes meet; those that can be typed are kept.
    """
    p1, p2, p4, p5 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
    mask = (1 << 64) - 1

    def rotated(number: int, bits: int) -> int:
        return (number << bits | number >> (64 - bits)) & mask

    def mixed(half: bytes) -> int:
        return rotated(int.from_bytes(half, "little") * p2 & mask, 31) * p1 & mask

    def state(half: bytes) -> int:
        return (rotated((42 + p5 + 16) & mask ^ mixed(half), 27) * p1 + p4) & mask

    first, second = b"PRODUCT-", b"00000001"
    for number in range(1_000_000):
        other = b"X%07d" % number
        wanted = state(first) ^ mixed(second) ^ state(other)
        half = rotated(wanted * pow(p1, -1, 1 << 64) & mask, 33) * pow(p2, -1, 1 << 64) & mask
        typed = half.to_bytes(8, "little")
        if all(33 <= byte < 127 for byte in typed):
            return (first + second).decode(), (other + typed).decode()
    raise AssertionError


@pytest.mark.fault("S3", "recovered", "an item_id forged to share the 64-bit key of another")
def test_an_id_with_the_key_of_another_is_rejected_and_both_are_named(spark: SparkSession) -> None:
    ours, forged = colliding_ids()
    rows = spark.createDataFrame(
        [(ours, "a"), (forged, "b"), (ours, "c"), ("other", "d")], "item_id string, title string"
    )
    keys = rows.select(item_key("item_id").alias("key")).distinct().count()
    assert keys == 2, "the ids do not collide: the test tests nothing"
    usable, rejected = split_items(conform(rows, ITEMS))
    assert sorted(map(tuple, usable.select("item_id", "title").collect())) == [(ours, "a"), ("other", "d")]
    found = {(row["item_id"], row["reason"]): row["expected"] for row in rejected.collect()}
    assert set(found) == {(forged, "key_collision"), (ours, "conflicting_item")}
    assert f"it is also that of item {ours}" in found[forged, "key_collision"]


def test_an_id_whose_key_means_no_item_is_rejected(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        items, "item_key", lambda _: F.when(F.col("item_id") == "once", 0).otherwise(F.xxhash64("item_id"))
    )
    usable, rejected = split(spark)
    assert {row["item_id"] for row in usable.collect()} == {"twice", "thrice"}
    assert ("once", 1) in {tuple(row) for row in rejected.collect()}


def test_values_are_joined_and_nothing_is_null(spark: SparkSession) -> None:
    rows = spark.createDataFrame([("1", "Red mug", ["red", "blue"]), ("2", None, None)],
                                 "item_id string, title string, colors array<string>")  # fmt: skip
    texts = joined_texts(rows, ["colors", "title"])
    expected = spark.createDataFrame(
        [("1", ["red blue", "Red mug"]), ("2", ["", ""])], "item_id string, texts array<string>"
    )
    assert_df_equality(texts, expected, ignore_nullable=True)
