"""The door to storage: pinned reads, one commit per write, NOT NULL kept, no deletion vectors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from jobs.runtime import publish, table_io
from schemas import lease
from schemas.columns import Column
from schemas.errors import TableError
from schemas.warehouse import Warehouse
from tests.jobs.runtime.prices import PRICES, prices, rows_at


def test_a_version_stays_readable_after_it_is_replaced(spark: SparkSession, uri: str) -> None:
    first = table_io.write(prices(spark, ("a", 1), ("b", None)), uri, PRICES, note={"run_id": "one"})
    pinned = table_io.read(spark, uri, PRICES)
    second = table_io.write(prices(spark, ("c", 3)), uri, PRICES, note={"run_id": "two"})
    assert (first.rows, second.rows) == (2, 1)
    assert table_io.latest_version(spark, uri) == second.version == first.version + 1
    assert sorted(tuple(row) for row in pinned.collect()) == [("a", 1), ("b", None)]
    assert rows_at(spark, uri, first.version) == [("a", 1), ("b", None)]
    assert rows_at(spark, uri) == [("c", 3)]


def test_the_log_says_which_run_wrote_and_that_deletion_vectors_are_off(spark: SparkSession, uri: str) -> None:
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, note={"run_id": "build-1"})
    written = DeltaTable(uri)
    assert json.loads(written.history(1)[0]["userMetadata"])["run_id"] == "build-1"
    assert written.metadata().configuration["delta.enableDeletionVectors"] == "false"
    assert written.protocol().min_reader_version == 1
    assert [field.nullable for field in written.schema().fields] == [False, True]


@pytest.mark.fault("B10", "loud", "a null in one row of Spark's")
def test_a_null_where_none_may_be_is_refused_and_the_old_rows_stay(spark: SparkSession, uri: str) -> None:
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, note={"run_id": "one"})
    with pytest.raises(TableError, match=r"table prices, column item_id: expected a value in every row"):
        table_io.write(prices(spark, ("b", 2), (None, 3)), uri, PRICES, note={"run_id": "two"})
    assert rows_at(spark, uri) == [("a", 1)]


def test_a_changed_table_replaces_the_old_one(spark: SparkSession, uri: str) -> None:
    first = table_io.write(prices(spark, ("a", 1)), uri, PRICES, note={"run_id": "one"})
    changed = replace(PRICES, columns=(PRICES.columns[0], Column("weight", "float32", "grams")))
    weights = spark.createDataFrame([("a", 2.5)], "item_id string, weight float")
    second = table_io.write(weights, uri, changed, note={"run_id": "two"})
    assert [tuple(row) for row in table_io.read(spark, uri, changed).collect()] == [("a", 2.5)]
    assert second.version > first.version
    assert rows_at(spark, uri, first.version) == [("a", 1)]
    with pytest.raises(TableError, match=r"table prices, column weight"):
        table_io.write(spark.createDataFrame([("a", None)], weights.schema), uri, changed, note={"run_id": "three"})


def test_parquet_files_are_an_input_too(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["a"], "price": pa.array([1], pa.int32())}), tmp_path / "part.parquet")
    assert table_io.latest_version(spark, str(tmp_path)) is None
    assert rows_at(spark, str(tmp_path)) == [("a", 1)]


@pytest.mark.parametrize("exists", [False, True])
def test_a_missing_or_empty_place_is_named(spark: SparkSession, tmp_path: Path, exists: bool) -> None:
    place = tmp_path / "nowhere"
    if exists:
        place.mkdir()
    with pytest.raises(TableError) as caught:
        table_io.read(spark, str(place), PRICES)
    assert "table prices, column (all)" in str(caught.value)
    assert f"a Delta or Parquet table at {place}" in str(caught.value)
    assert "correct the URI in the settings" in str(caught.value)


def test_a_version_that_is_not_there_is_named(spark: SparkSession, uri: str) -> None:
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, note={"run_id": "one"})
    with pytest.raises(TableError, match="version 9"):
        rows_at(spark, uri, 9)


@pytest.mark.fault("B3b", "recovered", "another run commits between a write's commit and its look at the history")
def test_a_write_names_its_own_version_though_another_came_after(
    spark: SparkSession, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = table_io.commits_of

    def overtaken(at: str, limit: int) -> Any:
        prices(spark).write.format("delta").mode("overwrite").save(at)
        return listed(at, limit)

    monkeypatch.setattr(table_io, "commits_of", overtaken)
    written = table_io.write(prices(spark, ("a", 1), ("b", 2)), uri, PRICES, note={"run_id": "one"})
    assert (written.version, written.rows) == (1, 2)
    assert rows_at(spark, uri, written.version) == [("a", 1), ("b", 2)]
    assert rows_at(spark, uri) == []


def test_no_rows_in_place_of_none_are_no_commit(spark: SparkSession, uri: str) -> None:
    assert table_io.write(prices(spark), uri, PRICES, note={"run_id": "one"}) == table_io.Written("prices", uri, 0, 0)
    assert table_io.write(prices(spark), uri, PRICES, note={"run_id": "two"}).version == DeltaTable(uri).version() == 0


@pytest.mark.fault("B3", "loud", "a job whose lease was given to another run, by Spark and by workers")
def test_a_run_that_lost_the_warehouse_commits_nothing(spark: SparkSession, uri: str, tmp_path: Path) -> None:
    warehouse, rows = Warehouse(str(tmp_path)), pa.table({"item_id": ["b"], "price": [2]})
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, note={"run_id": "one"})
    with lease.hold(warehouse, "train", "2026-03-01"):
        table_io.write(prices(spark, ("a", 2)), uri, PRICES, note={"run_id": "two"})
        lease._write(warehouse, 2, [])
        with pytest.raises(lease.LeaseError, match="Nothing was committed"):
            table_io.write(prices(spark, ("b", 2)), uri, PRICES, note={"run_id": "three"})
        with pytest.raises(lease.LeaseError, match="Nothing was committed"):
            publish.write_arrow(rows, uri, PRICES, note={"run_id": "three"})
    assert rows_at(spark, uri) == [("a", 2)]
