"""The training loop on real tables: golden curve, resuming, two ranks against one, unequal tables."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deltalake import DeltaTable, write_deltalake

from itemsage_model import train as training
from itemsage_model.checkpoint import CheckpointError, build_tower, checkpoint_steps, load_model
from itemsage_model.mixing import MixedBatches
from itemsage_model.trainer import Trainer, TrainingError
from schemas.records import read_record, write_record
from schemas.settings import Settings
from tests.itemsage_model.factories import VOCABULARY, write_catalog, write_pairs

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "loss_curve.json"


def make_warehouse(folder: Path, file_rows: dict[str, list[int]], **sections: Any) -> Settings:
    """A warehouse after build_training_tables, written without Spark, and settings that train on it."""
    values: dict[str, Any] = {
        "warehouse": {"uri": str(folder)},
        "dates": {"as_of": "2026-03-01", "train_days": 20, "test_days": 7},
        "tasks": [{"query_kind": "closeup", "engagement": name} for name in file_rows],
        "features": {"text_features": ["title", "brand", "size"]},
        "model": {"width": 16, "heads": 2, "feed_forward_width": 24, "head_width": 16, "hash_rows": 64},
        "loss": {"sketch_width": 4096},
        "train": {
            "batch_size": 8, "negative_count": 8, "steps": 20, "warmup_steps": 4, "log_every": 1, "shuffle_rows": 64,
            "checkpoint_every": 1000, "threads": 1, "precision": "float32",
        },
    }  # fmt: skip
    for name, keys in sections.items():
        values[name] = values[name] | keys
    settings = Settings.model_validate(values)
    counts, outputs = [], []
    for number, (name, rows) in enumerate(file_rows.items()):
        table = f"training_closeup_{name}"
        keys = write_pairs(folder / table, rows, seed=number + 1)
        outputs.append(entry(folder, table, 0, len(keys)))
        counts += [
            {"item_id": f"i{key - 1000}", "item_key": int(key), "task": f"closeup_{name}",
             "pair_count": int((keys == key).sum()), "engagement_count": 1}
            for key in sorted(set(keys))
        ]  # fmt: skip
    write_catalog(folder / "item_features")
    import pyarrow as pa

    write_deltalake(str(folder / "item_counts"), pa.Table.from_pylist(counts))
    outputs.append(entry(folder, "item_counts", 0, len(counts)))
    features = {"vocabulary_size": VOCABULARY, "vocabulary_hash": "abc"}
    for stage, entries, figures in (
        ("build_training_tables", outputs, {}),
        ("build_item_features", [entry(folder, "item_features", 0, 20)], features),
        ("embed_queries", [], {"embedding_spaces": {"closeup": "pinsage-1"}}),
    ):
        write_record(str(folder), stage, {"stage": stage, "outputs": entries, "figures": figures})
    return settings


def entry(folder: Path, table: str, version: int, rows: int) -> dict[str, Any]:
    return {"table": table, "uri": str(folder / table), "version": version, "rows": rows}


def trained_weights(settings: Settings) -> dict[str, torch.Tensor]:
    weights, spec, _ = load_model(read_record(settings.warehouse.uri, "train")["figures"]["model_uri"])
    return build_tower(weights, spec).state_dict()


def losses_of(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Train, and return the losses of every step and task."""
    reports = []
    original = Trainer.fit
    monkeypatch.setattr(
        Trainer,
        "fit",
        lambda self, batches, report, save: original(self, batches, lambda r: (reports.append(r), report(r)), save),
    )
    training.train(settings, torch.device("cpu"))
    return [[round(loss, 6) for loss in report.losses] for report in reports]


@pytest.mark.parametrize("form", ["sum", "literal", "mixed", "corrected", "full"])
def test_the_loss_curve_is_the_golden_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str):
    """Rewrite after a change that is meant to move numbers: UPDATE_GOLDEN=1 python -m pytest -k golden."""
    settings = make_warehouse(tmp_path, {"click": [30, 20], "save": [9]}, loss={"form": form})
    curve = losses_of(settings, monkeypatch)
    assert len(curve) == 20
    if os.environ.get("UPDATE_GOLDEN"):
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps(golden | {form: curve}, indent=0, sort_keys=True) + "\n")
    expected = json.loads(GOLDEN.read_text())[form]
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_negatives_are_mixed_over_as_many_rows_as_the_settings_say_however_many_tasks_there_are(tmp_path: Path):
    settings = make_warehouse(tmp_path, {"click": [30], "save": [9]})
    batches = training.make_batches(training.pin_inputs(settings), settings, 0)
    assert isinstance(batches, MixedBatches)
    assert batches.catalog is not None
    assert [stream.pool_rows for stream in (batches.catalog, *batches.tasks)] == [64, 21, 21]


