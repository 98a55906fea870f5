"""Changed rows alone are written: what a table holds afterwards is what a full rewrite would have made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from shutil import copy
from typing import Any

import polars
import pytest
from deltalake import DeltaTable
from pyarrow import RecordBatch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.runtime.changes import (
    Changes,
    deleted_share,
    find_changes,
    merge,
    with_changes,
)
from jobs.runtime.gates import IdCounts
from jobs.runtime.rescoring import Comparison, by_id, count_ids, count_ids_told, merge_published, told_by_id
from jobs.runtime.table_io import read
from schemas.columns import Column, Table
from schemas.commits import OvertakenError, Staged, open_or_create
from schemas.feed import begin_version, recorded_changes
from schemas.records import TableVersion
from schemas.spark import struct_type
from schemas.storage import read_columns
from schemas.tables import ITEM_EMBEDDINGS
from schemas.warehouse import Warehouse


def embeddings(spark: SparkSession, hashes: dict[str, str]) -> DataFrame:
    now = datetime(2026, 3, 1, tzinfo=timezone.utc)
    rows = [(name, [float(len(text))] * 256, "m", text, now) for name, text in hashes.items()]
    return spark.createDataFrame(rows, struct_type(ITEM_EMBEDDINGS))


def features(spark: SparkSession, hashes: dict[str, str]) -> DataFrame:
    rows = [(name, int(name[1:]), text) for name, text in hashes.items()]
    return spark.createDataFrame(rows, "item_id string, item_key long, features_hash string")


def ids(spark: SparkSession, *names: str) -> DataFrame:
    return spark.createDataFrame([(name,) for name in names], "item_id string")


def differing(spark: SparkSession, hashes: dict[str, str], published: DataFrame) -> Changes:
    return find_changes(by_id(features(spark, hashes), published, ids(spark)), "item_id")


def put(spark: SparkSession, uri: str, changes: Changes, new: dict[str, str] | DataFrame, run: str = "r") -> int:
    rows = embeddings(spark, new) if isinstance(new, dict) else new
    return merge_published(Warehouse(uri.rpartition("/")[0]), ITEM_EMBEDDINGS, changes, rows, {"run_id": run})


OLD = {f"i{number}": f"h{number}" for number in range(50)}
NEW = {name: text for name, text in OLD.items() if name not in ("i3", "i4")} | {"i7": "other", "i99": "new"}


@pytest.fixture
def uri(spark: SparkSession, tmp_path: Path) -> str:
    place = str(tmp_path / "ein Ort" / "item_embeddings")
    open_or_create(place, ITEM_EMBEDDINGS)
    embeddings(spark, OLD).write.format("delta").mode("append").save(place)
    return place


def test_what_is_not_as_published_is_found(spark: SparkSession, uri: str) -> None:
    changes = differing(spark, NEW, read(spark, uri, ITEM_EMBEDDINGS))
    assert changes.counts == {"added": 1, "changed": 1, "removed": 2}
    keys = Comparison(None, IdCounts(), changes, TableVersion("item_features", uri, 0, 4)).keys
    assert keys is not None
    assert list(keys) == [7, 99]
    assert str(changes) == "1 added, 1 changed, 2 removed"
    assert differing(spark, OLD, read(spark, uri, ITEM_EMBEDDINGS)).total == 0


def test_of_what_is_told_to_have_changed_only_that_counts_which_is_not_as_published(spark: SparkSession) -> None:
    published = embeddings(spark, {"i1": "a", "i2": "b", "i3": "c", "i4": "d"})
    # i2 has another text of the same features, i9 was taken away before it was ever published.
    told = spark.createDataFrame([(f"i{n}", n) for n in (1, 2, 3, 5, 9)], "item_id string, item_key long")
    made = features(spark, {"i1": "other", "i2": "b", "i5": "e"})
    changes = find_changes(told_by_id(told, made, published), "item_id")
    assert {row["item_id"]: row["change"] for row in changes.rows.collect()} == {
        "i1": "changed", "i3": "removed", "i5": "added",
    }  # fmt: skip


def test_keys_that_the_log_names_are_counted(spark: SparkSession) -> None:
    changes = Changes("item_id", spark.range(0), {"added": 1, "changed": 0, "removed": 3})
    logged = spark.createDataFrame([(1, "click"), (1, "save"), (7, "click")], "item_key long, task string")
    assert count_ids_told(changes, 10, features(spark, {"i1": "a", "i2": "b"}), logged) == IdCounts(10, 7, 2, 1)


def test_ids_of_all_sides_are_counted(spark: SparkSession) -> None:
    old = embeddings(spark, {"i1": "a", "i2": "b", "i3": "c", "i4": "d"})
    new = features(spark, {"i3": "c", "i4": "other", "i5": "e"})
    logged = ids(spark, "i3", "i3", "i5", "x", "y", "i1")
    compared = by_id(new, old, logged)
    assert count_ids(compared) == IdCounts(4, 2, 5, 2)
    assert find_changes(compared, "item_id").counts == {"added": 1, "changed": 1, "removed": 2}
    assert count_ids(by_id(new, None, logged)) == IdCounts(0, 0, 5, 2)


def hashes_of(uri: str, version: int | None = None) -> dict[str, Any]:
    rows = read_columns(uri, version, ["item_id", "features_hash"]).to_pylist()
    assert len({row["item_id"] for row in rows}) == len(rows)
    return {row["item_id"]: row["features_hash"] for row in rows}


def test_one_commit_makes_the_table_what_it_should_be_and_says_so(spark: SparkSession, uri: str) -> None:
    published = read(spark, uri, ITEM_EMBEDDINGS)
    changes = differing(spark, NEW, published)
    scored = {name: NEW[name] for name in ("i7", "i99")}
    foreseen = with_changes(published, changes, embeddings(spark, scored)).select("item_id", "features_hash").collect()
    assert {row[0]: row[1] for row in foreseen} == NEW
    files = set(DeltaTable(uri).file_uris())
    version = put(spark, uri, changes, scored)
    assert hashes_of(uri) == NEW
    assert version == DeltaTable(uri).version()
    assert json.loads(DeltaTable(uri).history(1)[0]["userMetadata"])["run_id"] == "r"
    assert files < set(DeltaTable(uri).file_uris()), "no file was written again"
    assert hashes_of(uri, 1) == OLD
    assert deleted_share(uri) == pytest.approx(3 / 52)
    again = differing(spark, OLD, read(spark, uri, ITEM_EMBEDDINGS))
    put(spark, uri, again, {name: OLD[name] for name in ("i3", "i4", "i7")})
    assert hashes_of(uri) == OLD


def test_the_feed_tells_of_each_version_and_of_one_without_a_change(spark: SparkSession, uri: str) -> None:
    warehouse = Warehouse(uri.rpartition("/")[0])
    begin_version(warehouse, 90, "all")  # of a run that died
    first = put(spark, uri, differing(spark, NEW, read(spark, uri, ITEM_EMBEDDINGS)), {"i7": "other"})
    second = put(spark, uri, differing(spark, OLD, embeddings(spark, OLD)), {})
    assert hashes_of(uri, first) == hashes_of(uri, second)
    found = recorded_changes(warehouse, 0, 99)
    assert sorted(found[first]) == [("", "some"), ("i3", "removed"), ("i4", "removed"), ("i7", "changed"),
                                    ("i99", "added")]  # fmt: skip
    assert found[second] == [("", "some")]
    assert set(found) == {first, second}


def test_other_engines_read_what_is_left(spark: SparkSession, tmp_path: Path) -> None:
    uri = str(tmp_path / "item_embeddings")
    open_or_create(uri, ITEM_EMBEDDINGS)
    embeddings(spark, OLD).write.format("delta").mode("append").save(uri)
    changes = differing(spark, NEW, read(spark, uri, ITEM_EMBEDDINGS))
    put(spark, uri, changes, {name: NEW[name] for name in ("i7", "i99")})
    assert DeltaTable(uri).protocol().reader_features == ["deletionVectors"], "no engine need know more"
    found = polars.scan_delta(uri).select("item_id", "features_hash").collect()
    assert dict(found.iter_rows()) == NEW


@pytest.mark.fault("B9", "loud", "an item that stands twice in the rows to be merged")
def test_an_item_that_stands_twice_in_the_new_rows_commits_nothing(spark: SparkSession, uri: str) -> None:
    changes = differing(spark, NEW, read(spark, uri, ITEM_EMBEDDINGS))
    twice = embeddings(spark, {"i7": "other"}).unionByName(embeddings(spark, {"i7": "another"}))
    with pytest.raises(Exception, match=r"(?i)multiple source rows"):
        merge_published(Warehouse(uri.rpartition("/")[0]), ITEM_EMBEDDINGS, changes, twice, {})
    assert hashes_of(uri) == OLD


@pytest.mark.fault("B3", "loud", "vectors staged before another run took rows away by deletion vectors alone")
def test_what_was_staged_before_rows_were_taken_away_is_refused(spark: SparkSession, uri: str) -> None:
    staged = Staged(ITEM_EMBEDDINGS, uri, [{"path": "part", "bytes": 1, "modified_ms": 0, "rows": 1}], 1)
    fewer = {name: text for name, text in OLD.items() if name != "i3"}
    files = set(DeltaTable(uri).file_uris())
    put(spark, uri, differing(spark, fewer, read(spark, uri, ITEM_EMBEDDINGS)), {})
    assert set(DeltaTable(uri).file_uris()) == files
    with pytest.raises(OvertakenError):
        staged.commit({})
    assert hashes_of(uri) == fewer


@pytest.mark.fault("B3", "loud", "somebody else's commit while a merge is under way")
def test_a_commit_in_the_midst_of_a_merge_is_another_runs(spark: SparkSession, uri: str) -> None:
    changes = differing(spark, NEW, read(spark, uri, ITEM_EMBEDDINGS))
    data = next(Path(uri).glob("*.parquet"))
    commit = Path(uri) / "_delta_log" / f"{DeltaTable(uri).version() + 2:020}.json"  # + 1 is the table property's

    def disturb(batches: Iterable[RecordBatch]) -> Iterator[RecordBatch]:
        if not commit.exists():
            other = data.with_name("other.parquet")
            copy(data, other)
            size = other.stat().st_size
            added = {"path": other.name, "partitionValues": {}, "size": size, "modificationTime": 0, "dataChange": True}
            commit.write_text(json.dumps({"add": added}))
        yield from batches

    new = embeddings(spark, {"i7": "other"})
    with pytest.raises(OvertakenError, match=r"item_embeddings: .*Nothing was committed"):
        put(spark, uri, changes, new.mapInArrow(disturb, new.schema))
    assert DeltaTable(uri).version() == int(commit.stem)


def test_a_key_that_is_stored_narrower_than_declared_is_found(spark: SparkSession, tmp_path: Path) -> None:
    table, uri = (
        Table("numbers", "Test.", (Column("id", "int64", "A."), Column("text", "string", "B."))),
        str(tmp_path / "numbers"),
    )
    old = spark.range(60).select(F.col("id").cast("int"), F.lit("old").alias("text"))
    old.write.format("delta").save(uri)
    changed = spark.range(40, 70).select("id", F.lit("new").alias("text"))
    side = changed.select("id", F.lit(1).alias("new")).join(
        old.select("id", F.lit(2).alias("old")), on="id", how="left"
    )
    merge(changed, uri, table, find_changes(side, "id"), {"run_id": "r"})
    found = spark.read.format("delta").load(uri)
    assert sorted(map(tuple, found.collect())) == [(n, "old" if n < 40 else "new") for n in range(70)]


def test_the_log_of_a_merge_stays_small(spark: SparkSession, uri: str) -> None:
    put(spark, uri, differing(spark, NEW, read(spark, uri, ITEM_EMBEDDINGS)), {"i7": "other", "i99": "new"})
    newest = sorted(Path(uri, "_delta_log").glob("*.json"))[-1]
    assert "getbit" in newest.read_text() or "bit_get" in newest.read_text()
    assert newest.stat().st_size < 10_000
