"""The whole pipeline on a small property portal: other engagements than the paper's, named in the settings alone."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from itemsage_model.data.feature_cells import unpack_items
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model
from itemsage_model.serving.query_vectors import adapt_queries
from itemsage_model.serving.scorer import Scorer
from jobs.evaluation.short_vectors import StagedShort
from pipeline import commands
from retrieval.short_tables import read_short
from retrieval.short_vectors import shortened
from schemas.elements import FEATURE_CELLS
from schemas.errors import GateError, InputError
from schemas.published import changes_since, live
from schemas.records import RunRecord, read_record, write_record
from schemas.settings import Settings, load_settings
from schemas.stages import (
    BUILD_ITEM_FEATURES,
    BUILD_TRAINING_TABLES,
    BUILD_VOCABULARY,
    EMBED_ITEMS,
    EMBED_QUERIES,
    EVALUATE,
    MAKE_DEMO_WORLD,
    PIPELINE,
    SCORE_CATALOG,
    TRAIN,
    VALIDATE,
    Stage,
)
from schemas.storage import data_files
from tests.sockets import off_loopback, watched

# The first test pays for the whole pipeline, the rerun for a second one.
pytestmark = pytest.mark.timeout(1200)

PORTAL = """
[dates]
as_of = 2026-03-01
train_days = 20
gap_days = 1
test_days = 7
[[tasks]]
query_kind = "search"
engagement = "inquiry"
share = 3.0
[[tasks]]
query_kind = "search"
engagement = "tour"
[[tasks]]
query_kind = "closeup"
engagement = "inquiry"
[features]
char_trigrams = 500
word_unigrams = 500
word_bigrams = 200
[query_encoder]
lsa_vocabulary = 400
[model]
sequence = ["text", "images", "frozen_text", "item_id"]
query_adapter = true
id_rows = 100
query_id_rows = 100
width = 32
heads = 4
feed_forward_width = 32
head_width = 32
hash_rows = 500
[loss]
sketch_width = 4096
[train]
batch_size = 50
negative_count = 50
steps = 6
warmup_steps = 2
threads = 1
[score]
short_vectors = ["int8", "float16:64", "int8:64"]
[gates]
max_recall_loss_short = 1.0
[demo_world]
items = 200
events = 3000
seed = 3
"""
SIDE_BY_SIDE = (
    (VALIDATE,),
    (MAKE_DEMO_WORLD,),
    (EMBED_QUERIES,),
    (EMBED_ITEMS, BUILD_VOCABULARY),
    (BUILD_ITEM_FEATURES,),
    (BUILD_TRAINING_TABLES, SCORE_CATALOG),
    (EVALUATE,),
)
"""All stages but training: those of a group do not read each other's tables. The model is validated first, on the
versions that it was trained on."""


LISTENED: set[tuple[str, str]] = set()
"""(address, process) of every port that any process of the whole run listened on."""


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portal")
    path = folder / "portal.toml"
    path.write_text(f'[warehouse]\nuri = "{folder}/warehouse"\n{PORTAL}')
    return path


@pytest.fixture(scope="module")
def portal(settings_file: Path) -> Settings:
    """Settings of a warehouse on which every stage has run: by the front door, in one Spark session."""
    command = [sys.executable, "-m", "pipeline.cli", "run", "--settings", str(settings_file), "--prepare",
               "jobs/make_demo_world.py"]  # fmt: skip
    log = settings_file.with_name("log")
    with log.open("w") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=output, text=True, cwd=commands.ROOT, env=commands.environment()
        )
        LISTENED.update(watched(child, 600))
    done = log.read_text()
    assert child.returncode == 0, done[-6000:]
    assert re.findall(r"^\[(\d+)/10\] (\w+)", done, re.M) == [
        (str(number), stage.name) for number, stage in enumerate((MAKE_DEMO_WORLD, *PIPELINE), 1)
    ]
    assert "nearest neighbours" in done
    said = json.loads(done.splitlines()[-1])
    assert (said["work"], said["status"], said["exit_code"]) == ("run", "done", 0)
    assert [one["stage"] for one in said["stages"]] == [stage.name for stage in (MAKE_DEMO_WORLD, *PIPELINE)]
    return load_settings(settings_file)


def run_command(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False,
        cwd=commands.ROOT, env=commands.environment() | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def run_jobs(spark: Any, settings: Settings, names: tuple[str, ...]) -> None:
    for name in names:
        importlib.import_module(f"jobs.{name}").run(spark, settings.model_copy(update={"rerun": True}))


def rows_of(settings: Settings, table: str) -> Any:
    uri = f"{settings.warehouse.uri}/{table}"
    return pq.ParquetDataset(data_files(uri)).read()


def content_hash(settings: Settings, table: str) -> str:
    rows = sorted(repr(sorted(row.items())) for row in rows_of(settings, table).to_pylist())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def test_every_task_of_the_settings_has_its_tables_and_figures(portal: Settings):
    assert {p.name for p in Path(portal.warehouse.uri).glob("training_*")} == {
        "training_search_inquiry", "training_search_tour", "training_closeup_inquiry"
    }  # fmt: skip
    figures = rows_of(portal, "evaluation").to_pylist()
    assert {row["task"] for row in figures} == {"search_inquiry", "search_tour", "closeup_inquiry"}
    systems = {row["system"] for row in figures if row["task"] == "closeup_inquiry"}
    assert {"itemsage", "untrained", "random", "popularity", "co_occurrence", "sum", "oracle"} <= systems
    assert all(0 <= row["value"] <= 1 for row in figures)
    of = {(row["task"], row["system"], row["slice"]): row["value"] for row in figures}
    assert of["search_inquiry", "oracle", "all"] > of["search_inquiry", "random", "all"]
    for task in ("search_inquiry", "search_tour", "closeup_inquiry"):
        of_task = [row for row in figures if (row["task"], row["metric"]) == (task, "recall@10")]
        short, whole = ([row for row in of_task if row["system"] == system] for system in ("int8", "itemsage"))
        assert [(one["slice"], one["pair_count"]) for one in short] == [
            (one["slice"], one["pair_count"]) for one in whole
        ]
        assert all(abs(one["value"] - other["value"]) < 0.05 for one, other in zip(short, whole, strict=True))


@pytest.mark.fault("F1", "recovered", "a scheduler that runs a whole pipeline of the same date and inputs once more")
def test_run_twice_is_run_once(settings_file: Path, portal: Settings) -> None:
    def versions() -> dict[str, int]:
        logs = Path(portal.warehouse.uri).glob("*/_delta_log")
        return {log.parent.name: DeltaTable(str(log.parent)).version() for log in logs if log.parent.name != "runs"}

    before = versions()
    again = [sys.executable, "-m", "pipeline.cli", "run", "--settings", str(settings_file)]
    done = run_command([*again, "--prepare", "jobs/make_demo_world.py"])
    said = json.loads(done.splitlines()[-1])
    assert (said["status"], {one["status"] for one in said["stages"]}) == ("already_done", {"already_done"})
    assert len(said["stages"]) == len(PIPELINE) + 1
    assert versions() == before
    assert "nearest neighbours" in done


def test_delta_rs_and_polars_read_the_embeddings(portal: Settings):
    catalog = set(rows_of(portal, "items")["item_id"].to_pylist())
    for table in (
        rows_of(portal, "item_embeddings"),
        pl.scan_delta(f"{portal.warehouse.uri}/item_embeddings").collect().to_arrow(),
    ):
        ids = table["item_id"].to_pylist()
        assert len(ids) == len(set(ids))
        assert set(ids) == catalog
        vectors = np.array(table["embedding"].to_pylist(), np.float32)
        assert vectors.shape == (len(ids), 256)
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
        assert len(set(table["model_id"].to_pylist())) == 1


def test_sparks_scores_equal_a_direct_call(portal: Settings):
    model = load_model(read_record(portal.layout, TRAIN).metrics.model_uri, ItemTowerSpec)
    features = rows_of(portal, "item_features").sort_by("item_id")
    cells = {name: features[name] for name in FEATURE_CELLS}
    precision = read_record(portal.layout, SCORE_CATALOG).metrics.precision
    direct = Scorer(model.weights, model.spec, precision=precision).score(
        unpack_items("item_features", cells, model.spec.elements), features["item_key"].to_numpy()
    )
    published = rows_of(portal, "item_embeddings").sort_by("item_id")
    np.testing.assert_allclose(np.array(published["embedding"].to_pylist()), direct, atol=1e-5)
    assert published["features_hash"].to_pylist() == features["features_hash"].to_pylist()
    assert published["model_id"][0].as_py() == model.model_id


def test_published_query_vectors_are_what_the_model_makes_of_the_frozen_ones(portal: Settings):
    model = load_model(read_record(portal.layout, TRAIN).metrics.model_uri, ItemTowerSpec)
    frozen = rows_of(portal, "query_embeddings").sort_by("query_id")
    found = rows_of(portal, "query_vectors").sort_by("query_id")
    for name in ("query_id", "query_kind"):
        assert found[name].to_pylist() == frozen[name].to_pylist()
    assert set(found["model_id"].to_pylist()) == {model.model_id}
    kinds = np.array(frozen["query_kind"].to_pylist())
    embeddings, vectors = (np.array(table[name].to_pylist(), np.float32) for table, name in (
        (frozen, "query_embedding"), (found, "query_vector")
    ))  # fmt: skip
    assert set(kinds) == {"search", "closeup"}
    pairs = [rows_of(portal, task.training_table) for task in portal.task_list]
    key_of = {row["query_id"]: row["query_key"] for of_task in pairs for row in of_task.to_pylist()}
    keys = np.array([key_of.get(name, 0) for name in frozen["query_id"].to_pylist()])
    assert model.spec.trained_queries == len(key_of)
    for kind in set(kinds):
        known = (kinds == kind) & (keys != 0)
        adapted = adapt_queries(model, kind, embeddings[known], keys[known])
        np.testing.assert_allclose(vectors[known], adapted, atol=1e-6)
        assert not np.allclose(adapted, embeddings[known], atol=1e-6)
        assert not np.allclose(adapted, adapt_queries(model, kind, embeddings[known], 0 * keys[known]), atol=1e-6)


@pytest.mark.fault("S2", "loud", "whoever reaches a port of a whole run: none is open but on the loopback interface")
def test_no_stage_of_a_run_listens_off_the_loopback_interface(portal: Settings):
    assert portal.train.processes == 1
    assert "java" in {name for _, name in LISTENED}
    assert not off_loopback(LISTENED)


def test_every_job_as_its_own_command_gives_the_same_rows_as_all_in_one_session(
    settings_file: Path, portal: Settings, monkeypatch: pytest.MonkeyPatch
):
    """Which is also: a rerun of every job, in another session and with other partitions, gives the same rows."""
    tables = ["items", "engagement_logs", "query_embeddings", "item_text_embeddings", "vocabulary", "item_features",
              "training_search_inquiry",
              "held_out_search_tour", "item_counts", "rejected_events", "item_embeddings", "evaluation"]  # fmt: skip
    before = {table: content_hash(portal, table) for table in tables}
    # Three partitions, and plans that are interpreted where the session compiled them.
    conf = (
        "spark.sql.shuffle.partitions=3",
        "spark.sql.codegen.wholeStage=false",
        "spark.sql.codegen.factoryMode=NO_CODEGEN",
    )
    monkeypatch.setenv("ITEMSAGE_SPARK_SUBMIT", " ".join(f"--conf {one}" for one in conf))
    for stages in SIDE_BY_SIDE:
        again = ["--settings", str(settings_file), "--set", "rerun=true"]
        lines = [commands.stage_command(stage, again) for stage in stages]
        with ThreadPoolExecutor() as threads:
            said = list(threads.map(run_command, lines))
        for stage, text in zip(stages, said, strict=True):
            assert json.loads(text.splitlines()[-1])["stages"][0]["stage"] == stage.name
            assert json.loads(text.splitlines()[-1])["status"] == "done"
    assert {table: content_hash(portal, table) for table in tables} == before


@pytest.mark.fault("C9", "recovered", "repeated, late, unknown and null events among sound ones: each is counted")
def test_every_event_is_counted_or_rejected_with_a_reason(portal: Settings):
    events = asdict(read_record(portal.layout, BUILD_TRAINING_TABLES).metrics.events)
    assert events["read_events"] == sum(v for k, v in events.items() if k != "read_events")
    reasons = set(rows_of(portal, "rejected_events")["reason"].to_pylist())
    assert {"duplicate_event", "gap"} <= reasons


@contextmanager
def replaced_record(settings: Settings, record: RunRecord[Any]) -> Iterator[None]:
    """Another record of a stage for the length of a block, in a warehouse that has one."""
    file = Path(settings.layout.record(record.stage))
    before = file.read_bytes()
    write_record(settings.layout, record)
    yield
    file.write_bytes(before)


def changed_metrics(settings: Settings, stage: Stage[Any], **metrics: Any) -> RunRecord[Any]:
    record = read_record(settings.layout, stage)
    return replace(record, metrics=replace(record.metrics, **metrics))


@pytest.mark.fault("danger 1", "loud", "features of another vocabulary than the model's; then score, then evaluate")
def test_scoring_with_another_vocabulary_is_refused(spark: Any, portal: Settings) -> None:
    with replaced_record(portal, changed_metrics(portal, BUILD_ITEM_FEATURES, vocabulary_hash="another")):
        for job in ("score_catalog", "evaluate"):
            with pytest.raises(
                InputError, match=rf"{job}, vocabulary: .*another .*Run build_training_tables, then train"
            ):
                run_jobs(spark, portal, (job,))


def test_columns_to_filter_by_travel_and_follow_the_catalog(
    spark: Any, settings_file: Path, portal: Settings, tmp_path: Path
) -> None:
    from schemas.candidate import publish_candidate
    from schemas.lease import hold
    from schemas.published import roll_back

    filters = '{in_stock = "boolean", price = "float64", brand = "string"}'

    def of(*sets: str) -> Settings:
        sets = (f"warehouse.uri={tmp_path}/warehouse", f"score.filters={filters}", *sets)
        return load_settings(settings_file, list(sets))

    def published(settings: Settings) -> dict[str, tuple[Any, ...]]:
        names = ["item_id", "in_stock", "price", "brand", "embedding"]
        rows = pl.scan_delta(settings.layout.table("item_embeddings")).select(names).collect().rows()
        return {row[0]: row[1:] for row in rows}

    def publish(settings: Settings) -> int:
        for name in ("build_item_features", "score_catalog"):
            importlib.import_module(f"jobs.{name}").run(spark, settings)
        return read_record(settings.layout, SCORE_CATALOG).metrics.scored

    def write(items: pa.Table) -> None:
        write_deltalake(f"{tmp_path}/warehouse/items", items, mode="overwrite", schema_mode="overwrite")

    shutil.copytree(portal.warehouse.uri, tmp_path / "warehouse")
    items = rows_of(portal, "items")
    count = len(items)
    in_stock, price = [row % 2 == 0 for row in range(count)], [row / 4 for row in range(count)]
    write(items)
    with pytest.raises(InputError, match="items, column in_stock: expected a column of type bool"):
        publish(of())
    items = items.append_column("in_stock", pa.array([None, *in_stock[1:]])).append_column("price", pa.array(price))
    write(items)
    assert publish(of()) == count  # of which all were published without these columns
    first = published(of())
    rows = items.to_pylist()
    assert {name: row[:3] for name, row in first.items()} == {
        row["item_id"]: (row["in_stock"], row["price"], row["brand"]) for row in rows
    }
    before = live(of().layout)
    assert before is not None
    # Sold out, and of unknown price: neither is a feature.
    rows[2] |= {"in_stock": False, "price": None}
    write(pa.Table.from_pylist(rows, items.schema))
    assert publish(of()) == 1
    sold = rows[2]["item_id"]
    assert published(of()) == first | {sold: (False, None, rows[2]["brand"], first[sold][3])}
    assert changes_since(of().layout, before.version) == {sold: "upsert"}
    # As a candidate, and brought back.
    candidate = of("score.publish=candidate", "rerun=true")
    assert publish(candidate) == count
    now = published(of())
    with hold(candidate.layout, "publish", "2026-03-01"):
        publish_candidate(candidate)
        assert published(of()) == now
        roll_back(candidate, before.version)
    assert published(of()) == first


@pytest.mark.fault("B11", "loud", "queries of another space than the model's; then score, then evaluate")
def test_a_model_of_another_space_is_neither_published_nor_evaluated(spark: Any, portal: Settings) -> None:
    version = DeltaTable(f"{portal.warehouse.uri}/evaluation").version()
    spaces = {"search": "lsa-another", "closeup": "lsa-another"}
    with replaced_record(portal, changed_metrics(portal, EMBED_QUERIES, embedding_spaces=spaces)):
        for job in ("score_catalog", "evaluate"):
            with pytest.raises(
                InputError, match=rf"{job}, space of \w+ queries: .*lsa-another in what embed_queries wrote"
            ):
                run_jobs(spark, portal, (job,))
    assert DeltaTable(f"{portal.warehouse.uri}/evaluation").version() == version


@pytest.mark.fault("B11", "loud", "a query encoder left behind by a run that ended before its tables were written")
def test_a_query_encoder_that_no_record_names_is_refused(spark: Any, portal: Settings) -> None:
    with (
        replaced_record(portal, changed_metrics(portal, EMBED_QUERIES, encoder="lsa-0")),
        pytest.raises(InputError, match=r"query encoder, \S+: expected lsa-0, .*FROM=embed_queries"),
    ):
        run_jobs(spark, portal, ("evaluate",))


@pytest.mark.fault("F3", "loud", "a catalog of one item scored over one of 200; an older date over a newer one")
def test_a_shrunken_catalog_and_an_older_date_are_not_published(spark: Any, portal: Settings) -> None:
    record, folder = read_record(portal.layout, BUILD_ITEM_FEATURES), Path(portal.warehouse.uri)
    features, published = DeltaTable(folder / "item_features"), DeltaTable(folder / "item_embeddings").version()
    recorded = features.version()
    write_deltalake(features, rows_of(portal, "item_features").slice(0, 1), mode="overwrite")
    small = replace(
        record, outputs=(replace(record.output("item_features"), version=recorded + 1, rows=1, checksum=""),)
    )
    with replaced_record(portal, small), pytest.raises(GateError, match=r"expected 160 to 300 items.*found 1 items"):
        run_jobs(spark, portal, ("score_catalog",))
    features.restore(recorded)
    dates = portal.dates.model_copy(update={"as_of": portal.dates.as_of - timedelta(days=1)})
    with pytest.raises(GateError, match="which is published; found 2026-02-28"):
        run_jobs(spark, portal.model_copy(update={"dates": dates}), ("score_catalog",))
    assert DeltaTable(folder / "item_embeddings").version() == published
    assert read_record(portal.layout, SCORE_CATALOG).output("item_embeddings").version == published


@pytest.mark.fault("copy", "recovered", "a warehouse copied; score and evaluate run on the copy, without the original")
def test_a_copied_warehouse_publishes_from_its_own_files(spark: Any, portal: Settings, tmp_path: Path) -> None:
    original, copy = Path(portal.warehouse.uri), tmp_path / "copy"
    shutil.copytree(original, copy)
    hidden = original.rename(tmp_path / "hidden")
    try:
        settings = portal.model_copy(update={"warehouse": portal.warehouse.model_copy(update={"uri": str(copy)})})
        before = content_hash(settings, "item_embeddings")
        run_jobs(spark, settings, ("score_catalog", "evaluate"))
        assert content_hash(settings, "item_embeddings") == before
        assert read_record(settings.layout, SCORE_CATALOG).output("item_embeddings").uri == f"{copy}/item_embeddings"
    finally:
        hidden.rename(original)


@pytest.mark.fault("B12", "recovered", "features rewritten by a run that ended between two of its tables")
def test_a_version_that_no_record_names_is_not_read(spark: Any, portal: Settings):
    tables = ("training_search_inquiry", "item_embeddings", "evaluation")
    before = {table: content_hash(portal, table) for table in tables}
    features = DeltaTable(f"{portal.warehouse.uri}/item_features")
    recorded = features.version()
    # As a run leaves it that ends between two of its tables.
    write_deltalake(features, rows_of(portal, "item_features").slice(0, 1), mode="overwrite")
    run_jobs(spark, portal, ("build_training_tables", "score_catalog", "evaluate"))
    features.restore(recorded)
    assert {table: content_hash(portal, table) for table in tables} == before


def without_times(settings: Settings) -> dict[str, tuple[Any, ...]]:
    """item_id -> what is published of it, but when it was scored."""
    found = live(settings.layout)
    assert found is not None
    columns = ["item_id", "embedding", "features_hash", "model_id"]
    rows = [row for batch in found.items(columns) for row in batch.to_pylist()]
    return {row["item_id"]: (row["embedding"], row["features_hash"], row["model_id"]) for row in rows}


@pytest.mark.fault("F2", "recovered", "a job that scores changed items alone, ended before its commit, and run again")
def test_only_changed_items_are_scored_and_all_is_as_if_every_one_were(
    spark: Any, settings_file: Path, portal: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import score_catalog

    def of(name: str, *sets: str) -> Settings:
        return load_settings(settings_file, [f"warehouse.uri={tmp_path}/{name}", *sets])

    def score(settings: Settings) -> None:
        importlib.import_module("jobs.score_catalog").run(spark, settings)

    shutil.copytree(portal.warehouse.uri, tmp_path / "a")
    some = of("a")
    run_jobs(spark, some, ("score_catalog",))  # the copy is live in its own place
    before = live(some.layout)
    assert before is not None
    items = rows_of(some, "items").to_pylist()
    gone, changed = items.pop()["item_id"], items[0]
    changed["title"] = f"teal {changed['title']}"
    items.append({**items[1], "item_id": "quite new"})
    table = DeltaTable(f"{some.warehouse.uri}/items")
    write_deltalake(table, pa.Table.from_pylist(items, pa.schema(table.schema().to_arrow())), mode="overwrite")
    shutil.copytree(some.warehouse.uri, tmp_path / "b")
    for name in ("embed_items", "build_item_features"):
        importlib.import_module(f"jobs.{name}").run(spark, some)
    assert read_record(some.layout, EMBED_ITEMS).metrics.kept_rows == len(items) - 2

    def end(*_: Any) -> int:
        raise KeyboardInterrupt

    # Ended where a kill would leave most: all is written, nothing is committed.
    with monkeypatch.context() as ending:
        ending.setattr(score_catalog, "merge_published", end)
        ending.setattr(StagedShort, "merge", end)  # which comes before it
        with pytest.raises(KeyboardInterrupt):
            score(some)
    assert live(some.layout) == before
    score(some)
    found = live(some.layout)
    assert found is not None
    assert found.metrics.scored == 2
    todo = {gone: "delete", changed["item_id"]: "upsert", "quite new": "upsert"}
    assert changes_since(some.layout, before.version) == todo
    assert changes_since(some.layout, found.version, before.version) is None, "the feed tells no way back"
    all_of_them = of("b", "score.max_changed_share=0")
    run_jobs(spark, all_of_them, ("embed_items", "build_item_features"))
    score(all_of_them)
    whole = live(all_of_them.layout)
    assert whole is not None
    assert whole.metrics.scored == len(items) == found.outputs[0].rows
    assert without_times(some) == without_times(all_of_them)
    # Of the short vectors, too, two rows were written; the others stay after the rotation of before.
    assert before.metrics.short is not None
    assert before.metrics.short.rotation
    assert found.metrics.short == before.metrics.short
    short = read_short(found, "int8:64")
    rows = {name: vector for ids, vectors in short.vectors() for name, vector in zip(ids, vectors, strict=True)}
    assert set(rows) == set(without_times(some))
    for name, (embedding, *_) in without_times(some).items():
        exact = shortened(np.array([embedding], np.float32), short.rotation, 64)[0]
        np.testing.assert_allclose(rows[name], exact, atol=0.51 * np.abs(exact).max() / 127)
    assert pl.scan_delta(f"{some.warehouse.uri}/item_embeddings").collect().height == len(items)


@pytest.mark.fault("B11", "recovered", "a new model as a candidate, published, and rolled back from, by the front door")
def test_a_candidate_is_measured_made_live_and_rolled_back(
    settings_file: Path, portal: Settings, tmp_path: Path
) -> None:
    shutil.copytree(portal.warehouse.uri, tmp_path / "warehouse")
    settings = load_settings(settings_file, [f"warehouse.uri={tmp_path}/warehouse"])
    arguments = ["--settings", str(settings_file), "--set", f"warehouse.uri={tmp_path}/warehouse"]

    def front_door(*command: str) -> dict[str, Any]:
        done = run_command([sys.executable, "-m", "pipeline.cli", command[0], *arguments, *command[1:]])
        said: dict[str, Any] = json.loads(done.splitlines()[-1])
        return said

    first = live(settings.layout)
    assert first is not None
    trained = ["--set", "train.seed=5", "--set", "score.publish=candidate"]
    front_door("run", "--from", "train", *trained)
    assert live(settings.layout) == first
    record = read_record(settings.layout, SCORE_CATALOG)
    assert record.output("item_embeddings").version is None
    assert record.metrics.health is not None
    assert record.metrics.health.neighbour_overlap is not None
    evaluated = read_record(settings.layout, EVALUATE)
    assert evaluated.made_after is not None
    assert evaluated.made_after["score_catalog"] == record.sha256
    front_door("publish", *trained)
    second = live(settings.layout)
    assert second is not None
    assert second.model_id != first.model_id
    assert {row["model_id"] for row in rows_of(settings, "item_embeddings").to_pylist()} == {second.model_id}
    assert second.short_forms == ("int8", "float16:64", "int8:64")
    assert {row["model_id"] for row in rows_of(settings, "item_short_vectors").to_pylist()} == {second.model_id}
    front_door("rollback")
    third = live(settings.layout)
    assert third is not None
    assert (third.model_id, third.run_id) == (first.model_id, first.run_id)
    assert third.short_output == first.short_output
    assert (
        rows_of(settings, "item_embeddings")
        .sort_by("item_id")
        .equals(rows_of(portal, "item_embeddings").sort_by("item_id"))
    )
    # Runs that do not train go on with the model that was brought back; to train the other one again is refused.
    front_door("score")
    fourth = live(settings.layout)
    assert fourth is not None
    assert fourth.model_id == first.model_id
    said = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", *arguments, "--from", "train", *trained[:2]],
        capture_output=True, text=True, check=False, cwd=commands.ROOT, env=commands.environment(), timeout=600,
    )  # fmt: skip
    assert said.returncode == 4, said.stdout
    assert "from which version" in said.stdout


def test_spark_starts_the_trainer_s_processes(spark: Any, portal: Settings):
    from jobs import train

    settings = portal.model_copy(update={"train": portal.train.model_copy(update={"processes": 2, "steps": 3})})
    train.run(spark, settings)
    assert read_record(portal.layout, TRAIN).metrics.processes == 2
