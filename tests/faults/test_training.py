"""Training that is killed, meets a NaN, is ended by a scheduler: the weights are those of a run that nothing befell."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from itemsage_model.training import distributed
from itemsage_model.training.inputs import make_batches
from itemsage_model.training.item_inputs import pin_inputs
from itemsage_model.training.ranks import loopback_interface
from schemas.records import find_record, read_record
from schemas.settings import Settings
from schemas.stages import TRAIN
from tests.fault_report import Trials
from tests.itemsage_model.warehouses import make_warehouse, trained_weights
from tests.killing import killer

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(600)

# What each rank runs: the trainer, of which a test changes the step.
RANK = """
import math, os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
from itemsage_model.train import train_on_this_rank
from itemsage_model.training import distributed
from itemsage_model.training.trainer import Trainer
from schemas.command_line import exit_code_of_errors
from schemas.settings import Settings
step, fit, folder = Trainer.train_step, Trainer.fit, Path(sys.argv[1])
is_second = os.environ["RANK"] == "1"

def fault(trainer, batch):
    {fault}
    return batch

def train_step(self, batch):
    return step(self, fault(self, batch))

def fitted(self, *arguments):
    fit(self, *arguments)
    found = {{"skipped": self.skipped_steps, "weights": self.tower.state_dict()}}
    torch.save(found, folder / f"{{distributed.rank()}}.pt")

Trainer.train_step, Trainer.fit = train_step, fitted
with exit_code_of_errors():
    train_on_this_rank(Settings.model_validate_json((folder / "settings.json").read_text()))
"""
KILLED = "if is_second and trainer.step == 7: os.kill(os.getpid(), signal.SIGKILL)"
KILLED_ONCE = """mark = folder / "killed"
    if is_second and trainer.step == 7 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)"""
NAN_FROM = """if is_second and {when}:
        vectors = batch.query_embedding.clone()
        vectors[0] = math.nan
        batch = replace(batch, query_embedding=vectors)"""


def two_ranks(settings: Settings, folder: Path, fault: str, *launcher: str) -> subprocess.CompletedProcess[str]:
    """Train in two processes, started by our own launcher, or by another."""
    folder.mkdir(exist_ok=True)
    (folder / "rank.py").write_text(RANK.format(fault=fault))
    (folder / "settings.json").write_text(settings.model_dump_json())
    ours = "import sys; from itemsage_model.training.ranks import run_ranks; sys.exit(run_ranks(sys.argv[1:], 2, {}))"
    command = [sys.executable, *(launcher or ("-c", ours)), str(folder / "rank.py"), str(folder)]
    environment = {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": loopback_interface(),
    }  # fmt: skip
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=200, check=False, env=os.environ | environment
    )


def warehouse(folder: Path, **train: object) -> Settings:
    settings = {"steps": 12, "checkpoint_every": 4, "processes": 2, **train}
    return make_warehouse(folder, {"click": [40, 23], "save": [9]}, train=settings, deadlines={"rank_seconds": 60})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run of two processes that nothing befell."""
    folder = tmp_path_factory.mktemp("unbroken")
    settings = warehouse(folder / "w")
    done = two_ranks(settings, folder / "run", "pass")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return trained_weights(settings)


def require_equal(settings: Settings, expected: dict[str, torch.Tensor]) -> None:
    found = trained_weights(settings)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.fault("D3", "recovered", "kill -9 of one training process of two at step 7, and the same run again")
@pytest.mark.fault("A3", "loud", "kill -9 of one process of two that read batches: the other ends, with exit code 1")
def test_a_killed_rank_ends_the_run_and_the_next_one_goes_on(tmp_path: Path, unbroken: dict[str, torch.Tensor]) -> None:
    settings = warehouse(tmp_path / "w")
    started = time.monotonic()
    killed = two_ranks(settings, tmp_path / "run", KILLED)
    assert killed.returncode == 1, killed.stdout[-3000:] + killed.stderr[-3000:]
    assert time.monotonic() - started < 60
    assert "training process 1 of 2 was killed by SIGKILL; a retry goes on" in killed.stdout
    assert find_record(settings.layout, TRAIN) is None
    resumed = two_ranks(settings, tmp_path / "run", "pass")
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
    assert "resuming after step 4" in resumed.stdout
    require_equal(settings, unbroken)


@pytest.mark.long
@pytest.mark.fault("D1", "loud", "the data of one process of two ends at step 7: both end, with exit code 1")
def test_a_rank_without_data_ends_both(tmp_path: Path) -> None:
    settings = warehouse(tmp_path / "w")
    started = time.monotonic()
    done = two_ranks(settings, tmp_path / "run", "if is_second and trainer.step == 7: raise StopIteration")
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert time.monotonic() - started < 60
    assert "StopIteration" in done.stdout
    assert find_record(settings.layout, TRAIN) is None


@pytest.mark.long
@pytest.mark.fault("D3", "recovered", "kill -9 of one process of two at step 7, which torchrun starts again")
def test_torchrun_restarts_and_the_weights_are_the_same(tmp_path: Path, unbroken: dict[str, torch.Tensor]) -> None:
    settings = warehouse(tmp_path / "w")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2",
                "--max-restarts", "1", "--monitor-interval", "0.1")  # fmt: skip
    done = two_ranks(settings, tmp_path / "run", KILLED_ONCE, *torchrun)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "run" / "killed").exists()
    assert "resuming after step 4" in done.stdout
    require_equal(settings, unbroken)


