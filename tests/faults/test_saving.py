"""Checkpoints killed while they are saved, without room, damaged: what loads was saved so, and two are kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import CheckpointError, load_model, save_model
from itemsage_model.training.checkpoint import checkpoint_steps, load_checkpoint
from tests.fault_report import Trials
from tests.faults.saving import save, state_after
from tests.itemsage_model.factories import SPEC
from tests.killing import killer

pytestmark = pytest.mark.timeout(600)


def load(folder: Path, step: int) -> None:
    """Load a checkpoint, and compare it with what was saved."""
    expected, saved = state_after(step)
    _, optimizer = state_after(0)
    tensors = load_checkpoint(str(folder), step, optimizer, {"run_id": "r"})
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    found, wanted = (one.state_dict()["state"][0] for one in (optimizer, saved))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


@pytest.mark.fault("D4", "recovered", "saving a checkpoint killed at random moments; after each, the newest two load")
def test_killed_at_any_moment(tmp_path: Path, kills: int, trials: Trials) -> None:
    folder, in_time = tmp_path / "checkpoints", 0
    with killer("tests.faults.saving:save", tmp_path / "log") as saving:
        for step in (1, 2):
            saving.run(str(folder), step)
        for step in range(3, kills + 3):
            in_time += saving.kill(str(folder), step)
            newest = checkpoint_steps(str(folder))[-2:]
            assert newest in ([step - 2, step - 1], [step - 1, step])
            for one in newest:
                load(folder, one)
            saving.run(str(folder), step)
            assert checkpoint_steps(str(folder)) == [step - 1, step]
            load(folder, step)
            trials.add(recovered=1)
    print(f"{in_time} of {kills} kills came before the end")
    assert in_time > kills / 10


@pytest.mark.fault("D4", "loud", "no room for any part of a checkpoint: those before it load, and nothing is left")
def test_a_full_disk_leaves_the_checkpoints_before(tmp_path: Path, trials: Trials) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        save(str(folder), step)
    largest = max(path.stat().st_size for path in folder.rglob("*.safetensors"))
    with killer("tests.faults.saving:save_on_a_full_disk", tmp_path / "log") as saving:
        for most_bytes in np.linspace(0, largest - 1, 12).astype(int).tolist():
            seconds = saving.ends_with(1, str(folder), 3, most_bytes)
            assert "File too large" in saving.said
            assert checkpoint_steps(str(folder)) == [1, 2]
            assert not list(folder.rglob("*.staged"))
            for step in (1, 2):
                load(folder, step)
            trials.add(loud=1, seconds=seconds)
        saving.run(str(folder), 3, largest)
    load(folder, 3)


def damages(file: Path, flips: int, cuts: int) -> list[bytes]:
    """The content of a file with one bit flipped, and cut short."""
    whole, random = file.read_bytes(), np.random.default_rng(7)
    found = []
    for _ in range(flips):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        found.append(bytes(damaged))
    return found + [whole[: random.integers(len(whole))] for _ in range(cuts)]


def count_refused(file: Path, read: Callable[[], None], trials: Trials) -> None:
    """Damage a file 300 times by a bit and 50 times by its end: each is refused."""
    whole = file.read_bytes()
    for damaged in damages(file, 300, 50):
        file.write_bytes(damaged)
        started = time.monotonic()
        with pytest.raises(CheckpointError, match=r"damaged|no complete checkpoint"):
            read()
        trials.add(loud=1, seconds=time.monotonic() - started)
    file.write_bytes(whole)
    read()


@pytest.mark.fault(
    "D5", "loud", "weights or optimiser of a checkpoint with a bit flipped 300 times, cut short 50 times"
)
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
def test_no_damaged_checkpoint_loads(tmp_path: Path, name: str, trials: Trials) -> None:
    save(str(tmp_path), 1)
    count_refused(tmp_path / "step_000000001" / name, lambda: load(tmp_path, 1), trials)


@pytest.mark.fault("D5", "loud", "weights of a trained model with a bit flipped 300 times, cut short 50 times")
def test_no_damaged_model_loads(tmp_path: Path, trials: Trials) -> None:
    uri, identity = save_model(str(tmp_path), SPEC.build(seed=1), SPEC, {})

    def read() -> None:
        assert load_model(uri, ItemTowerSpec).model_id == identity

    count_refused(Path(uri) / "model.safetensors", read, trials)


@pytest.mark.fault("D6", "loud", "a checkpoint that was saved by another run than the one that would go on from it")
def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    save(str(tmp_path), 1)
    _, optimizer = state_after(0)
    with pytest.raises(CheckpointError, match="made with another run_id: 'r', now 'other'"):
        load_checkpoint(str(tmp_path), 1, optimizer, {"run_id": "other"})
