"""build_item_features from one day to the next: what did not change is copied, and the table is that of a clean run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from jobs import build_item_features
from jobs.runtime import kept_files
from jobs.runtime.kept_files import part_count
from schemas.metrics import ItemMetrics, ItemTextMetrics, VocabularyMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.spark import struct_type
from schemas.storage import version_files
from schemas.tables import (
    CHANGED_ITEM_FEATURES,
    ITEM_FEATURE_CHANGES,
    ITEM_FEATURES,
    ITEM_TEXT_EMBEDDINGS,
    VOCABULARY,
)

MakeSettings = Callable[..., Settings]
Shop = dict[str, tuple[str | None, list[float], float]]
"""item_id -> title, a number of each of its images, and one of its text's embedding (0 = it has none)."""

WORDS = [("red", "word_unigram", 0, 9), ("mug", "word_unigram", 1, 8), ("blue", "word_unigram", 2, 7)]
NAMES = [f"é{number:02}" for number in range(60)]
FIRST: Shop = {name: (f"red mug {name}", [number + 1.0] * (number % 3), 1.0) for number, name in enumerate(NAMES)}
NEXT: Shop = {
    **{name: item for name, item in FIRST.items() if name != NAMES[7]},
    NAMES[3]: ("blue mug", FIRST[NAMES[3]][1], 1.0),
    NAMES[4]: (*FIRST[NAMES[4]][:1], [9.0, 8.0, 7.0, 6.0], 1.0),
    NAMES[5]: (*FIRST[NAMES[5]][:2], 0.0),
    "new": ("red", [2.0], 0.0),
}
CHANGES = {NAMES[3]: "changed", NAMES[4]: "changed", NAMES[5]: "changed", NAMES[7]: "removed", "new": "added"}


def vector(number: float) -> list[float]:
    return [number] + [0.0] * 255


def write_day(spark: SparkSession, settings: Settings, shop: Shop, words: list[Any] = WORDS) -> None:
    """The shop's tables, and those of the stages before, in as many files as Spark likes."""
    items = [(name, title, "x" if title else None) for name, (title, _, _) in shop.items()]
    images = [(name, n, vector(number)) for name, (_, numbers, _) in shop.items() for n, number in enumerate(numbers)]
    texts = [
        (name, np.float16(vector(of_text)).tobytes(), "lsa-1", None)
        for name, (_, _, of_text) in shop.items()
        if of_text
    ]
    tables: list[tuple[str, list[Any], Any]] = [
        ("items", items, "item_id string, title string, shelf string"),
        ("item_images", images, "item_id string, position int, image_embedding array<float>"),
        (ITEM_TEXT_EMBEDDINGS.name, texts, struct_type(ITEM_TEXT_EMBEDDINGS)),
        (VOCABULARY.name, words, struct_type(VOCABULARY)),
    ]
    written = {}
    for name, rows, schema in tables:
        uri = settings.table_uri(name)
        spark.createDataFrame(rows, schema).write.format("delta").mode("overwrite").save(uri)
        written[name] = TableVersion(name, uri, int(DeltaTable(uri).version()), len(rows))
    for record in (
        RunRecord("embed_items", ItemTextMetrics("lsa-1"), outputs=(written[ITEM_TEXT_EMBEDDINGS.name],)),
        RunRecord("build_vocabulary", VocabularyMetrics(), outputs=(written[VOCABULARY.name],)),
    ):
        write_record(settings.layout, record)


def run(spark: SparkSession, settings: Settings, shop: Shop, words: list[Any] = WORDS) -> RunRecord[ItemMetrics]:
    write_day(spark, settings, shop, words)
    build_item_features.run(spark, settings)
    return read_record(settings.layout, build_item_features.STAGE)


def rows_by_file(settings: Settings) -> list[list[dict[str, Any]]]:
    """The rows as they lie, file by file."""
    found = version_files(settings.table_uri(ITEM_FEATURES.name)).files
    return [pq.read_table(file.uri.removeprefix("file://")).to_pylist() for file in found]


def changed_ids(settings: Settings) -> set[str]:
    ids: list[str] = (
        DeltaTable(settings.table_uri(CHANGED_ITEM_FEATURES.name)).to_pyarrow_table()["item_id"].to_pylist()
    )
    return set(ids)


@pytest.fixture
def shop_settings(make_settings: MakeSettings, tmp_path: Path) -> Callable[[str], Settings]:
    def made(name: str) -> Settings:
        return make_settings(
            warehouse={"uri": str(tmp_path / name)},
            features={"text_features": ["title"]},
            model={"max_images": 3},
            score={"filters": {"shelf": "string"}},
        )

    return made


