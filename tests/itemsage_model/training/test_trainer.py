"""The training loop on real tables: golden curve, resuming, two ranks against one, unequal tables."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deltalake import DeltaTable, write_deltalake

from itemsage_model.data.mixing import MixedBatches
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model
from itemsage_model.training import run as training
from itemsage_model.training.checkpoint import checkpoint_steps
from itemsage_model.training.inputs import make_batches
from itemsage_model.training.item_inputs import pin_inputs
from itemsage_model.training.passes import Outcome
from itemsage_model.training.trainer import Trainer, TrainingError
from schemas.records import read_record
from schemas.settings import Settings
from schemas.stages import TRAIN
from tests.itemsage_model.factories import BEYOND_THE_PAPER, write_catalog
from tests.itemsage_model.warehouses import losses_of, make_warehouse, trained_weights

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "loss_curve.json"


@pytest.mark.parametrize("form", ["sum", "literal", "mixed", "corrected", "full", "bucketed"])
def test_the_loss_curve_is_the_golden_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str):
    """Rewrite after a change that is meant to move numbers: UPDATE_GOLDEN=1 python -m pytest -k golden."""
    loss = {"form": form, "buckets": 2, "bucket_items": 6}
    settings = make_warehouse(tmp_path, {"click": [30, 20], "save": [9]}, loss=loss)
    curve = losses_of(settings, monkeypatch)
    assert len(curve) == 20
    if os.environ.get("UPDATE_GOLDEN"):
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps(golden | {form: curve}, indent=0, sort_keys=True) + "\n")
    expected = json.loads(GOLDEN.read_text())[form]
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_negatives_are_mixed_over_as_many_rows_as_the_settings_say_however_many_tasks_there_are(tmp_path: Path):
    settings = make_warehouse(tmp_path, {"click": [30], "save": [9]})
    batches = make_batches(pin_inputs(settings), settings, 0)
    assert isinstance(batches, MixedBatches)
    assert batches.catalog is not None
    assert [stream.pool_rows for stream in (batches.catalog, *batches.tasks)] == [64, 21, 21]


def test_negatives_of_a_batch_come_from_all_over_a_file_that_is_sorted_by_item(tmp_path: Path):
    rows = {f"kind_{number}": [30] for number in range(8)}
    settings = make_warehouse(tmp_path, rows, train={"batch_size": 16, "negative_count": 16})
    shutil.rmtree(tmp_path / "item_features")
    write_catalog(tmp_path / "item_features", items=160, files=1, row_group_rows=4)
    batches = iter(make_batches(pin_inputs(settings), settings, 0))
    for _ in range(3):
        batch = next(batches)
        row_groups = (batch.item_key[batch.negatives] - 1000) // 4
        # Of the 16 row groups of a pool of 64 rows; a pool shared by nine streams would hold two.
        assert len(row_groups.unique()) >= 8


@pytest.mark.parametrize("form", ["sum", "full", "bucketed"])
def test_a_model_with_all_parts_lowers_the_loss_and_knows_whom_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
):
    settings = make_warehouse(
        tmp_path, {"click": [9, 4], "save": [3]}, model=BEYOND_THE_PAPER, loss={"form": form},
        train={"steps": 60, "learning_rate": 5e-3, "table_learning_rate": 5e-3},
    )  # fmt: skip
    curve = losses_of(settings, monkeypatch)
    assert sum(sum(row) for row in curve[-10:]) < 0.9 * sum(sum(row) for row in curve[:10])
    saved = load_model(read_record(settings.layout, TRAIN).metrics.model_uri, ItemTowerSpec)
    counts = DeltaTable(tmp_path / "item_counts").to_pyarrow_table()
    trained = set(counts["item_key"].to_pylist())
    # `write_pairs` numbers the queries of each task from 0.
    assert saved.spec.trained_queries == 13
    queries = saved.build().query_adapter.identity.is_present(torch.arange(1_000))
    assert queries[:13].all()
    assert queries.sum() < 40
    assert (saved.spec.trained_items, saved.spec.task_kinds) == (len(trained), ("closeup", "closeup"))
    catalog = torch.arange(20) + 1000
    known = saved.build().item_identity.is_present(catalog)
    assert len(trained) < 20
    assert set(catalog[known].tolist()) == trained
    start = saved.spec.build(seed=settings.train.seed)
    for name, tensor in saved.build().state_dict().items():
        # Unseen items are pulled where there is a validation window to see how far.
        assert torch.equal(tensor, start.state_dict()[name]) == (name == "unseen_pull"), name


def test_training_lowers_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = make_warehouse(
        tmp_path,
        {"click": [30]},
        train={"steps": 60, "learning_rate": 5e-3, "table_learning_rate": 5e-3},
        loss={"form": "full", "frequency": "exact"},
    )
    curve = losses_of(settings, monkeypatch)
    assert sum(row[0] for row in curve[-10:]) < 0.7 * sum(row[0] for row in curve[:10])


MODELS = [{}, BEYOND_THE_PAPER, BEYOND_THE_PAPER | {"sequence": ()}]
"""The paper's, that with all parts, and that of maps alone."""


NEGATIVES = {
    "negatives": [{"query_kind": "closeup", "engagement": "return", "weight": 2.0}], "loss": {"form": "full"},
}  # fmt: skip
"""Sections of settings with explicit negatives."""

BUCKETED = {
    "model": BEYOND_THE_PAPER, "loss": {"form": "bucketed", "buckets": 2, "bucket_items": 6, "distillation": 0.1},
}  # fmt: skip
"""Sections of settings with two buckets of 6 of the 20 items."""


