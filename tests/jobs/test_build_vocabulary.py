"""build_vocabulary: the most frequent tokens of the usable items, numbered the same way every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from jobs import build_vocabulary
from schemas.errors import TableError
from schemas.metrics import VocabularyMetrics
from schemas.records import read_record
from schemas.settings import Settings
from schemas.spark import conform
from schemas.tables import ITEMS

ITEM = "item_id string, title string, colors array<string>"
SHOP = [
    ("1", "Red mug", ["red", "blue"]),
    ("2", "red MUG", None),
    ("3", None, ["tea red", None]),
    ("3", None, ["zebra does not count"]),
    (None, "red without an id does not count", None),
    (" ", "nor does a blank one", None),
]


def items_of(spark: SparkSession, rows: list[Any] = SHOP) -> DataFrame:
    return conform(spark.createDataFrame(rows, ITEM), ITEMS)


def tokens(vocabulary: DataFrame) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in vocabulary.orderBy("token_id").collect()]


def test_tokens_are_numbered_by_kind_count_and_token(
    spark: SparkSession, make_settings: Callable[..., Settings]
) -> None:
    features = {"char_trigrams": 3, "word_unigrams": 2, "word_bigrams": 9, "text_features": ["title", "colors"]}
    assert tokens(build_vocabulary.build(items_of(spark), make_settings(features=features))) == [
        ("#re", "char_trigram", 0, 4),
        ("ed#", "char_trigram", 1, 4),
        ("red", "char_trigram", 2, 4),
        ("red", "word_unigram", 3, 4),
        ("mug", "word_unigram", 4, 2),
        ("red#mug", "word_bigram", 5, 2),
        ("red#blue", "word_bigram", 6, 1),
        ("tea#red", "word_bigram", 7, 1),
    ]


def test_rare_tokens_unused_kinds_and_other_features_are_left_out(
    spark: SparkSession, make_settings: Callable[..., Settings]
) -> None:
    features = {"char_trigrams": 0, "word_bigrams": 0, "min_token_count": 2, "text_features": ["colors"]}
    assert tokens(build_vocabulary.build(items_of(spark), make_settings(features=features))) == [
        ("red", "word_unigram", 0, 2)
    ]


def test_partitions_row_order_and_early_counts_do_not_matter(
    spark: SparkSession, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(features={"char_trigrams": 7, "word_unigrams": 5, "word_bigrams": 2})
    expected = tokens(build_vocabulary.build(items_of(spark).repartition(1), settings))
    monkeypatch.setattr(build_vocabulary, "_MAX_TOKENS", 1)
    backwards = items_of(spark, SHOP[::-1])
    for partitions in (3, 8):
        assert tokens(build_vocabulary.build(backwards.repartition(partitions), settings)) == expected


@pytest.mark.fault("t36", "recovered", "the last batch of a partition is the one that fills the counters")
def test_counts_that_are_handed_on_with_the_last_batch_leave_empty_counters_of_the_declared_types(
    spark: SparkSession, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_vocabulary, "_MAX_TOKENS", 1)
    batches = list(build_vocabulary._count([pa.RecordBatch.from_pydict({"texts": [["red mug"], []]})]))
    assert [len(batch) for batch in batches] == [7, 2, 1, 0, 0, 0]
    assert {str(batch.schema) for batch in batches} == {"token_kind: string\ntoken: string\ntoken_count: int64"}


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        pytest.param("item_id string, Titel string", "found none of these columns; columns that nothing reads: Titel",
                     marks=pytest.mark.fault("t07", "loud", "texts under a name that no feature has")),
        pytest.param("item_id string, title string", "found no word in title.",
                     marks=pytest.mark.fault("t07", "loud", "a catalog whose texts are all null or blank")),
    ],
)  # fmt: skip
def test_a_catalog_without_a_word_is_refused_where_the_model_reads_text(
    spark: SparkSession, make_settings: Callable[..., Settings], columns: str, found: str
) -> None:
    settings = make_settings()
    text = "lamp" if "Titel" in columns else None
    spark.createDataFrame([("1", text), ("2", " ")], columns).write.parquet(settings.table_uri("items"))
    with pytest.raises(TableError) as caught:
        build_vocabulary.run(spark, settings)
    assert found in str(caught.value)
    assert 'take "text" out of model.sequence' in str(caught.value)
    assert not Path(settings.table_uri("vocabulary")).exists()
    build_vocabulary.run(spark, make_settings(model={"sequence": ["images"]}))
    assert read_record(settings.layout, build_vocabulary.STAGE).outputs[0].rows == 0


@pytest.mark.fault("t06", "loud", "a catalog whose titles are all Latin-1, for the vocabulary")
def test_a_catalog_in_latin_1_is_refused_by_its_encoding(
    spark: SparkSession, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings()
    titles = spark.range(3).selectExpr("CAST(id AS STRING) AS item_id", "CAST(X'43616666E9' AS STRING) AS title")
    titles.write.parquet(settings.table_uri("items"))
    with pytest.raises(TableError, match=r"no UTF-8: 3 in title\. Write the texts as UTF-8"):
        build_vocabulary.run(spark, settings)


def test_a_run_writes_the_table_and_its_record(spark: SparkSession, make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    items_of(spark).write.parquet(settings.table_uri("items"))
    build_vocabulary.run(spark, settings)
    record = read_record(settings.layout, build_vocabulary.STAGE)
    assert record.metrics == VocabularyMetrics(
        distinct_char_trigrams=16, distinct_word_bigrams=3, distinct_word_unigrams=4
    )
    assert record.outputs[0].rows == 23


@pytest.mark.fault("F3", "loud", "a catalog of no row")
def test_an_empty_catalog_is_refused_by_name(spark: SparkSession, make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    items_of(spark, []).write.parquet(settings.table_uri("items"))
    with pytest.raises(TableError, match=r"table items, .*at least one row"):
        build_vocabulary.run(spark, settings)
