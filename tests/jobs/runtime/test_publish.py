"""Publishing what workers wrote: one commit or none, no row twice, nothing of another run overwritten."""

from __future__ import annotations

import json
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
from pyspark.sql import SparkSession

from jobs.runtime import publish, table_io, worker_rows
from jobs.runtime.worker_rows import WorkerRows
from schemas.columns import Column
from schemas.commits import OvertakenError
from schemas.errors import InputError, TableError
from schemas.storage import data_files, version_files
from tests.jobs.runtime.prices import PRICES, prices, rows_at


def worker_prices(spark: SparkSession, *rows: tuple[Any, ...], partitions: int = 1) -> WorkerRows:
    """The rows of `prices`, each with `price` doubled by a worker, and `cents`, the sum of what it read."""

    def double(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            read = batch.column("price")
            columns = {"cents": read, "price": pc.multiply(read, 2), "item_id": batch.column("item_id")}
            yield pa.RecordBatch.from_pydict(columns)

    return WorkerRows(prices(spark, *rows).repartition(partitions), double, ("cents",))


def test_workers_rows_replace_a_table_in_one_commit(spark: SparkSession, uri: str) -> None:
    first = publish.write_worker_rows(worker_prices(spark, ("a", 1)), uri, PRICES, note={"run_id": "one"})
    pinned = table_io.read(spark, uri, PRICES)
    rows = [(f"i{n}", n) for n in range(10)] + [("null", None)]
    second = publish.write_worker_rows(worker_prices(spark, *rows, partitions=3), uri, PRICES, note={"run_id": "two"})
    assert (first.rows, first.sums, second.rows, second.sums) == (1, {"cents": 1}, 11, {"cents": 45})
    assert second.version == first.version + 1 == table_io.latest_version(spark, uri)
    assert [tuple(row) for row in pinned.collect()] == [("a", 2)]
    assert rows_at(spark, uri) == sorted((name, price if price is None else 2 * price) for name, price in rows)
    third = table_io.write(prices(spark, ("c", 3)), uri, PRICES, note={"run_id": "three"})
    assert (third.version, rows_at(spark, uri)) == (second.version + 1, [("c", 3)])


def test_the_log_says_who_wrote_workers_rows_and_how_many(spark: SparkSession, uri: str) -> None:
    written = publish.write_worker_rows(
        worker_prices(spark, ("a", 1), ("b", 2)), uri, PRICES, note={"run_id": "build-1"}
    )
    stored = DeltaTable(uri)
    commit = stored.history(1)[0]
    assert (json.loads(commit["userMetadata"]), commit["operationMetrics"]["numOutputRows"]) == (
        {"run_id": "build-1"},
        "2",
    )
    assert stored.metadata().configuration["delta.enableDeletionVectors"] == "false"
    assert stored.protocol().min_reader_version == 1
    assert [field.nullable for field in stored.schema().fields] == [False, True]
    actions = stored.get_add_actions(flatten=True)
    assert actions.column("num_records").to_pylist() == [2]
    [file] = data_files(uri)
    assert actions.column("size_bytes").to_pylist() == [Path(file).stat().st_size]
    history = SparkDeltaTable.forPath(spark, uri).history(1).first()
    assert history is not None
    assert (history["version"], json.loads(history["userMetadata"])["run_id"]) == (written.version, "build-1")


@pytest.mark.fault("B10", "loud", "a null in one row of a worker's")
def test_a_worker_that_breaks_the_declaration_publishes_nothing(spark: SparkSession, uri: str) -> None:
    publish.write_worker_rows(worker_prices(spark, ("a", 1)), uri, PRICES, note={"run_id": "one"})
    broken = worker_prices(spark, ("b", 2), (None, 3), partitions=2)
    with pytest.raises(TableError, match=r"table prices, column item_id: expected a value in every row; found 1 null"):
        publish.write_worker_rows(broken, uri, PRICES, note={"run_id": "two"})
    assert rows_at(spark, uri) == [("a", 2)]


def test_another_number_of_rows_than_asked_for_is_not_published(spark: SparkSession, uri: str) -> None:
    rows = worker_prices(spark, ("a", 1), ("b", 2))
    publish.write_worker_rows(rows, uri, PRICES, note={"run_id": "one"}, row_count=2)
    with pytest.raises(TableError, match=r"table prices, column \(all\): expected 3 rows; found 2"):
        publish.write_worker_rows(rows, uri, PRICES, note={"run_id": "two"}, row_count=3)
    assert (DeltaTable(uri).version(), rows_at(spark, uri)) == (1, [("a", 2), ("b", 4)])


def test_before_the_first_commit_a_table_is_empty_whatever_workers_left(spark: SparkSession, uri: str) -> None:
    broken = worker_prices(spark, ("b", 2), (None, 3), partitions=2)
    with pytest.raises(TableError):
        publish.write_worker_rows(broken, uri, PRICES, note={"run_id": "one"})
    assert list(Path(uri).glob("*.parquet")) != []
    assert rows_at(spark, uri) == []


def test_no_rows_of_workers_empty_a_table(spark: SparkSession, uri: str) -> None:
    publish.write_worker_rows(worker_prices(spark, ("a", 1)), uri, PRICES, note={"run_id": "one"})
    none = replace(worker_prices(spark), source=prices(spark, ("b", 2)).filter("price > 2"))
    written = publish.write_worker_rows(none, uri, PRICES, note={"run_id": "two"})
    assert (written.rows, written.sums, rows_at(spark, uri)) == (0, {"cents": 0}, [])


@pytest.mark.fault("C2", "recovered", "a Python worker that dies once, after it has written its file")
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

    publish.write_worker_rows(replace(rows, make=dying), uri, PRICES, note={"run_id": "one"}, row_count=10)
    assert died.exists()
    assert rows_at(spark, uri) == [(f"i{n}", 2 * n) for n in range(10)]
    assert {str(path) for path in Path(uri).glob("*.parquet")} > set(data_files(uri))


@pytest.mark.fault("A2", "loud", "constraints, column mapping or deletion vectors given to a table of ours")
@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("ALTER TABLE delta.`{}` ADD CONSTRAINT positive CHECK (price > 0)", "delta.constraints.positive"),
        ("ALTER TABLE delta.`{}` SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')", "columnMapping"),
        ("ALTER TABLE delta.`{}` SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')", "deletionVectors"),
    ],
)
def test_a_table_with_rules_that_workers_do_not_keep_is_refused(
    spark: SparkSession, uri: str, rule: str, found: str
) -> None:
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, note={"run_id": "one"})
    spark.sql(rule.format(uri))
    version = DeltaTable(uri).version()
    with pytest.raises(TableError, match=rf"table prices, column \(all\): expected .*; found .*{found}"):
        publish.write_worker_rows(worker_prices(spark, ("b", 2)), uri, PRICES, note={"run_id": "two"})
    assert DeltaTable(uri).version() == version


