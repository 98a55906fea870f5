"""train_graph, whole: it learns who belongs together, resumes where it was, and two processes are one run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from itemsage_model.data.graph_nodes import read_nodes
from itemsage_model.data.pinned_files import pin_version
from itemsage_model.encoders.graph_tower import GraphTowerSpec
from itemsage_model.encoders.model_files import load_model
from itemsage_model.training import run as training
from itemsage_model.training.graph_inputs import GRAPH_TOWER
from itemsage_model.training.ranks import loopback_interface
from itemsage_model.training.trainer import Trainer
from schemas.checksums import row_checksums
from schemas.columns import Table
from schemas.contracts import ITEM_TEXT
from schemas.errors import TableError
from schemas.graph_tables import GRAPH_NODES, GRAPH_PAIRS, NODE
from schemas.metrics import GraphMetrics
from schemas.records import RunRecord, TableVersion, find_record, read_record, write_record
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_GRAPH, TRAIN_GRAPH
from schemas.tables import EMBEDDING_DIM, ROW_CHECKSUM
from tests.itemsage_model.factories import write_table

ROOT = Path(__file__).resolve().parents[2]
CLUBS, MEMBERS = 6, 8
COUNT = CLUBS * MEMBERS
STEPS, KILL_AT, CHECKPOINT_EVERY = 60, 37, 30

# What each rank runs; the second one is killed once, in the step that a test names.
RANK = """
import os, signal, sys
from pathlib import Path
from itemsage_model.train import train_on_this_rank
from itemsage_model.training.courses import course_of
from itemsage_model.training.trainer import Trainer
from schemas.settings import Settings
step, folder, kill_at = Trainer.train_step, Path(sys.argv[1]), int(sys.argv[2])

def train_step(self, batch):
    if os.environ["RANK"] == "1" and self.step == kill_at and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    with (folder / ("steps-" + os.environ["RANK"])).open("a") as steps:
        steps.write(f"{self.step}\\n")
    return step(self, batch)

