"""A run: candidates are fitted before the validation window, one is chosen, trained on all, and the record says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model
from itemsage_model.training import run as training
from itemsage_model.training.passes import Outcome, Pass, run_pass
from itemsage_model.training.validation import Recall
from schemas.metrics import TrainMetrics
from schemas.records import read_record
from schemas.settings import Settings
from schemas.stages import TRAIN
from tests.itemsage_model.warehouses import make_warehouse, trained_weights

CPU = torch.device("cpu")
TRAIN_KEYS = {"steps": 12, "validate_every": 4}


def warehouse(folder: Path, validated: int = 8, preset: str = "auto", **sections: Any) -> Settings:
    sections = {"train": TRAIN_KEYS} | sections
    return make_warehouse(folder, {"click": [30, 20], "save": [15]}, validated, preset=preset, **sections)


def record_of(settings: Settings) -> TrainMetrics:
    return read_record(settings.layout, TRAIN).metrics


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Pass, Outcome]]:
    """The passes of a run; small_log is best after 8 steps with .4, large_log after 4 with .5."""
    done: list[tuple[Pass, Outcome]] = []
    best = {"small_log": Recall(8, 0.4, 0.1), "large_log": Recall(4, 0.5, float("nan"))}

    def noted(one: Pass, device: torch.device) -> Outcome:
        outcome = run_pass(one, device)
        if one.is_validated:
            outcome = replace(outcome, best=best[one.name], steps=best[one.name].step)
        done.append((one, outcome))
        return outcome

    monkeypatch.setattr(training, "run_pass", noted)
    return done


def test_auto_chooses_by_the_window_and_records_what_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = warehouse(tmp_path)
    training.train(settings, CPU)
    metrics = record_of(settings)
    assert set(metrics.candidates) == {"small_log", "large_log"}
    reached = {name: one.recall for name, one in metrics.candidates.items()}
    assert reached[metrics.preset] == max(reached.values())
    assert all(0 < value < 1 for value in reached.values())
    assert metrics.choice.startswith(f"{metrics.preset}: recall@10 of {reached[metrics.preset]:.4f}")
    assert all(f"{value:.4f}" in metrics.choice for value in reached.values())
    assert f"chosen: {metrics.choice}" in capsys.readouterr().out
    published = load_model(metrics.model_uri, ItemTowerSpec)
    validated = load_model(metrics.validated_model_uri, ItemTowerSpec)
    assert published.model_id == metrics.model_id
    assert published.spec.model == validated.spec.model
    assert not list(tmp_path.glob("checkpoints/*/*"))


def test_a_run_again_comes_to_the_same_model(tmp_path: Path) -> None:
    first, second = (warehouse(tmp_path / name) for name in ("first", "second"))
    for settings in (first, second):
        training.train(settings, CPU)
    assert record_of(first).model_id == record_of(second).model_id
    assert record_of(first).candidates == record_of(second).candidates


def test_the_final_pass_takes_the_best_steps_of_the_chosen_one_over_the_whole_period(
    tmp_path: Path, passes: list[tuple[Pass, Outcome]]
) -> None:
    settings = warehouse(tmp_path)
    training.train(settings, CPU)
    (large, fitted), (small, _), (final, outcome) = passes
    assert [one.inputs.weight for one in (small, large, final)] == ["fit_weight", "fit_weight", "pair_weight"]
    assert [one.is_validated for one in (small, large, final)] == [True, True, False]
    assert final.settings.model == large.settings.model != small.settings.model
    assert (final.settings.train.steps, outcome.steps) == (4, 4)
    assert len(final.inputs.item_keys) > len(large.inputs.item_keys)  # some items are engaged in the window alone
    assert len({one.checkpoints for one in (small, large, final)}) == 3
    metrics = record_of(settings)
    assert (metrics.preset, metrics.steps) == ("large_log", 4)
    assert metrics.choice.startswith("large_log: recall@10 of 0.5000 on the validation window after 4 steps, against ")
    assert "small_log 0.4000" in metrics.choice
    assert (metrics.candidates["small_log"].unseen_recall, metrics.candidates["large_log"].unseen_recall) == (0.1, None)
    for uri, expected in ((metrics.model_uri, outcome), (metrics.validated_model_uri, fitted)):
        for name, tensor in load_model(uri, ItemTowerSpec).build().state_dict().items():
            assert torch.equal(tensor, expected.tower.state_dict()[name]), name


def test_without_a_final_pass_the_validated_model_is_published(
    tmp_path: Path, passes: list[tuple[Pass, Outcome]]
) -> None:
    settings = warehouse(tmp_path, train=TRAIN_KEYS | {"final_pass": False})
    training.train(settings, CPU)
    assert len(passes) == 2
    metrics = record_of(settings)
    assert metrics.model_uri == metrics.validated_model_uri
    assert (metrics.preset, metrics.steps) == ("large_log", 4)


def test_a_preset_that_is_named_is_fitted_alone(tmp_path: Path) -> None:
    settings = warehouse(tmp_path, preset="small_log")
    training.train(settings, CPU)
    metrics = record_of(settings)
    assert (metrics.preset, set(metrics.candidates)) == ("small_log", {"small_log"})
    assert "Chosen because the settings file names it." in metrics.choice


def test_without_a_validation_window_the_first_candidate_takes_all_its_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = warehouse(tmp_path, validated=0)
    training.train(settings, CPU)
    metrics = record_of(settings)
    assert "no validation pair" in capsys.readouterr().out
    assert (metrics.preset, metrics.steps, metrics.candidates) == ("small_log", 12, {})
    assert metrics.validated_model_uri == ""
    assert "nothing was validated" in metrics.choice


def test_paper_reads_no_window_and_comes_to_the_weights_of_a_warehouse_without_one(tmp_path: Path) -> None:
    with_window = warehouse(tmp_path / "with", preset="paper", train={"steps": 12})
    without = warehouse(tmp_path / "without", 0, preset="paper", train={"steps": 12})
    for settings in (with_window, without):
        training.train(settings, CPU)
        metrics = record_of(settings)
        assert (metrics.preset, metrics.steps, metrics.candidates, metrics.validated_model_uri) == ("paper", 12, {}, "")
    for name, tensor in trained_weights(with_window).items():
        assert torch.equal(tensor, trained_weights(without)[name]), name


@pytest.mark.fault("D3", "recovered", "a run stopped between its two passes, and gone on with")
def test_a_run_that_is_stopped_between_its_passes_comes_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (warehouse(tmp_path / name) for name in ("whole", "broken"))
    training.train(whole, CPU)
    with monkeypatch.context() as stopped:
        stopped.setattr(training, "_final", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            training.train(broken, CPU)
    training.train(broken, CPU)
    assert record_of(broken).model_id == record_of(whole).model_id