def test_negatives_of_a_batch_come_from_all_over_a_file_that_is_sorted_by_item(tmp_path: Path):
    rows = {f"kind_{number}": [30] for number in range(8)}
    settings = make_warehouse(tmp_path, rows, train={"batch_size": 16, "negative_count": 16})
    shutil.rmtree(tmp_path / "item_features")
    write_catalog(tmp_path / "item_features", items=160, files=1, row_group_rows=4)
    batches = iter(training.make_batches(training.pin_inputs(settings), settings, 0))
    for _ in range(3):
        batch = next(batches)
        row_groups = (batch.item_keys[batch.negatives] - 1000) // 4
        # Of the 16 row groups of a pool of 64 rows; a pool shared by nine streams would hold two.
        assert len(row_groups.unique()) >= 8


def test_training_lowers_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = make_warehouse(
        tmp_path,
        {"click": [30]},
        train={"steps": 60, "learning_rate": 5e-3, "table_learning_rate": 5e-3},
        loss={"form": "full", "frequency": "exact"},
    )
    curve = losses_of(settings, monkeypatch)
    assert sum(row[0] for row in curve[-10:]) < 0.7 * sum(row[0] for row in curve[:10])


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = make_warehouse(tmp_path / "whole", {"click": [30, 20], "save": [9]}, train={"checkpoint_every": 4})
    training.train(whole, torch.device("cpu"))
    broken = make_warehouse(tmp_path / "broken", {"click": [30, 20], "save": [9]}, train={"checkpoint_every": 4})
    step = Trainer.train_step

    def fail_at_11(self: Trainer, batch: Any) -> Any:
        if self.step == 11:
            raise RuntimeError("killed")
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", fail_at_11)
    with pytest.raises(RuntimeError, match="killed"):
        training.train(broken, torch.device("cpu"))
    (folder,) = (tmp_path / "broken" / "checkpoints").iterdir()
    assert checkpoint_steps(str(folder)) == [4, 8]
    monkeypatch.setattr(Trainer, "train_step", step)
    training.train(broken, torch.device("cpu"))
    assert checkpoint_steps(str(folder)) == []
    for name, tensor in trained_weights(broken).items():
        assert torch.equal(tensor, trained_weights(whole)[name]), name


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = make_warehouse(tmp_path, {"click": [30]}, train={"checkpoint_every": 4})
    monkeypatch.setattr(training, "_finish", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        training.train(settings, torch.device("cpu"))
    (weights,) = tmp_path.glob("checkpoints/*/step_000000016/weights.safetensors")
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        training.train(settings, torch.device("cpu"))


def test_a_gradient_that_is_never_finite_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = make_warehouse(tmp_path, {"click": [30]})
    monkeypatch.setattr("itemsage_model.trainer.gradient_norm", lambda _: torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match="not finite in 10 steps"):
        training.train(settings, torch.device("cpu"))


def run_torchrun(settings: Settings, processes: int, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    path.write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
        "-m",
        "tests.itemsage_model.train_from_json",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(path)], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_two_ranks_finish_on_tables_of_very_unequal_sizes(tmp_path: Path):
    rows = {"click": [40, 40, 40, 13], "checkout": [3]}
    settings = make_warehouse(tmp_path / "w", rows, train={"processes": 2, "steps": 12, "checkpoint_every": 5})
    output = run_torchrun(settings, 2, tmp_path)
    assert "step 12/12" in output
    record = read_record(settings.warehouse.uri, "train")
    assert record["figures"]["processes"] == 2
    assert [e["rows"] for e in record["inputs"]][:2] == [133, 3]


def test_the_record_names_versions_and_a_new_version_is_not_read(tmp_path: Path):
    settings = make_warehouse(tmp_path, {"click": [30, 20]}, train={"steps": 2})
    table = DeltaTable(tmp_path / "training_closeup_click").to_pyarrow_table()
    write_deltalake(str(tmp_path / "training_closeup_click"), table.slice(0, 1), mode="overwrite")
    training.train(settings, torch.device("cpu"))
    record = read_record(settings.warehouse.uri, "train")
    assert (record["inputs"][0]["version"], record["inputs"][0]["rows"]) == (0, 50)
