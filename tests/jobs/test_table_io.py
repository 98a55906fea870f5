"""The door to storage: pinned reads, one commit per write, NOT NULL kept, no deletion vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from delta.tables import DeltaTable as SparkDeltaTable
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession

from jobs import table_io, worker_rows
from jobs.worker_rows import WorkerRows
from schemas.columns import Column, Table, TableError
from schemas.records import data_files

PRICES = Table(
    "prices",
    "one price",
    (Column("item_id", "string", "the item"), Column("price", "int64", "cents", nullable=True)),
    key=("item_id",),
)


def prices(spark: SparkSession, *rows: tuple[Any, ...]) -> DataFrame:
    return spark.createDataFrame(list(rows), "item_id string, price long")


def rows_at(spark: SparkSession, uri: str, version: int | None = None) -> list[tuple[Any, ...]]:
    return sorted(tuple(row) for row in table_io.read(spark, uri, PRICES, version=version).collect())


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"{tmp_path}/ein Laden 🪑/prices"


def test_a_version_stays_readable_after_it_is_replaced(spark: SparkSession, uri: str) -> None:
    first = table_io.write(prices(spark, ("a", 1), ("b", None)), uri, PRICES, run_id="one")
    pinned = table_io.read(spark, uri, PRICES)
    second = table_io.write(prices(spark, ("c", 3)), uri, PRICES, run_id="two")
    assert (first.rows, second.rows) == (2, 1)
    assert table_io.latest_version(spark, uri) == second.version == first.version + 1
    assert sorted(tuple(row) for row in pinned.collect()) == [("a", 1), ("b", None)]
    assert rows_at(spark, uri, first.version) == [("a", 1), ("b", None)]
    assert rows_at(spark, uri) == [("c", 3)]


def test_the_log_says_which_run_wrote_and_that_deletion_vectors_are_off(spark: SparkSession, uri: str) -> None:
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, run_id="build-1")
    written = DeltaTable(uri)
    assert written.history(1)[0]["userMetadata"] == "build-1"
    assert written.metadata().configuration["delta.enableDeletionVectors"] == "false"
    assert written.protocol().min_reader_version == 1
    assert [field.nullable for field in written.schema().fields] == [False, True]


def test_a_null_where_none_may_be_is_refused_and_the_old_rows_stay(spark: SparkSession, uri: str) -> None:
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, run_id="one")
    with pytest.raises(TableError, match=r"table prices, column item_id: expected a value in every row"):
        table_io.write(prices(spark, ("b", 2), (None, 3)), uri, PRICES, run_id="two")
    assert rows_at(spark, uri) == [("a", 1)]


def test_a_row_that_fails_a_check_is_refused_and_the_old_rows_stay(spark: SparkSession, uri: str) -> None:
    checks = {"price_is_positive": "price > 0"}
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, run_id="one", checks=checks)
    with pytest.raises(TableError, match=r"table prices, column price_is_positive: expected \(?price > 0"):
        table_io.write(prices(spark, ("b", -2)), uri, PRICES, run_id="two", checks=checks)
    assert rows_at(spark, uri) == [("a", 1)]


def test_a_changed_table_replaces_the_old_one(spark: SparkSession, uri: str) -> None:
    first = table_io.write(prices(spark, ("a", 1)), uri, PRICES, run_id="one")
    changed = replace(PRICES, columns=(PRICES.columns[0], Column("weight", "float32", "grams")))
    weights = spark.createDataFrame([("a", 2.5)], "item_id string, weight float")
    second = table_io.write(weights, uri, changed, run_id="two")
    assert [tuple(row) for row in table_io.read(spark, uri, changed).collect()] == [("a", 2.5)]
    assert second.version > first.version
    assert rows_at(spark, uri, first.version) == [("a", 1)]
    with pytest.raises(TableError, match=r"table prices, column weight"):
        table_io.write(spark.createDataFrame([("a", None)], weights.schema), uri, changed, run_id="three")


def test_rows_per_file_is_exact(spark: SparkSession, uri: str) -> None:
    rows = prices(spark, *[(f"i{n}", n) for n in range(10)]).coalesce(1)
    table_io.write(rows, uri, PRICES, run_id="one", rows_per_file=4)
    assert sorted(pq.ParquetFile(file).metadata.num_rows for file in data_files(uri)) == [2, 4, 4]


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
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, run_id="one")
    with pytest.raises(TableError, match="version 9"):
        rows_at(spark, uri, 9)


def worker_prices(spark: SparkSession, *rows: tuple[Any, ...], partitions: int = 1) -> WorkerRows:
    """The rows of `prices`, each with `price` doubled by a worker, and `cents`, the sum of what it read."""

    def double(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            read = batch.column("price")
            columns = {"cents": read, "price": pc.multiply(read, 2), "item_id": batch.column("item_id")}
            yield pa.RecordBatch.from_pydict(columns)

    return WorkerRows(prices(spark, *rows).repartition(partitions), double, ("cents",))


def test_workers_rows_replace_a_table_in_one_commit(spark: SparkSession, uri: str) -> None:
    first = table_io.write_worker_rows(worker_prices(spark, ("a", 1)), uri, PRICES, run_id="one")
    pinned = table_io.read(spark, uri, PRICES)
    rows = [(f"i{n}", n) for n in range(10)] + [("null", None)]
    second = table_io.write_worker_rows(worker_prices(spark, *rows, partitions=3), uri, PRICES, run_id="two")
    assert (first.rows, first.sums, second.rows, second.sums) == (1, {"cents": 1}, 11, {"cents": 45})
    assert second.version == first.version + 1 == table_io.latest_version(spark, uri)
    assert [tuple(row) for row in pinned.collect()] == [("a", 2)]
    assert rows_at(spark, uri) == sorted((name, price if price is None else 2 * price) for name, price in rows)
    third = table_io.write(prices(spark, ("c", 3)), uri, PRICES, run_id="three")
    assert (third.version, rows_at(spark, uri)) == (second.version + 1, [("c", 3)])


def test_the_log_says_who_wrote_workers_rows_and_how_many(spark: SparkSession, uri: str) -> None:
    written = table_io.write_worker_rows(worker_prices(spark, ("a", 1), ("b", 2)), uri, PRICES, run_id="build-1")
    stored = DeltaTable(uri)
    commit = stored.history(1)[0]
    assert (commit["userMetadata"], commit["operationMetrics"]["numOutputRows"]) == ("build-1", "2")
    assert stored.metadata().configuration["delta.enableDeletionVectors"] == "false"
    assert stored.protocol().min_reader_version == 1
    assert [field.nullable for field in stored.schema().fields] == [False, True]
    actions = stored.get_add_actions(flatten=True)
    assert actions.column("num_records").to_pylist() == [2]
    [file] = data_files(uri)
    assert actions.column("size_bytes").to_pylist() == [Path(file).stat().st_size]
    history = SparkDeltaTable.forPath(spark, uri).history(1).first()
    assert history is not None
    assert (history["version"], history["userMetadata"]) == (written.version, "build-1")


def test_a_worker_that_breaks_the_declaration_publishes_nothing(spark: SparkSession, uri: str) -> None:
    table_io.write_worker_rows(worker_prices(spark, ("a", 1)), uri, PRICES, run_id="one")
    broken = worker_prices(spark, ("b", 2), (None, 3), partitions=2)
    with pytest.raises(TableError, match=r"table prices, column item_id: expected a value in every row; found 1 null"):
        table_io.write_worker_rows(broken, uri, PRICES, run_id="two")
    assert rows_at(spark, uri) == [("a", 2)]


def test_another_number_of_rows_than_asked_for_is_not_published(spark: SparkSession, uri: str) -> None:
    rows = worker_prices(spark, ("a", 1), ("b", 2))
    table_io.write_worker_rows(rows, uri, PRICES, run_id="one", row_count=2)
    with pytest.raises(TableError, match=r"table prices, column \(all\): expected 3 rows; found 2"):
        table_io.write_worker_rows(rows, uri, PRICES, run_id="two", row_count=3)
    assert (DeltaTable(uri).version(), rows_at(spark, uri)) == (1, [("a", 2), ("b", 4)])


def test_before_the_first_commit_a_table_is_empty_whatever_workers_left(spark: SparkSession, uri: str) -> None:
    broken = worker_prices(spark, ("b", 2), (None, 3), partitions=2)
    with pytest.raises(TableError):
        table_io.write_worker_rows(broken, uri, PRICES, run_id="one")
    assert list(Path(uri).glob("*.parquet")) != []
    assert rows_at(spark, uri) == []


def test_no_rows_of_workers_empty_a_table(spark: SparkSession, uri: str) -> None:
    table_io.write_worker_rows(worker_prices(spark, ("a", 1)), uri, PRICES, run_id="one")
    none = replace(worker_prices(spark), source=prices(spark, ("b", 2)).filter("price > 2"))
    written = table_io.write_worker_rows(none, uri, PRICES, run_id="two")
    assert (written.rows, written.sums, rows_at(spark, uri)) == (0, {"cents": 0}, [])


def test_a_worker_that_dies_is_replaced_and_no_row_is_there_twice(
    spark: SparkSession, uri: str, tmp_path: Path
) -> None:
    died = tmp_path / "died"
    rows = worker_prices(spark, *[(f"i{n}", n) for n in range(10)], partitions=2)
    make = rows.make

    def dying(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from make(batches)
        if not died.exists():
            died.touch()
            os._exit(1)

    table_io.write_worker_rows(replace(rows, make=dying), uri, PRICES, run_id="one", row_count=10)
    assert died.exists()
    assert rows_at(spark, uri) == [(f"i{n}", 2 * n) for n in range(10)]
    assert {str(path) for path in Path(uri).glob("*.parquet")} > set(data_files(uri))


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("ALTER TABLE delta.`{}` ADD CONSTRAINT positive CHECK (price > 0)", "delta.constraints.positive"),
        ("ALTER TABLE delta.`{}` SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')", "columnMapping"),
    ],
)
def test_a_table_with_rules_that_workers_do_not_keep_is_refused(
    spark: SparkSession, uri: str, rule: str, found: str
) -> None:
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, run_id="one")
    spark.sql(rule.format(uri))
    version = DeltaTable(uri).version()
    with pytest.raises(TableError, match=rf"table prices, column \(all\): expected .*; found .*{found}"):
        table_io.write_worker_rows(worker_prices(spark, ("b", 2)), uri, PRICES, run_id="two")
    assert DeltaTable(uri).version() == version


def test_a_partitioned_table_is_refused(spark: SparkSession, uri: str) -> None:
    prices(spark, ("a", 1)).write.format("delta").partitionBy("item_id").save(uri)
    with pytest.raises(TableError, match=r"found partitioned by item_id"):
        table_io.write_worker_rows(worker_prices(spark, ("b", 2)), uri, PRICES, run_id="two")
    assert rows_at(spark, uri) == [("a", 1)]


def test_a_uri_that_workers_could_not_open_is_refused_before_a_table_is_made(spark: SparkSession) -> None:
    with pytest.raises(TableError, match=r"table warehouse, column uri: expected .*; found s3a://shop/prices"):
        table_io.write_worker_rows(worker_prices(spark, ("a", 1)), "s3a://shop/prices", PRICES, run_id="one")


def test_a_changed_table_replaces_the_old_one_by_workers_too(spark: SparkSession, uri: str) -> None:
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, run_id="one")
    changed = replace(PRICES, columns=(PRICES.columns[0], Column("cents", "int64", "as read")))
    second = table_io.write_worker_rows(worker_prices(spark, ("a", 1)), uri, changed, run_id="two")
    assert [tuple(row) for row in table_io.read(spark, uri, changed).collect()] == [("a", 1)]
    assert [field.nullable for field in DeltaTable(uri).schema().fields] == [False, False]
    assert rows_at(spark, uri, second.version - 1) == [("a", 1)]


@pytest.mark.parametrize("start", ["absent", "full"])
def test_another_run_in_between_is_not_overwritten(
    spark: SparkSession, uri: str, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    if start == "full":
        table_io.write(prices(spark, ("a", 1)), uri, PRICES, run_id="one")
    make = table_io.write_parts

    def overtaken(rows: WorkerRows, *arguments: Any) -> pa.Table:
        parts = make(rows, *arguments)
        table_io.write(prices(spark, ("b", 2)), uri, PRICES, run_id="faster")
        return parts

    monkeypatch.setattr(table_io, "write_parts", overtaken)
    with pytest.raises(table_io.OvertakenError, match=r"table prices at .*run the job again"):
        table_io.write_worker_rows(worker_prices(spark, ("c", 3)), uri, PRICES, run_id="two")
    assert rows_at(spark, uri) == [("b", 2)]


def test_row_groups_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_rows, "_ROW_GROUP_BYTES", 100)
    batches = [pa.RecordBatch.from_pydict({"item_id": ["a", "b"], "price": [1, n]}) for n in range(7)]
    [facts] = worker_rows._write_part(batches, str(tmp_path), "part.parquet", PRICES, ("price",))
    assert {name: facts.to_pylist()[0][name] for name in ("rows", "price")} == {"rows": 14, "price": 28}
    stored = pq.ParquetFile(tmp_path / "part.parquet")
    sizes = [stored.metadata.row_group(n).num_rows for n in range(stored.num_row_groups)]
    assert sizes == [8, 6]  # a batch has 26 bytes
    assert stored.read().column("price").to_pylist() == [x for n in range(7) for x in (1, n)]


def test_a_part_without_rows_leaves_no_file(tmp_path: Path) -> None:
    assert list(worker_rows._write_part([], str(tmp_path), "part.parquet", PRICES, ())) == []
    assert list(tmp_path.iterdir()) == []
