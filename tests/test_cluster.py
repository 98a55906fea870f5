"""A real cluster: what one machine does, two executors do alike, with the packaged zip and a relative warehouse."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from itemsage_model.train import start_ranks
from jobs.runtime.barrier import Ended, at_fault
from pipeline import commands, package
from pipeline.reference import LISTS
from schemas.records import read_record
from schemas.settings import Settings
from schemas.stages import TRAIN
from tests.cluster import cluster, submit_arguments
from tests.itemsage_model.warehouses import make_warehouse


def write_toml(path: Path, settings: Settings) -> None:
    """Settings as a file; JSON's values are TOML's."""
    keys, lines = [], []
    for name, section in settings.model_dump(mode="json").items():
        if not isinstance(section, dict | list):
            keys.append(f"{name} = {json.dumps(section)}")
            continue
        for table in section if name in LISTS else [section]:
            lines.append(f"[[{name}]]" if name in LISTS else f"[{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path.write_text("\n".join([*keys, *lines]))


@pytest.mark.timeout(600)
@pytest.mark.fault("C15", "recovered", "a relative warehouse on a cluster whose executors run in folders of their own")
def test_a_cluster_does_what_one_machine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_warehouse(tmp_path / "w", {"click": [40, 9]}, train={"processes": 2, "steps": 4})
    assert start_ranks(settings) == 0
    alone = read_record(settings.layout, TRAIN).metrics.model_id
    (tmp_path / "w" / "_runs" / "train.json").unlink()

    items = {"item_id": ["i1", "i2"], "title": ["red mug", "blue mug"]}
    write_deltalake(str(tmp_path / "w" / "items"), pa.table(items))
    relative = settings.model_copy(update={"warehouse": settings.warehouse.model_copy(update={"uri": "./w"})})
    write_toml(tmp_path / "shop.toml", relative)
    package.build(tmp_path / "itemsage.zip")
    with cluster(tmp_path / "cluster") as url:
        monkeypatch.setenv("ITEMSAGE_SPARK_SUBMIT", submit_arguments(url, tmp_path / "itemsage.zip"))
        assert commands.has_cluster()
        stages = ["--settings", str(tmp_path / "shop.toml"), "--stages", "build_vocabulary,train"]
        command = commands.spark_submit("pipeline/one_session.py", stages)
        environment = commands.environment() | {"PYTHONPATH": str(commands.ROOT), "SPARK_LOCAL_IP": "127.0.0.1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "step 4/4" in done.stdout
    metrics = read_record(settings.layout, TRAIN).metrics
    assert (metrics.model_id, metrics.processes) == (alone, 2)
    tokens = DeltaTable(tmp_path / "w" / "vocabulary").to_pyarrow_table()["token"].to_pylist()
    assert {"mug", "red", "blue"} <= set(tokens)


@pytest.mark.fault(
    "exit", "refused", "a rank on a cluster that fails: its own words and code, not those of who lost it"
)
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
