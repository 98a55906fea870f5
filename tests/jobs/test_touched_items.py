"""build_item_features looks only at items that a day's changes can have touched, and misses none of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from jobs import build_item_features
from schemas.metrics import ItemMetrics, ItemTextMetrics, VocabularyMetrics
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.storage import rows_of, version_files
from schemas.tables import ITEM_TEXT_EMBEDDINGS, REJECTED_ITEMS, VOCABULARY
from tests.jobs.test_kept_item_features import FIRST, NAMES, rows_by_file, vector, write_day

MakeSettings = Callable[..., Settings]
TEXTS = ITEM_TEXT_EMBEDDINGS.name
DIRT: dict[str, list[Any]] = {
    "items": [
        (NAMES[20], "another mug", None), (NAMES[21], "mug", "x"), (NAMES[21], "mug", "x"),
        (None, "a", "x"), (" ", "b", "x"), ("long" * 200, "c", "x"),
    ],
    "item_images": [
        (NAMES[20], 0, vector(3.0)), (NAMES[20], 0, vector(5.0)), ("nobody", 0, vector(1.0)), (None, 0, vector(1.0)),
        (NAMES[22], 7, vector(0.0)), (NAMES[23], 1, vector(2.0)), ("later", 0, vector(4.0)), ("later", 0, vector(4.0)),
    ],
}  # fmt: skip
"""Rows that cannot be used; the images of "later" wait for their item."""

DAYS: dict[str, dict[str, list[str]]] = {
    "nothing": {
        "items": [
            "insert into {table} values ('gone again', 'red', 'x')",
            "delete from {table} where item_id = 'gone again'",
        ]
    },
    "texts, images, what was missing, and a vector of a text": {
        # The images of one item become rejects, those of another, which were, do not stay so.
        "items": [
            f"update {{table}} set title = 'blue' where item_id = '{NAMES[3]}'",
            f"delete from {{table}} where item_id = '{NAMES[23]}'",
            "insert into {table} values ('later', 'red', 'x')",
        ],
        "item_images": [f"delete from {{table}} where item_id = '{NAMES[4]}'"],
        TEXTS: [f"delete from {{table}} where item_id = '{NAMES[9]}'"],
    },
    "dirt that goes, and a vector that comes back": {
        "items": [
            "delete from {table} where title = 'another mug' or item_id is null or hex(item_id) = '8081'",
            "update {table} set title = 'd' where item_id like 'long%'",
        ],
        "item_images": [
            f"delete from {{table}} where item_id is null or item_id = '{NAMES[20]}' and image_embedding[0] = 3"
        ],
        TEXTS: ["restore {table} to version as of 2"],
    },
}


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings(
        features={"text_features": ["title"]},
        model={"max_images": 3},
        score={"filters": {"shelf": "string"}},
        max_reject_share={"items": 0.5, "item_images": 0.5},
    )


def append(spark: SparkSession, uri: str, rows: list[Any]) -> None:
    schema = spark.read.format("delta").load(uri).schema
    spark.createDataFrame(rows, schema).write.format("delta").mode("append").save(uri)


def append_ids_that_are_no_text(spark: SparkSession, uri: str) -> None:
    """Two ids that are no UTF-8, and alike once they are made readable."""
    ids = spark.sql("select unhex(id) as item_id from values ('8081'), ('8082') as t(id)")
    rows = ids.selectExpr("cast(item_id as string) as item_id", "'bad' as title", "'x' as shelf")
    rows.write.format("delta").mode("append").save(uri)


def write_first_day(spark: SparkSession, settings: Settings, deletion_vectors: bool) -> None:
    """A shop with dirt, in tables of many files, of which a change touches few."""
    write_day(spark, settings, FIRST)
    for name, rows in DIRT.items():
        append(spark, settings.table_uri(name), rows)
    append_ids_that_are_no_text(spark, settings.table_uri("items"))
    for name in ("items", "item_images", TEXTS):
        uri = settings.table_uri(name)
        rows = spark.read.format("delta").load(uri).repartition(16, "item_id")
        rows.write.format("delta").mode("overwrite").save(uri)
        kept = f"'delta.enableDeletionVectors' = '{str(deletion_vectors).lower()}'"
        spark.sql(f"alter table delta.`{uri}` set tblproperties ({kept})")
    record_stages_before(settings)


def record_stages_before(settings: Settings) -> None:
    """Say of what is there now that the stages before have written it."""
    for stage, table, metrics in (
        ("embed_items", TEXTS, ItemTextMetrics("lsa-1")),
        ("build_vocabulary", VOCABULARY.name, VocabularyMetrics()),
    ):
        found = version_files(settings.table_uri(table))
        written = TableVersion(table, settings.table_uri(table), found.version, rows_of(found.files))
        write_record(settings.layout, RunRecord(stage, metrics, outputs=(written,)))


def change(spark: SparkSession, settings: Settings, statements: dict[str, list[str]]) -> None:
    for name, texts in statements.items():
        for text in texts:
            spark.sql(text.format(table=f"delta.`{settings.table_uri(name)}`"))
    record_stages_before(settings)


def run(spark: SparkSession, settings: Settings) -> RunRecord[ItemMetrics]:
    build_item_features.run(spark, settings)
    return read_record(settings.layout, build_item_features.STAGE)


def clean_copy(settings: Settings, name: str) -> Settings:
    """The same warehouse elsewhere, where all rows are made anew."""
    there = Path(settings.warehouse.uri).with_name(name)
    shutil.copytree(settings.warehouse.uri, there)
    return settings.model_copy(
        update={"warehouse": settings.warehouse.model_copy(update={"uri": str(there)}), "rerun": True}
    )


def rejects(settings: Settings) -> list[tuple[str, ...]]:
    rows = DeltaTable(settings.table_uri(REJECTED_ITEMS.name)).to_pyarrow_table().to_pylist()
    return sorted(tuple(map(str, row.values())) for row in rows)


def looked_at(capsys: pytest.CaptureFixture[str]) -> int | None:
    """How many items the job has looked at, as it says; None = all."""
    said = re.search(r"  (\d+) of \d+ items lie in files", capsys.readouterr().out)
    return int(said.group(1)) if said else None


def remove_old_files(spark: SparkSession, uri: str) -> None:
    """Change a row, as VACUUM leaves it: without the file that held it before."""
    before = {file.path for file in version_files(uri).files}
    spark.sql(f"update delta.`{uri}` set title = 'blue mug' where item_id = '{NAMES[5]}'")
    for path in before - {file.path for file in version_files(uri).files}:
        Path(path).unlink()


@pytest.mark.parametrize("deletion_vectors", [True, False])
def test_what_a_day_can_have_touched_is_looked_at_and_the_tables_are_those_of_a_clean_run(
    spark: SparkSession, settings: Settings, capsys: pytest.CaptureFixture[str], deletion_vectors: bool
) -> None:
    write_first_day(spark, settings, deletion_vectors)
    run(spark, settings)
    for number, (day, statements) in enumerate(DAYS.items()):
        change(spark, settings, statements)
        capsys.readouterr()
        daily = run(spark, settings)
        touched = looked_at(capsys)
        # Without deletion vectors Delta writes whole files anew, and of their other rows nobody knows that they stay.
        most = 0 if day == "nothing" else 8 if deletion_vectors else 30
        assert touched is not None, day
        assert touched <= most, day
        copy = clean_copy(settings, f"clean-{number}")
        clean = run(spark, copy)
        assert rows_by_file(settings) == rows_by_file(copy), day
        assert rejects(settings) == rejects(copy), day
        assert daily.rejected == clean.rejected, day
        assert replace(daily.metrics, kept_rows=0, kept_from="") == clean.metrics, day


def test_all_items_are_looked_at_where_logs_cannot_tell(
    spark: SparkSession, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    write_first_day(spark, settings, deletion_vectors=False)
    run(spark, settings)
    items, read = settings.table_uri("items"), spark.read.format("delta").load
    ways: dict[str, Callable[[], Any]] = {
        "written anew": lambda: read(items).write.format("delta").mode("overwrite").save(items),
        "a column with another meaning": lambda: spark.sql(f"alter table delta.`{items}` add columns (brand string)"),
        "old files gone": lambda: remove_old_files(spark, items),
        "rejects that others have written": lambda: DeltaTable(settings.table_uri(REJECTED_ITEMS.name)).delete(),
    }  # fmt: skip
    for number, (way, act) in enumerate(ways.items()):
        act()
        capsys.readouterr()
        daily = run(spark, settings)
        assert looked_at(capsys) is None, way
        copy = clean_copy(settings, f"clean-{number}")
        clean = run(spark, copy)
        assert rows_by_file(settings) == rows_by_file(copy), way
        assert (rejects(settings), daily.rejected) == (rejects(copy), clean.rejected), way


def test_a_table_that_was_made_anew_with_the_old_numbers_is_looked_at_whole(
    spark: SparkSession, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    write_first_day(spark, settings, deletion_vectors=False)
    run(spark, settings)
    uri = settings.table_uri(TEXTS)
    version, rows = DeltaTable(uri).version(), spark.read.format("delta").load(uri).where(f"item_id <> '{NAMES[9]}'")
    moved = f"{uri}-moved"
    rows.write.format("delta").save(moved)
    shutil.rmtree(uri)
    for _ in range(version + 1):
        spark.read.format("delta").load(moved).write.format("delta").mode("overwrite").save(uri)
    record_stages_before(settings)
    capsys.readouterr()
    run(spark, settings)
    assert looked_at(capsys) is None
    copy = clean_copy(settings, "clean")
    run(spark, copy)
    assert rows_by_file(settings) == rows_by_file(copy)