@pytest.mark.parametrize("sections", [*({"model": model} for model in MODELS), NEGATIVES, BUCKETED])
@pytest.mark.fault("D3", "recovered", "a run of one process ended at step 11, and gone on with, in each form")
def test_an_interrupted_run_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
):
    rows, sections = {"click": [30, 20], "save": [9]}, sections | {"train": {"checkpoint_every": 4}}
    whole = make_warehouse(tmp_path / "whole", rows, **sections)
    training.train(whole, torch.device("cpu"))
    broken = make_warehouse(tmp_path / "broken", rows, **sections)
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


@pytest.mark.fault("D5", "recovered", "the newest checkpoint damaged; all checkpoints damaged")
@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (["16/weights.safetensors"], "passing over the checkpoint after step 16: .*weights.safetensors is damaged"),
        (["16/checkpoint.json"], "resuming after step 12"),
        (["16/optimizer.safetensors", "12/weights.safetensors"], "training starts anew, from step 0"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damaged: list[str], said: str
):
    settings = make_warehouse(tmp_path, {"click": [30]}, train={"checkpoint_every": 4})
    save = training._save_trained
    left: list[dict[str, torch.Tensor]] = []

    def killed(_: Any, __: Any, outcome: Outcome, *___: Any) -> None:
        left.append({name: tensor.clone() for name, tensor in outcome.tower.state_dict().items()})
        raise RuntimeError("killed")

    monkeypatch.setattr(training, "_save_trained", killed)
    with pytest.raises(RuntimeError, match="killed"):
        training.train(settings, torch.device("cpu"))
    for name in damaged:
        (file,) = tmp_path.glob(f"checkpoints/*/step_0000000{name}")
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    monkeypatch.setattr(training, "_save_trained", save)
    training.train(settings, torch.device("cpu"))
    assert re.search(said, capsys.readouterr().out)
    for name, tensor in trained_weights(settings).items():
        assert torch.equal(tensor, left[0][name]), name


@pytest.mark.fault("D2", "loud", "a gradient that is never a number, in one process")
def test_a_gradient_that_is_never_finite_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = make_warehouse(tmp_path, {"click": [30]})
    monkeypatch.setattr("itemsage_model.training.trainer.gradient_norm", lambda _: torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match="not finite in 10 steps"):
        training.train(settings, torch.device("cpu"))


@pytest.mark.fault("D2", "recovered", "a gradient that is not a number, in two steps; a stop and a resumption between")
def test_skipped_steps_are_counted_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = make_warehouse(tmp_path, {"click": [30]}, train={"checkpoint_every": 4})
    norms = iter([1.0, math.nan, *[1.0] * 8, math.nan])
    monkeypatch.setattr("itemsage_model.training.trainer.gradient_norm", lambda _: torch.tensor(next(norms, 1.0)))
    with monkeypatch.context() as stopped:
        stopped.setattr(training, "_save_trained", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            training.train(settings, torch.device("cpu"))
    training.train(settings, torch.device("cpu"))
    assert read_record(settings.layout, TRAIN).metrics.skipped_steps == 2


def run_two_ranks(settings: Settings) -> str:
    program = (
        "import sys; from itemsage_model.train import Settings, train_on_this_machine\n"
        "sys.exit(train_on_this_machine(Settings.model_validate_json(sys.stdin.read())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=200, check=False,
        input=settings.model_dump_json(), env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("model", [MODELS[0], *(pytest.param(one, marks=pytest.mark.long) for one in MODELS[1:])])
@pytest.mark.fault("A7", "recovered", "two processes, a table of four uneven files and one of three rows")
@pytest.mark.fault("D1", "recovered", "the same: both take the same number of steps")
def test_two_ranks_finish_on_tables_of_very_unequal_sizes(tmp_path: Path, model: dict[str, Any]):
    rows = {"click": [40, 40, 40, 13], "checkout": [3]}
    train = {"processes": 2, "steps": 12, "checkpoint_every": 5}
    settings = make_warehouse(tmp_path / "w", rows, train=train, model=model)
    output = run_two_ranks(settings)
    assert "step 12/12" in output
    record = read_record(settings.layout, TRAIN)
    assert record.metrics.processes == 2
    assert [version.rows for version in record.inputs][:2] == [133, 3]


def test_two_ranks_finish_where_batches_of_one_have_no_negative(tmp_path: Path):
    train = {"processes": 2, "steps": 6, "batch_size": 4, "negatives_from": "engaged"}
    settings = make_warehouse(tmp_path / "w", {"click": [4, 4], "save": [30]}, **NEGATIVES, train=train)
    assert "step 6/6" in run_two_ranks(settings)


def test_two_ranks_finish_with_buckets_of_their_own(tmp_path: Path):
    train = {"processes": 2, "steps": 6, "checkpoint_every": 4}
    settings = make_warehouse(tmp_path / "w", {"click": [40, 13], "checkout": [3]}, **BUCKETED, train=train)
    assert "step 6/6" in run_two_ranks(settings)


@pytest.mark.fault("B12", "recovered", "a newer version of one training table, which no record names")
def test_the_record_names_versions_and_a_new_version_is_not_read(tmp_path: Path):
    settings = make_warehouse(tmp_path, {"click": [30, 20]}, train={"steps": 2})
    table = DeltaTable(tmp_path / "training_closeup_click").to_pyarrow_table()
    write_deltalake(str(tmp_path / "training_closeup_click"), table.slice(0, 1), mode="overwrite")
    training.train(settings, torch.device("cpu"))
    record = read_record(settings.layout, TRAIN)
    assert (record.inputs[0].version, record.inputs[0].rows) == (0, 50)