@pytest.mark.fault("D2", "recovered", "NaN in one row of one rank's batch: both ranks skip the step, and count it")
def test_both_ranks_skip_a_step_with_a_nan_on_one(tmp_path: Path) -> None:
    settings = warehouse(tmp_path / "w")
    done = two_ranks(settings, tmp_path / "run", NAN_FROM.format(when="trainer.step in (3, 6)"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, second = (torch.load(tmp_path / "run" / f"{rank}.pt") for rank in range(2))
    assert first["skipped"] == second["skipped"] == 2
    assert read_record(settings.layout, TRAIN).metrics.skipped_steps == 2
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name]), name
        assert torch.isfinite(tensor).all(), name


@pytest.mark.long
@pytest.mark.fault(
    "D2", "loud", "NaN in every batch of one rank: both stop after ten, the keys of both batches on disk"
)
def test_after_ten_steps_in_a_row_the_batches_are_on_disk(tmp_path: Path) -> None:
    settings = warehouse(tmp_path / "w", steps=30)
    done = two_ranks(settings, tmp_path / "run", NAN_FROM.format(when="trainer.step >= 5"))
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert "not finite in 10 steps in a row, up to step 14" in done.stdout
    assert find_record(settings.layout, TRAIN) is None
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("w/checkpoints/*/bad_batch*.json")}
    assert sorted(found) == ["bad_batch_of_rank_0.json", "bad_batch_of_rank_1.json"]
    assert all(name in done.stdout for name in found)
    for rank, name in enumerate(sorted(found)):
        assert found[name]["step"] == 14
        batch = next(iter(make_batches_of(settings, rank, step=14)))
        pairs = found[name]["pairs"]
        assert [pair["query_key"] for pair in pairs] == batch.query_key.tolist()
        assert [pair["item_key"] for pair in pairs] == batch.item_key[batch.positive].tolist()
        assert (pairs[0]["loss"] == "nan") == (rank == 1)
        assert {pair["task"] for pair in pairs} == {"closeup_click", "closeup_save"}


def make_batches_of(settings: Settings, rank: int, step: int):  # type: ignore[no-untyped-def]
    """The batches that one rank of two has from a step on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: rank)
        patch.setattr(distributed, "world_size", lambda: 2)
        return make_batches(pin_inputs(settings), settings, step)


@pytest.mark.fault("D3", "recovered", "a run that goes on at any of its steps: every batch is the unbroken run's")
@pytest.mark.parametrize("form", ["sum", "full"])
def test_from_every_step_the_batches_are_those_of_an_unbroken_run(tmp_path: Path, form: str, trials: Trials) -> None:
    settings = make_warehouse(tmp_path, {"click": [13, 8], "save": [9]}, loss={"form": form})
    inputs = pin_inputs(settings)

    def batches(step: int, count: int) -> list[bytes]:
        made = iter(make_batches(inputs, settings, step))
        found = [next(made) for _ in range(count)]
        return [
            b"".join(tensor.numpy().tobytes() for tensor in (
                batch.item_key, batch.positive, batch.negatives, batch.query_embedding, batch.query_key,
                batch.query_item_key, batch.pair_weight, batch.task,
                *(part for element in batch.items.elements.values() for part in (element.values, element.counts)),
            ))
            for batch in found
        ]  # fmt: skip

    whole = batches(0, 15)
    assert len(set(whole)) == len(whole)
    for step in range(1, 15):
        assert batches(step, 15 - step) == whole[step:], step
        trials.add(recovered=1)


@pytest.mark.long
@pytest.mark.fault("F2", "recovered", "a training killed before each line that it prints, one run after the other")
def test_a_training_killed_between_any_two_lines_comes_to_the_same_weights(tmp_path: Path, trials: Trials) -> None:
    def prepared(name: str) -> Settings:
        return make_warehouse(tmp_path / name, {"click": [30, 20]}, train={"checkpoint_every": 3, "steps": 9})

    whole, broken = prepared("whole"), prepared("broken")
    with killer("tests.faults.saving:train", tmp_path / "log") as training:
        training.run(whole.model_dump_json())
    with killer("tests.faults.saving:train_until_line", tmp_path / "lines") as ending:
        for number in range(100):
            status, _ = ending.ask(broken.model_dump_json(), number)
            if status == 0:
                break
            assert status == -signal.SIGKILL, ending.said[-3000:]
            trials.add(recovered=1)
        assert number > 5, "nothing is printed: this test looks at nothing"
    require_equal(broken, trained_weights(whole))


@pytest.mark.long
@pytest.mark.fault("F5", "recovered", "SIGTERM and SIGKILL at random moments of a training, and the same run again")
def test_a_training_ended_at_any_moment_comes_to_the_same_weights(tmp_path: Path, kills: int, trials: Trials) -> None:
    def prepared(name: str) -> Settings:
        return make_warehouse(tmp_path / name, {"click": [30, 20]}, train={"checkpoint_every": 3})

    with killer("tests.faults.saving:train", tmp_path / "log") as training:
        training.run(prepared("first").model_dump_json())
        training.run((whole := prepared("whole")).model_dump_json())
        expected = trained_weights(whole)
        for number in range(max(2, kills // 10)):
            settings = prepared(f"w{number}")
            training.kill(settings.model_dump_json(), number=(signal.SIGTERM, signal.SIGKILL)[number % 2])
            training.run(settings.model_dump_json())
            require_equal(settings, expected)
            shutil.rmtree(tmp_path / f"w{number}")
            trials.add(recovered=1)