def test_only_what_has_changed_is_made_and_the_files_are_those_of_a_clean_run(
    spark: SparkSession, shop_settings: Callable[[str], Settings]
) -> None:
    daily, clean = shop_settings("daily"), shop_settings("clean")
    first = run(spark, daily, FIRST)
    second = run(spark, daily, NEXT)
    whole = run(spark, clean, NEXT)
    assert rows_by_file(daily) == rows_by_file(clean)
    assert sum(map(len, rows_by_file(daily))) == 60
    assert changed_ids(daily) == {name for name, change in CHANGES.items() if change != "removed"}
    told = DeltaTable(daily.table_uri(ITEM_FEATURE_CHANGES.name)).to_pyarrow_table().to_pylist()
    assert {row["item_id"]: row["change"] for row in told} == CHANGES
    assert second.metrics.kept_rows == 56
    assert second.metrics.kept_from == first.output(ITEM_FEATURES.name).checksum != ""
    assert replace(second.metrics, kept_rows=0, kept_from="") == whole.metrics
    assert whole.metrics.images_beyond_limit == 1
    assert second.rejected == whole.rejected


def test_where_nothing_has_changed_nothing_is_written(
    spark: SparkSession, shop_settings: Callable[[str], Settings]
) -> None:
    settings = shop_settings("daily")
    first = run(spark, settings, FIRST)
    second = run(spark, settings, dict(reversed(FIRST.items())))
    assert second.output(ITEM_FEATURES.name) == first.output(ITEM_FEATURES.name)
    assert replace(second.metrics, kept_rows=0, kept_from="") == first.metrics
    assert (second.metrics.kept_rows, second.metrics.kept_from) == (60, first.output(ITEM_FEATURES.name).checksum)


@pytest.mark.parametrize("what", ["vocabulary", "column", "most", "compacted", "rerun"])
def test_all_rows_are_made_where_they_may_differ(
    spark: SparkSession, shop_settings: Callable[[str], Settings], what: str
) -> None:
    settings = shop_settings("daily")
    run(spark, settings, FIRST)
    shop, words = FIRST, WORDS
    if what == "vocabulary":
        words = [("mug", "word_unigram", 0, 9), ("red", "word_unigram", 1, 8), ("blue", "word_unigram", 2, 7)]
    elif what == "column":
        settings = settings.model_copy(update={"score": settings.score.model_copy(update={"filters": {}})})
    elif what == "most":
        shop = {name: (f"blue {title}", images, text) for name, (title, images, text) in FIRST.items()}
    elif what == "compacted":
        DeltaTable(settings.table_uri(ITEM_FEATURES.name)).optimize.compact()
    else:
        settings = settings.model_copy(update={"rerun": True})
    record = run(spark, settings, shop, words)
    assert (record.metrics.kept_rows, record.metrics.kept_from) == (0, "")
    assert changed_ids(settings) == set()


def test_a_stored_row_that_is_damaged_is_not_copied_but_made_anew(
    spark: SparkSession, shop_settings: Callable[[str], Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, clean = shop_settings("daily"), shop_settings("clean")
    run(spark, settings, FIRST)
    for file in version_files(settings.table_uri(ITEM_FEATURES.name)).files:
        path = file.uri.removeprefix("file://")
        rows = pq.read_table(path)
        cells = pa.array([b"" for _ in range(len(rows))], pa.binary())
        pq.write_table(
            rows.set_column(rows.schema.get_field_index("image_embeddings"), "image_embeddings", cells), path
        )
    record = run(spark, settings, NEXT)
    assert re.search(
        r"warning: .*all are made anew: table item_features, column features_hash", capsys.readouterr().out
    )
    assert record.metrics == run(spark, clean, NEXT).metrics
    assert rows_by_file(settings) == rows_by_file(clean)
    assert changed_ids(settings) == set()


def test_a_table_lies_in_a_power_of_two_of_files() -> None:
    assert [part_count(rows) for rows in (0, 1, 262_144, 262_145, 524_289, 10**9)] == [4, 4, 4, 8, 16, 16_384]
    assert kept_files._NUMBER.search("s3://b/t/part-00003-aa-bb.parquet")


@pytest.mark.parametrize(("partitions", "broadcast"), [("1", "-1"), ("7", "-1"), ("1", "128m")])
def test_which_row_lies_in_which_file_follows_from_its_id_however_spark_joins(
    spark: SparkSession, shop_settings: Callable[[str], Settings], partitions: str, broadcast: str
) -> None:
    settings = shop_settings("daily")
    session = spark.newSession()
    session.conf.set("spark.sql.shuffle.partitions", partitions)
    session.conf.set("spark.sql.autoBroadcastJoinThreshold", broadcast)
    run(session, settings, FIRST)
    found = {
        name: file for file, rows in enumerate(rows_by_file(settings)) for name in (row["item_id"] for row in rows)
    }
    ids = session.createDataFrame([(name,) for name in NAMES], "item_id string")
    wanted = {row[0]: row[1] for row in ids.selectExpr("item_id", "pmod(hash(item_id), 4)").collect()}
    assert found == wanted
