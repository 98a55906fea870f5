"""Passes: one that is validated ends when it is enough, with its best weights, also after a stop and on two ranks.

The same file is the program that each of the two ranks runs: see `main`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from itemsage_model.training import distributed, start
from itemsage_model.training.checkpoint import checkpoint_steps
from itemsage_model.training.inputs import validation_of
from itemsage_model.training.item_inputs import ITEM_TOWER, inputs_for, pin_inputs
from itemsage_model.training.passes import Outcome, Pass, run_pass
from itemsage_model.training.trainer import Trainer
from itemsage_model.training.validation import Calibration, Recall
from schemas.settings import Settings
from tests.itemsage_model.factories import BEYOND_THE_PAPER
from tests.itemsage_model.training.test_distributed import environment_of_two
from tests.itemsage_model.warehouses import make_warehouse

CPU = torch.device("cpu")
ROWS = {"click": [30, 20], "save": [15]}
TRAIN = {"validate_every": 3, "patience": 2, "schedule": "constant", "checkpoint_every": 4, "steps": 30}


@dataclass
class Scripted:
    """A validation whose recall is best after step 9."""

    asked: list[int] = field(default_factory=list)

    def recall(self, tower: Any, step: int, device: torch.device) -> Recall:
        del tower, device
        self.asked.append(step)
        return Recall(step, 0.5 - abs(step - 9) / 100, float("nan"))

    def calibrate(self, tower: Any, step: int, device: torch.device) -> Calibration:
        return Calibration(0.0, self.recall(tower, step, device))


def warehouse(folder: Path, model: dict[str, Any] | None = None, **train: Any) -> Settings:
    return make_warehouse(folder, ROWS, validated=5, model=model or {}, train=TRAIN | train)


def validated(settings: Settings, validation: Any) -> Outcome:
    """A fit pass, measured by some validation."""
    inputs = inputs_for(pin_inputs(settings), settings, "fit_weight")
    folder = settings.layout.checkpoints("fit")
    return run_pass(
        Pass("fit", settings, ITEM_TOWER, inputs, folder, "", "run", is_validated=True, validation=validation), CPU
    )  # fmt: skip


def plain(settings: Settings, steps: int) -> Outcome:
    """The same pass for so many steps, measured by nobody."""
    train = settings.train.model_copy(update={"steps": steps, "checkpoint_every": 1_000})
    settings = settings.model_copy(update={"train": train})
    inputs = inputs_for(pin_inputs(settings), settings, "fit_weight")
    return run_pass(Pass("", settings, ITEM_TOWER, inputs, settings.layout.checkpoints("plain"), "", "run"), CPU)


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_a_validated_pass_ends_after_its_patience_with_the_weights_of_its_best_step(
    tmp_path: Path, decay: float
) -> None:
    settings, validation = warehouse(tmp_path, average_decay=decay), Scripted()
    outcome = validated(settings, validation)
    assert [step for step in validation.asked if step] == [3, 6, 9, 12, 15]
    assert [one.step for one in outcome.history] == validation.asked
    assert (outcome.steps, outcome.recall) == (9, pytest.approx(0.5))
    same_weights(outcome.tower.state_dict(), plain(settings, 9).tower.state_dict())


def test_a_pass_that_is_not_validated_takes_all_its_steps(tmp_path: Path) -> None:
    outcome = plain(warehouse(tmp_path), 7)
    assert (outcome.steps, outcome.best, outcome.history, outcome.recall) == (7, None, [], 0.0)


def test_a_pass_without_enough_to_stop_for_is_measured_after_its_last_step(tmp_path: Path) -> None:
    validation = Scripted()
    outcome = validated(warehouse(tmp_path, steps=8), validation)
    assert [step for step in validation.asked if step] == [3, 6, 8]
    assert outcome.steps == 8


@pytest.mark.parametrize("model", [{}, BEYOND_THE_PAPER])
@pytest.mark.fault("D3", "recovered", "a fit pass stopped between two measurements, and gone on with")
def test_a_fit_pass_that_was_stopped_comes_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    """Also where what is best was found before the stop, and its weights are in the checkpoint alone."""
    whole, broken = (warehouse(tmp_path / name, model, average_decay=0.7) for name in ("whole", "broken"))
    step = Trainer.train_step
    ends = []
    for settings, stop in ((whole, None), (broken, 14)):
        inputs = inputs_for(pin_inputs(settings), settings, "fit_weight")
        validation = validation_of(inputs, settings)
        assert validation is not None
        recall, script = validation.recall, Scripted()
        monkeypatch.setattr(validation, "recall", lambda *args, script=script: script.recall(*args))
        monkeypatch.setattr(validation, "calibrate", script.calibrate)

        def stopped(self: Trainer, batch: Any, stop: int | None = stop) -> Any:
            if self.step == stop:
                raise RuntimeError("killed")
            return step(self, batch)

        monkeypatch.setattr(Trainer, "train_step", stopped)
        if stop is not None:
            with pytest.raises(RuntimeError, match="killed"):
                validated(settings, validation)
            assert checkpoint_steps(settings.layout.checkpoints("fit")) == [8, 12]
        monkeypatch.setattr(Trainer, "train_step", step)
        outcome = validated(settings, validation)
        ends.append((outcome, recall(outcome.tower, outcome.steps, CPU)))
    (one, found), (other, found_again) = ends
    assert one.steps == other.steps == 9
    assert [entry.of_all for entry in one.history] == [entry.of_all for entry in other.history]
    assert found.of_all == found_again.of_all
    same_weights(one.tower.state_dict(), other.tower.state_dict())


def test_what_counts_are_the_averaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = warehouse(tmp_path, average_decay=0.7)
    trajectory: list[dict[str, Tensor]] = []
    step = Trainer.train_step

    def noted(self: Trainer, batch: Any) -> Any:
        done = step(self, batch)
        trajectory.append({name: parameter.detach().clone() for name, parameter in self.tower.named_parameters()})
        return done

    monkeypatch.setattr(Trainer, "train_step", noted)
    outcome = plain(settings, 6)
    expected = trajectory[0]
    for weights in trajectory[1:]:
        expected = {name: 0.7 * expected[name] + 0.3 * tensor for name, tensor in weights.items()}
    moved = False
    for name, parameter in outcome.tower.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], msg=name)
        moved |= not torch.equal(parameter, trajectory[-1][name])
    assert moved


def main(folder: str) -> None:
    """What each of two ranks does: a fit pass that rank 0 measures, and starts in longer than ranks wait."""
    settings = Settings.model_validate_json((Path(folder) / "settings.json").read_text())
    is_spectral = settings.train.start == "spectral"
    distributed.start(timeout_seconds=4 if is_spectral else 60)
    inputs = inputs_for(pin_inputs(settings), settings, "fit_weight")
    is_first = distributed.rank() == 0
    give = start._Start.give
    slept = []

    def slowly(self: Any, strength: Any) -> None:
        if not slept:
            slept.append(time.sleep(7))
        give(self, strength)

    start._Start.give = slowly
    outcome = validated(settings, validation_of(inputs, settings) if is_first else None)
    history = [(one.step, one.of_all, one.of_unseen) for one in outcome.history]
    end = {"steps": outcome.steps, "history": history, "weights": outcome.tower.state_dict()}
    torch.save(end, Path(folder) / f"{distributed.rank()}.pt")
    distributed.stop()


SPECTRAL = {
    "sequence": (), "residual": True, "item_map": True, "item_vector": True, "query_adapter": True, "query_id_rows": 99,
}  # fmt: skip


@pytest.mark.parametrize(("model", "start"), [(BEYOND_THE_PAPER, "random"), (SPECTRAL, "spectral")])
def test_two_ranks_stop_at_the_same_step_with_the_same_weights(
    tmp_path: Path, model: dict[str, Any], start: str
) -> None:
    settings = warehouse(tmp_path, model, average_decay=0.7, processes=2, learning_rate=0.01, start=start)
    (tmp_path / "settings.json").write_text(settings.model_dump_json(exclude_unset=True))
    environment = environment_of_two(tmp_path)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)], env=environment | {"RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["steps"] == second["steps"]
    assert first["history"] == second["history"]
    assert len({of_all for _, of_all, _ in first["history"]}) > 1 or start == "spectral"
    same_weights(first["weights"], second["weights"])


if __name__ == "__main__":
    main(sys.argv[1])