Trainer.train_step = train_step
train_on_this_rank(Settings.model_validate_json((folder / "settings.json").read_text()), course_of("train_graph"))
"""


def graph(folder: Path, pair_files: int = 2, **sections: Any) -> Settings:
    """A warehouse after build_item_graph, without Spark: clubs of items, whose features are noise, and loners."""
    train = {"threads": 1, "precision": "float32", "shuffle_rows": 64, "log_every": 1, "prefetch_batches": 1}
    values: dict[str, Any] = {
        "warehouse": {"uri": str(folder)},
        "preset": "paper",
        "dates": {"as_of": "2026-03-01", "train_days": 20, "test_days": 7},
        "graph": {"width": 16, "batch_size": 8, "negative_count": 16, "steps": STEPS, "learning_rate": 0.01},
        "train": train | {"checkpoint_every": CHECKPOINT_EVERY} | sections.pop("train", {}),
        "deadlines": {"rank_seconds": 120},
    }
    settings = Settings.model_validate(values | sections)
    random, rows = np.random.default_rng(5), np.arange(COUNT)
    near = [np.array([other for other in rows if other // MEMBERS == row // MEMBERS != CLUBS - 1 and other != row])[:3]
            for row in rows]  # fmt: skip
    nodes = {
        "item_id": [f"i{row}" for row in rows],
        "item_key": rows + 100,
        "node_embedding": [random.standard_normal(EMBEDDING_DIM).astype("<f2").tobytes() for _ in rows],
        "neighbour_keys": [(keys + 100).astype("<i8").tobytes() for keys in near],
        "neighbour_weights": [np.full(len(keys), 1 / max(1, len(keys)), "<f4").tobytes() for keys in near],
        "hard_keys": [np.array([(row + MEMBERS) % COUNT + 100], "<i8").tobytes() for row in rows],
    }
    pairs = np.array([(a, b) for a in rows for b in rows if a != b and a // MEMBERS == b // MEMBERS != CLUBS - 1])
    each = {"query_item_key": pairs[:, 0] + 100, "item_key": pairs[:, 1] + 100,
            "pair_weight": np.ones(len(pairs), np.float32)}  # fmt: skip
    outputs = (write(folder, GRAPH_NODES, nodes, 2), write(folder, GRAPH_PAIRS, each, pair_files))
    metrics = GraphMetrics("query", 0, 0, 0, 0, 0, 0, len(pairs), 0, EMBEDDING_DIM)
    write_record(settings.layout, RunRecord("build_item_graph", metrics, outputs=outputs, made_with={ITEM_TEXT: "lsa"}))
    return settings


def write(folder: Path, table: Table, columns: dict[str, Any], files: int) -> TableVersion:
    whole = pa.table(columns)
    (batch,) = whole.to_batches()
    whole = whole.append_column(ROW_CHECKSUM, pa.array(row_checksums(batch, table)))
    parts = np.array_split(np.random.default_rng(1).permutation(len(whole)), files)
    write_table(folder / table.name, [whole.take(pa.array(part)) for part in parts])
    return TableVersion(table.name, str(folder / table.name), 0, len(whole))


def weights(settings: Settings) -> dict[str, torch.Tensor]:
    uri = read_record(settings.layout, TRAIN_GRAPH).metrics.model_uri
    return load_model(uri, GraphTowerSpec).build().state_dict()


def closeness(settings: Settings, tower: Any) -> float:
    """By how much nearer members of a club are than others, as a cosine."""
    version = read_record(settings.layout, BUILD_ITEM_GRAPH).output(GRAPH_NODES.name)
    nodes = read_nodes(pin_version(version), NODE.sized(slots=1, length=EMBEDDING_DIM))
    joined = (CLUBS - 1) * MEMBERS
    with torch.inference_mode():
        vectors = tower(nodes.around(np.arange(joined), 2)).numpy()
    is_club = np.equal.outer(np.arange(joined) // MEMBERS, np.arange(joined) // MEMBERS)
    cosines = vectors @ vectors.T
    return float(cosines[is_club & ~np.eye(joined, dtype=bool)].mean() - cosines[~is_club].mean())


def test_it_learns_who_belongs_together_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, settings = graph(tmp_path / "one"), graph(tmp_path / "other")
    training.train(undisturbed, torch.device("cpu"), GRAPH_TOWER)
    trained = read_record(undisturbed.layout, TRAIN_GRAPH)
    model = load_model(trained.metrics.model_uri, GraphTowerSpec)
    assert trained.made_with == {ITEM_TEXT: "lsa"}
    assert (model.spec.node_length, model.spec.dim, model.spec.text_space) == (EMBEDDING_DIM, 256, "lsa")
    before = GRAPH_TOWER.begin(GRAPH_TOWER.pin(settings), GRAPH_TOWER.settings_of(settings))
    assert closeness(undisturbed, model.build()) > closeness(undisturbed, before) + 0.3

    steps: list[int] = []
    step = Trainer.train_step

    def broken(self: Trainer, batch: Any) -> Any:
        if self.step == KILL_AT and not steps.count(KILL_AT - 1) > 1:
            raise KeyboardInterrupt
        steps.append(self.step)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", broken)
    with pytest.raises(KeyboardInterrupt):
        training.train(settings, torch.device("cpu"), GRAPH_TOWER)
    assert find_record(settings.layout, TRAIN_GRAPH) is None
    training.train(settings, torch.device("cpu"), GRAPH_TOWER)
    assert steps == [*range(KILL_AT), *range(CHECKPOINT_EVERY, STEPS)]
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(tensor, weights(settings)[name]), name


def two_ranks(settings: Settings, folder: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "rank.py").write_text(RANK)
    (folder / "settings.json").write_text(settings.model_dump_json())
    ours = "import sys; from itemsage_model.training.ranks import run_ranks; sys.exit(run_ranks(sys.argv[1:-1], 2, {}))"
    # The launcher adds a folder of its own as the last argument.
    command = [sys.executable, "-c", ours, str(folder / "rank.py"), str(folder), str(kill_at), ""]
    environment = {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": loopback_interface(),
    }  # fmt: skip
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False, env=os.environ | environment
    )


@pytest.mark.timeout(900)
def test_two_processes_resume_after_one_was_killed_as_if_nothing_had_been(tmp_path: Path) -> None:
    train = {"processes": 2}
    calm, settings = graph(tmp_path / "one", train=train), graph(tmp_path / "other", train=train)
    done = two_ranks(calm, tmp_path / "calm", kill_at=-1)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_record(calm.layout, TRAIN_GRAPH).metrics.processes == 2
    killed = two_ranks(settings, tmp_path / "killed", kill_at=KILL_AT)
    assert killed.returncode != 0
    assert find_record(settings.layout, TRAIN_GRAPH) is None
    resumed = two_ranks(settings, tmp_path / "killed", kill_at=KILL_AT)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    second = [int(step) for step in (tmp_path / "killed" / "steps-1").read_text().split()]
    assert second == [*range(KILL_AT), *range(CHECKPOINT_EVERY, STEPS)]
    for name, tensor in weights(calm).items():
        assert torch.equal(tensor, weights(settings)[name]), name
    model = load_model(read_record(calm.layout, TRAIN_GRAPH).metrics.model_uri, GraphTowerSpec)
    assert closeness(calm, model.build()) > 0.3


def test_a_pair_of_an_item_that_is_no_node_is_refused(tmp_path: Path) -> None:
    settings = graph(tmp_path)
    pairs = {"query_item_key": [100, 7], "item_key": [101, 100], "pair_weight": np.ones(2, np.float32)}
    odd = write(tmp_path / "odd", GRAPH_PAIRS, pairs, 1)
    record = read_record(settings.layout, BUILD_ITEM_GRAPH)
    outputs = (record.output(GRAPH_NODES.name), odd)
    write_record(
        settings.layout, RunRecord("build_item_graph", record.metrics, outputs=outputs, made_with=record.made_with)
    )
    with pytest.raises(TableError, match=r"graph_pairs.*keys of nodes"):
        training.train(settings, torch.device("cpu"), GRAPH_TOWER)
