"""Spark jobs: a driver that is killed, an answer that is lost, workers that die, one huge row."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from itemsage_model.encoders.model_files import SavedModel, model_bytes
from itemsage_model.serving.scorer import load_once
from itemsage_model.text.tokenizer import Tokenizer, pack_vocabulary
from jobs import build_item_features, score_catalog
from jobs.runtime import publish, table_io
from jobs.runtime.changes import find_changes
from jobs.runtime.lost_worker import lost_worker
from jobs.runtime.rescoring import by_id, merge_published
from jobs.runtime.worker_rows import Place, WorkerRows
from jobs.transforms.item_sources import split
from schemas import commits
from schemas.errors import InputError, TableError
from schemas.spark import conform, struct_type
from schemas.storage import data_files, read_columns, version_files
from schemas.tables import ITEM_EMBEDDINGS, ITEM_TEXT_EMBEDDINGS, ITEMS
from schemas.warehouse import Warehouse
from tests.fault_report import Trials
from tests.faults.driver import CHANGED, ROWS
from tests.faults.driver import publish as publish_generation
from tests.itemsage_model.factories import SPEC
from tests.jobs.runtime.prices import PRICES, prices, rows_at

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "prices")


def generations(warehouse: Warehouse) -> tuple[int, int]:
    """Of which generation prices and item_embeddings are, whole, as a reader without a JVM finds them."""
    price = read_columns(warehouse.table(PRICES.name), None, ["item_id", "price"])
    assert price.num_rows == len(price["item_id"].unique()) == ROWS
    [whole] = set(price["price"].to_pylist())
    rows = read_columns(warehouse.table(ITEM_EMBEDDINGS.name), None, ["item_id", "features_hash", "embedding"])
    hashes = dict(zip(rows["item_id"].to_pylist(), rows["features_hash"].to_pylist(), strict=True))
    assert rows.num_rows == len(hashes) == ROWS
    [new] = [name for name in hashes if name.startswith("x")]
    generation = int(new.removeprefix("x"))
    assert {hashes[f"i{number}"] for number in range(CHANGED)} | {hashes[new]} == {f"g{generation}"}
    assert {hashes[f"i{number}"] for number in range(CHANGED, ROWS - 1)} == {"g0"}
    first = {row["item_id"]: row["embedding"][0] for row in rows.to_pylist()}
    assert {first[f"i{number}"] for number in range(CHANGED)} | {first[new]} == {float(generation)}
    return whole, generation


@pytest.mark.long
@pytest.mark.fault("C1", "recovered", "kill -9 of a Spark driver at random moments of a write and of a MERGE")
@pytest.mark.fault("B6", "recovered", "the same: item_embeddings is of one generation, by Spark's MERGE")
def test_a_driver_killed_at_any_moment(spark: SparkSession, tmp_path: Path, kills: int, trials: Trials) -> None:
    """A JVM takes seconds to start, so that there are few of these kills; the driver is started anew after each."""
    warehouse, first = Warehouse(str(tmp_path / "w")), 1
    publish_generation(spark, warehouse, 0)
    seed = int.from_bytes(os.urandom(4), "big")
    draw = random.Random(seed)
    print(f"seed of the kills: {seed}")
    for _ in range(max(1, kills // 100)):
        with (tmp_path / "log").open("w") as log:
            driver = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.driver", warehouse.uri, str(first)], cwd=ROOT, text=True,
                stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable},
            )  # fmt: skip
        try:
            assert driver.stdout
            lines = [driver.stdout.readline() for _ in range(2)]  # the first takes longer than any other
            assert lines[1], (tmp_path / "log").read_text()[-3000:]
            time.sleep(draw.uniform(0, 2 * float(lines[1].split()[1])))
        finally:
            os.killpg(driver.pid, signal.SIGKILL)
            rest = driver.communicate(timeout=60)[0]
        done = int([*lines, *rest.splitlines()][-1].split()[0])
        found = generations(warehouse)
        assert found in ((done, done), (done + 1, done), (done + 1, done + 1))
        first = done + 2
        trials.add(recovered=1)
    publish_generation(spark, warehouse, first)
    assert generations(warehouse) == (first, first)


@pytest.mark.fault("B5", "loud", "a commit that succeeds and whose answer is an error: its files are not removed")
@pytest.mark.fault("B1", "recovered", "a commit whose answer is lost, and the same run again: no row is there twice")
def test_an_error_after_a_commit(spark: SparkSession, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pa.table({"item_id": ["a", "b"], "price": [1, 2]})
    publish.write_arrow(rows.slice(0, 1), uri, PRICES, note={"run_id": "zero"})
    replace = commits._write_files

    def lost(*arguments: Any) -> int:
        replace(*arguments)
        raise OSError("connection reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(commits, "_write_files", lost)
        with pytest.raises(OSError, match="connection reset"):
            publish.write_arrow(rows, uri, PRICES, note={"run_id": "one"})
    assert all(Path(file).exists() for file in data_files(uri))
    assert rows_at(spark, uri) == [("a", 1), ("b", 2)]
    publish.write_arrow(rows, uri, PRICES, note={"run_id": "one"})
    assert rows_at(spark, uri) == [("a", 1), ("b", 2)]


@pytest.mark.fault("B1", "recovered", "a run of Spark's that fails after its commit, and the same run again")
def test_an_error_after_a_commit_of_sparks(spark: SparkSession, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> Any:
        raise OSError("connection reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(table_io, "commits_of", lost)
        with pytest.raises(OSError, match="connection reset"):
            table_io.write(prices(spark, ("a", 1), ("b", 2)), uri, PRICES, note={"run_id": "one"})
    assert rows_at(spark, uri) == [("a", 1), ("b", 2)]
    table_io.write(prices(spark, ("a", 1), ("b", 2)), uri, PRICES, note={"run_id": "one"})
    assert rows_at(spark, uri) == [("a", 1), ("b", 2)]


@pytest.mark.fault(
    "B12", "loud", "a run that ends between the commits of two tables: what the records name is as it was"
)
def test_ended_between_two_tables(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [Place(PRICES, str(tmp_path / name), number, 1) for number, name in enumerate(("a", "b"))]

    def rows(price: int) -> Any:
        return spark.createDataFrame([("i", price, 0), ("i", price, 1)], "item_id string, price long, file int")

    before = [one.version for one in publish.write_tables(rows(1).coalesce(1), places, note={"run_id": "one"})]
    commit, committed = publish.commit, 0

    def ended(*arguments: Any) -> Any:
        nonlocal committed
        if committed:
            raise KeyboardInterrupt
        committed += 1
        return commit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(publish, "commit", ended)
        with pytest.raises(KeyboardInterrupt):
            publish.write_tables(rows(2).coalesce(1), places, note={"run_id": "two"})
    assert [rows_at(spark, place.uri) for place in places] == [[("i", 2)], [("i", 1)]]
    pinned = [rows_at(spark, place.uri, version) for place, version in zip(places, before, strict=True)]
    assert pinned == [[("i", 1)]] * 2
    publish.write_tables(rows(2).coalesce(1), places, note={"run_id": "two"})
    assert [rows_at(spark, place.uri) for place in places] == [[("i", 2)]] * 2


@pytest.mark.fault("C2", "loud", "a Python worker that always dies: the job fails, and the table is as it was")
def test_a_worker_that_always_dies_commits_nothing(spark: SparkSession, uri: str, trials: Trials) -> None:
    publish.write_arrow(pa.table({"item_id": ["a"], "price": [1]}), uri, PRICES, note={"run_id": "one"})

    def die(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from batches

    started = time.monotonic()
    with pytest.raises(Exception, match="worker") as raised:
        publish.write_worker_rows(WorkerRows(prices(spark, ("b", 2)), die), uri, PRICES, note={"run_id": "two"})
    trials.add(loud=1, seconds=time.monotonic() - started)
    assert "Python worker exited unexpectedly" in str(lost_worker(raised.value))
    assert (DeltaTable(uri).version(), rows_at(spark, uri)) == (1, [("a", 1)])


@pytest.mark.fault("C4", "loud", "a model of more bytes than can be broadcast")
def test_a_model_too_large_to_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = model_bytes(SPEC.build(seed=1))
    score_catalog._refuse_large(weights)
    monkeypatch.setattr(score_catalog, "MAX_BROADCAST_BYTES", len(weights) - 1)
    with pytest.raises(
        InputError, match=r"model, weights: expected at most .* bytes, to be broadcast.*model\.hash_rows"
    ):
        score_catalog._refuse_large(weights)


@pytest.mark.fault("C4", "recovered", "12 tasks that ask for the model: no worker process builds it twice")
@pytest.mark.fault("C6", "recovered", "a worker's torch with more threads than its one core: one is left")
def test_a_worker_builds_the_model_once_and_computes_in_one_thread(spark: SparkSession) -> None:
    model = SavedModel("m", model_bytes(SPEC.build(seed=1)), SPEC, {})
    weights, spec = spark.sparkContext.broadcast(model.weights), model.spec

    def load(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            if not hasattr(torch, "asked_before"):
                torch.asked_before = torch.set_num_threads(4)  # type: ignore[attr-defined]
            found = load_once(weights.value, spec)
            yield pa.RecordBatch.from_pylist([
                {"process": os.getpid(), "scorer": id(found), "threads": torch.get_num_threads()}
            ])  # fmt: skip

    rows = spark.range(0, 12, 1, 12).mapInArrow(load, "process long, scorer long, threads long").collect()
    assert len(rows) == 12
    assert len({(row["process"], row["scorer"]) for row in rows}) == len({row["process"] for row in rows}) < 12
    assert {row["threads"] for row in rows} == {1}


@pytest.mark.fault("C5", "recovered", "one description of 50 MB among short ones: the same ids, a worker below 1.5 GB")
def test_a_huge_row_is_cut_in_bounded_memory(spark: SparkSession, make_settings: Any) -> None:
    settings = make_settings(features={"text_features": ["title"]})
    vocabulary = ["#re", "red"], ["red", "mug", "tea"], ["red#mug"]
    huge = "red mug " * 6_250_000
    titles = [f"red tea {number}" for number in range(50)]
    items = spark.createDataFrame([(f"i{n}", title) for n, title in enumerate(titles)], "item_id string, title string")
    one = spark.range(1).selectExpr("'huge' item_id", f"repeat('red mug ', {len(huge) // 8}) title")
    rows = conform(items.unionByName(one), ITEMS).coalesce(1)
    embeddings = spark.createDataFrame([], struct_type(ITEM_TEXT_EMBEDDINGS))
    usable = split(rows, None, settings, 1)
    built = build_item_features.build(usable, embeddings, pack_vocabulary(*vocabulary), settings)

    make = built.make

    def measured(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in make(batches):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1_024
            tokens = batch.column("text_token_ids")
            yield pa.RecordBatch.from_arrays(
                [batch.column("item_id"), tokens, pa.array([peak] * len(batch), pa.int64())],
                ["item_id", "tokens", "peak"],
            )

    found = {row["item_id"]: row for row in
             built.source.mapInArrow(measured, "item_id string, tokens binary, peak long").collect()}  # fmt: skip
    assert len(found) == 51
    tokenizer = Tokenizer(*vocabulary, max_tokens=settings.features.max_tokens_per_feature)
    expected = tokenizer.encode_column(pa.array([huge[:100_000]])).ids
    assert np.frombuffer(found["huge"]["tokens"], "<i4").tolist() == expected.tolist()
    assert max(row["peak"] for row in found.values()) < 1_500


@pytest.mark.long
@pytest.mark.fault("B9", "loud", "a null id among the rows to be merged")
def test_a_null_key_commits_nothing(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(str(tmp_path / "w"))
    publish_generation(spark, warehouse, 0)
    uri = warehouse.table(ITEM_EMBEDDINGS.name)
    published = table_io.read(spark, uri, ITEM_EMBEDDINGS)
    features = published.selectExpr("item_id", "xxhash64(item_id) item_key", "'other' features_hash").limit(1)
    changes = find_changes(by_id(features, published, published.limit(0)), "item_id")
    nameless = published.limit(1).selectExpr("cast(null as string) item_id", "embedding", "model_id",
                                             "features_hash", "scored_ts")  # fmt: skip
    with pytest.raises(Exception, match=r"(?i)not null constraint violated for column: item_id"):
        merge_published(warehouse, ITEM_EMBEDDINGS, changes, nameless, {})
    assert generations(warehouse) == (0, 0)


@pytest.mark.fault(
    "A2", "loud", "deletion vectors, and column mapping of both kinds, given to a training table of ours"
)
@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ("'delta.enableDeletionVectors' = 'true'", "deletion vectors"),
        ("'delta.columnMapping.mode' = 'name'", "column mapping"),
        ("'delta.columnMapping.mode' = 'name', 'delta.minReaderVersion' = '2', 'delta.minWriterVersion' = '5'",
         "column mapping"),
    ],
)  # fmt: skip
def test_what_petastorm_cannot_read_is_refused_by_name(
    spark: SparkSession, tmp_path: Path, properties: str, named: str
) -> None:
    from itemsage_model.data.pinned_files import pin_files

    place = str(tmp_path / "training_a")
    table_io.write(prices(spark, *[(f"i{n}", n) for n in range(9)]).coalesce(1), place, PRICES, note={})
    assert pin_files("training_a", place).row_count == 9
    statement = f"ALTER TABLE delta.`{place}` SET TBLPROPERTIES ({properties})"
    spark.sql(statement)
    spark.sql(f"DELETE FROM delta.`{place}` WHERE item_id = 'i3'")
    message = rf"table training_a, .*found one with {named} at {place}\. .*FROM=build_training_tables"
    with pytest.raises(TableError, match=message):
        pin_files("training_a", place)
    assert len(version_files(place).files) == 1
    assert rows_at(spark, place) == [(f"i{n}", n) for n in range(9) if n != 3]


@pytest.mark.fault(
    "B8", "loud", "a version that a record names, whose files VACUUM has removed: which retention would do"
)
def test_a_version_that_was_vacuumed_away_is_named(spark: SparkSession, uri: str) -> None:
    for price in (1, 2):
        table_io.write(prices(spark, ("a", price)), uri, PRICES, note={})
    old, new = DeltaTable(uri).version() - 1, DeltaTable(uri).version()
    assert rows_at(spark, uri, old) == [("a", 1)]
    DeltaTable(uri).vacuum(0, dry_run=False, enforce_retention_duration=False)
    message = (
        rf"table prices, column \(files\): expected the file .*, which version {old} of the table has; found no such "
        rf"file: version {old} was replaced on 20.* UTC, and VACUUM has removed its files, last on .*: a retention of "
        r"\d+ hours would have kept it \(maintenance\.retention_hours"
    )
    with pytest.raises(TableError, match=message):
        table_io.read(spark, uri, PRICES, version=old)
    assert rows_at(spark, uri, new) == [("a", 2)]
    os.remove(data_files(uri, new)[0])
    with pytest.raises(TableError, match=r"is the newest one, whose files no VACUUM removes: somebody deleted it"):
        table_io.read(spark, uri, PRICES, version=new)
