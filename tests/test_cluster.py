"""A real cluster: what one machine does, two executors do alike, with the packaged zip and a relative warehouse."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from jobs.runtime.barrier import Ended, at_fault
from pipeline import commands, package
from schemas.records import read_record
from schemas.stages import TRAIN
from schemas.tables import (
    ITEM_COUNTS,
    ITEM_EMBEDDINGS,
    ITEM_FEATURES,
    ITEM_TEXT_EMBEDDINGS,
    QUERY_EMBEDDINGS,
    QUERY_VECTORS,
    VOCABULARY,
    held_out_pairs,
    training_pairs,
    validation_pairs,
)
from schemas.tasks import Task
from schemas.warehouse import Warehouse
from tests.cluster import cluster, submit_arguments

SHOP = """
preset = "paper"
[dates]
as_of = 2026-03-01
train_days = 20
test_days = 7
[[tasks]]
query_kind = "closeup"
engagement = "click"
[[tasks]]
query_kind = "search"
engagement = "click"
[features]
char_trigrams = 300
word_unigrams = 300
word_bigrams = 100
[query_encoder]
lsa_vocabulary = 300
[model]
sequence = ["text", "images", "frozen_text"]
width = 16
heads = 2
feed_forward_width = 24
head_width = 16
hash_rows = 64
[loss]
sketch_width = 4096
[train]
processes = 2
batch_size = 40
negative_count = 40
steps = 4
warmup_steps = 2
threads = 1
precision = "float32"
[demo_world]
items = 120
events = 1500
seed = 3
"""
INPUTS = ("items", "item_images", "queries", "engagement_logs")
STAGES = ("embed_queries", "embed_items", "build_vocabulary", "build_item_features", "build_training_tables", "train",
          "score_catalog")  # fmt: skip


def run_stages(folder: Path, warehouse: str, *more: str) -> str:
    """All stages up to the scored catalog, in one session; what they print."""
    arguments = ["--settings", str(folder / "shop.toml"), "--set", f"warehouse.uri={warehouse}"]
    command = commands.spark_submit("pipeline/one_session.py", [*arguments, "--stages", ",".join(STAGES), *more])
    environment = commands.environment() | {"PYTHONPATH": str(commands.ROOT), "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def rows_of(place: Path, key: tuple[str, ...]) -> list[dict[str, Any]]:
    """All rows of a table in the order of its key: files and rows within them lie as each run wrote them."""
    table = DeltaTable(place).to_pyarrow_table()
    rows: list[dict[str, Any]] = table.sort_by([(name, "ascending") for name in key]).to_pylist()
    return rows


@pytest.mark.timeout(900)
@pytest.mark.fault("C15", "recovered", "a relative warehouse on a cluster whose executors run in folders of their own")
def test_a_cluster_does_what_one_machine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.toml").write_text(SHOP)
    monkeypatch.delenv("ITEMSAGE_SPARK_SUBMIT", raising=False)
    run_stages(tmp_path, "./alone", "--prepare", "jobs/make_demo_world.py")
    package.build(tmp_path / "itemsage.zip")
    inputs = [part for name in INPUTS for part in ("--set", f"inputs.{name}=./alone/{name}")]
    with cluster(tmp_path / "cluster") as url:
        monkeypatch.setenv("ITEMSAGE_SPARK_SUBMIT", submit_arguments(url, tmp_path / "itemsage.zip"))
        assert commands.has_cluster()
        assert "step 4/4" in run_stages(tmp_path, "./spread", *inputs)
    alone, spread = (read_record(Warehouse(str(tmp_path / name)), TRAIN).metrics for name in ("alone", "spread"))
    assert (spread.model_id, spread.processes) == (alone.model_id, 2)
    tasks = (Task("closeup", "click"), Task("search", "click"))
    of_tasks = [make(task) for task in tasks for make in (training_pairs, validation_pairs, held_out_pairs)]
    for table in (VOCABULARY, QUERY_EMBEDDINGS, ITEM_TEXT_EMBEDDINGS, ITEM_FEATURES, ITEM_COUNTS, *of_tasks,
                  ITEM_EMBEDDINGS, QUERY_VECTORS):  # fmt: skip
        expected = rows_of(tmp_path / "alone" / table.name, table.key)
        assert expected, table.name
        assert rows_of(tmp_path / "spread" / table.name, table.key) == expected, table.name


@pytest.mark.fault("exit", "loud", "a rank on a cluster that fails: its own words and code, not those of who lost it")
def test_the_rank_at_fault_is_heard() -> None:
    fine, lost, bad, killed = Ended(0, 0, "a"), Ended(1, 1, "lost"), Ended(2, 3, "bad input"), Ended(3, -9, "killed")
    assert at_fault([fine, lost, bad, killed]) == bad
    assert at_fault([fine, killed, lost]) == killed
    assert at_fault([fine]) == fine


def test_the_package_has_the_same_bytes_whenever_it_is_made(tmp_path: Path) -> None:
    first = package.build(tmp_path / "a.zip")
    os.utime(commands.ROOT / "pipeline" / "package.py")
    assert package.build(tmp_path / "b.zip") == first


@pytest.mark.parametrize(
    ("extra", "is_cluster"),
    [("", False), ("--master local[4]", False), ("--master spark://h:7077", True), ("--master=yarn", True),
     ("--conf spark.master=k8s://h", True), ("--conf spark.executor.memory=1g", False)],
)  # fmt: skip
def test_a_cluster_is_named_by_its_master(extra: str, is_cluster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITEMSAGE_SPARK_SUBMIT", extra)
    assert commands.has_cluster() == is_cluster
    monkeypatch.setenv("PYSPARK_PYTHON", "./env/bin/python")
    monkeypatch.delenv("SPARK_LOCAL_IP", raising=False)
    environment = commands.environment()
    assert ("SPARK_LOCAL_IP" in environment) != is_cluster
    assert (environment["PYSPARK_PYTHON"] == "./env/bin/python") == is_cluster