def test_a_partitioned_table_is_refused(spark: SparkSession, uri: str) -> None:
    prices(spark, ("a", 1)).write.format("delta").partitionBy("item_id").save(uri)
    with pytest.raises(TableError, match=r"found partitioned by item_id"):
        publish.write_worker_rows(worker_prices(spark, ("b", 2)), uri, PRICES, note={"run_id": "two"})
    assert rows_at(spark, uri) == [("a", 1)]


def test_a_uri_that_workers_could_not_open_is_refused_before_a_table_is_made(spark: SparkSession) -> None:
    with pytest.raises(InputError, match=r"^warehouse, uri: expected .*; found s3a://shop/prices"):
        publish.write_worker_rows(worker_prices(spark, ("a", 1)), "s3a://shop/prices", PRICES, note={"run_id": "one"})


def test_a_changed_table_replaces_the_old_one_by_workers_too(spark: SparkSession, uri: str) -> None:
    table_io.write(prices(spark, ("a", 1)), uri, PRICES, note={"run_id": "one"})
    changed = replace(PRICES, columns=(PRICES.columns[0], Column("cents", "int64", "as read")))
    second = publish.write_worker_rows(worker_prices(spark, ("a", 1)), uri, changed, note={"run_id": "two"})
    assert [tuple(row) for row in table_io.read(spark, uri, changed).collect()] == [("a", 1)]
    assert [field.nullable for field in DeltaTable(uri).schema().fields] == [False, False]
    assert rows_at(spark, uri, second.version - 1) == [("a", 1)]


@pytest.mark.parametrize("start", ["absent", "full"])
@pytest.mark.fault("B3", "loud", "a run that is held before its commit while another commits")
def test_another_run_in_between_is_not_overwritten(
    spark: SparkSession, uri: str, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    if start == "full":
        table_io.write(prices(spark, ("a", 1)), uri, PRICES, note={"run_id": "one"})
    make = publish.write_parts

    def overtaken(rows: WorkerRows, *arguments: Any) -> pa.Table:
        parts = make(rows, *arguments)
        table_io.write(prices(spark, ("b", 2)), uri, PRICES, note={"run_id": "faster"})
        return parts

    monkeypatch.setattr(publish, "write_parts", overtaken)
    with pytest.raises(OvertakenError, match=r"table prices at .*run the job again"):
        publish.write_worker_rows(worker_prices(spark, ("c", 3)), uri, PRICES, note={"run_id": "two"})
    assert rows_at(spark, uri) == [("b", 2)]


def test_row_groups_are_bounded_by_bytes(tmp_path: Path) -> None:
    batches = [pa.RecordBatch.from_pydict({"item_id": ["a", "b"], "price": [1, n]}) for n in range(7)]
    facts = worker_rows.write_part(batches, str(tmp_path), 0, PRICES, ("price",), group_bytes=100)
    assert facts is not None
    assert {name: facts[name] for name in ("rows", "price")} == {"rows": 14, "price": 28}
    stored = pq.ParquetFile(tmp_path / facts["path"])
    sizes = [stored.metadata.row_group(n).num_rows for n in range(stored.num_row_groups)]
    assert sizes == [8, 6]  # a batch has 26 bytes
    assert stored.read().column("price").to_pylist() == [x for n in range(7) for x in (1, n)]


def test_a_part_without_rows_leaves_no_file(tmp_path: Path) -> None:
    assert worker_rows.write_part([], str(tmp_path), 0, PRICES) is None
    assert list(tmp_path.iterdir()) == []


def test_rows_of_the_driver_replace_a_table_in_one_commit(spark: SparkSession, uri: str) -> None:
    rows = pa.table({"item_id": [f"i{n}" for n in range(5_000)], "price": range(5_000)})
    first = publish.write_arrow(rows, uri, PRICES, note={"run_id": "one"}, file_count=2)
    assert (first.version, first.rows) == (1, 5_000)
    assert sorted(file.rows or 0 for file in version_files(uri).files) == [904, 4_096]
    assert rows_at(spark, uri) == sorted(zip(*rows.to_pydict().values(), strict=True))
    second = publish.write_arrow(rows.slice(0, 0), uri, PRICES, note={"run_id": "two"})
    assert (second.version, second.rows) == (2, 0)
    assert rows_at(spark, uri) == []
    with pytest.raises(TableError, match=r"table prices, column item_id: expected a value in every row"):
        publish.write_arrow(
            pa.table({"item_id": pa.array([None], pa.string()), "price": [1]}), uri, PRICES, note={"run_id": "3"}
        )
    assert DeltaTable(uri).version() == 2
