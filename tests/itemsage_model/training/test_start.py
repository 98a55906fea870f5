"""A pass that starts from singular vectors: as strong as is best, the same on every rank and after a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from itemsage_model.encoders.item_tower import ItemTower
from itemsage_model.training import start as module
from itemsage_model.training.inputs import Inputs, validation_of
from itemsage_model.training.item_inputs import ITEM_TOWER, inputs_for, pin_inputs
from itemsage_model.training.passes import Pass, run_pass
from itemsage_model.training.spectral import spectral_start
from itemsage_model.training.start import Strength, start_spectral
from itemsage_model.training.text_metric import text_metric
from schemas.errors import InputError
from schemas.settings import Settings
from tests.itemsage_model.warehouses import make_warehouse

CPU = torch.device("cpu")
MODEL = {
    "sequence": (), "residual": True, "item_map": True, "item_vector": True, "id_rows": 200, "query_adapter": True,
    "query_id_rows": 300,
}  # fmt: skip
TRAIN = {
    "start": "spectral", "validate_every": 2, "patience": 2, "schedule": "constant", "steps": 6, "checkpoint_every": 2,
    "table_learning_rate": 0.0, "average_decay": 0.5,
}  # fmt: skip


def made(folder: Path, **train: Any) -> tuple[Settings, Inputs, ItemTower]:
    rows = {"click": [30, 20], "save": [15]}
    settings = make_warehouse(folder, rows, validated=5, model=MODEL, train=TRAIN | train)
    inputs = inputs_for(pin_inputs(settings), settings, "fit_weight")
    tower = inputs.spec.build(seed=1)
    tower.remember(torch.from_numpy(inputs.item_keys), torch.from_numpy(inputs.query_keys))
    return settings, inputs, tower


def test_items_and_queries_get_their_vectors_at_the_strength_that_is_known(tmp_path: Path) -> None:
    settings, inputs, tower = made(tmp_path)
    known = Strength(5.0, 4.0, 2.0, 1.0, 9.0)
    assert start_spectral(tower, inputs, settings, known, None) == known
    assert (tower.residual.gamma.item(), tower.query_adapter.beta.item()) == (5.0, 4.0)
    found = spectral_start(inputs.tasks, [task.share for task in settings.tasks], "fit_engagement_count")
    for part, keys, vectors in (
        (tower.item_identity, found.item_keys, found.items),
        (tower.query_adapter.identity, found.query_keys, found.query_vectors(2.0)),
    ):
        assert np.array_equal(part(torch.from_numpy(keys)).detach().numpy(), vectors)
    change = text_metric(inputs.tasks, [task.share for task in settings.tasks], "fit_weight", settings.train.seed)
    expected = torch.from_numpy(change.change(9.0))
    assert torch.equal(tower.residual.item_map, expected)
    assert all(torch.equal(weight, expected) for weight in tower.query_adapter.weight)


@pytest.mark.parametrize("key", ["id_rows", "query_id_rows"])
def test_fewer_rows_than_what_has_pairs_is_an_error_with_the_number_needed(tmp_path: Path, key: str) -> None:
    settings, _, _ = made(tmp_path)
    few = settings.model_copy(update={"model": settings.model.model_copy(update={key: 5})})
    inputs = inputs_for(pin_inputs(settings), few, "fit_weight")
    with pytest.raises(InputError, match=rf"model\.{key}: expected at least \d+, .*found 5"):
        start_spectral(inputs.spec.build(seed=1), inputs, few, None, None)


def test_items_without_a_map_have_no_metric(tmp_path: Path) -> None:
    settings, inputs, _ = made(tmp_path)
    model = settings.model.model_copy(update={"item_map": False})
    without = settings.model_copy(update={"model": model})
    inputs = inputs_for(inputs, without, "fit_weight")
    tower = inputs.spec.build(seed=1)
    tower.remember(torch.from_numpy(inputs.item_keys), torch.from_numpy(inputs.query_keys))
    validation = validation_of(inputs, without)
    assert validation is not None
    assert start_spectral(tower, inputs, without, None, validation).text == 0
    assert not tower.query_adapter.weight.any()


@pytest.mark.parametrize("half_life", [0, 30])
def test_the_strength_is_the_best_of_those_tried_on_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half_life: float
) -> None:
    settings, inputs, tower = made(tmp_path)
    aged = settings.training_tables.model_copy(update={"recency_half_life_days": half_life})
    settings = settings.model_copy(update={"training_tables": aged})
    validation = validation_of(inputs, settings)
    assert validation is not None
    tried = []
    calibrate = validation.calibrate

    def noted(*arguments: Any) -> Any:
        found = calibrate(*arguments)
        strengths = tower.residual.gamma.item(), tower.query_adapter.beta.item()
        tables = tower.query_adapter.identity.table.clone(), tower.residual.item_map.clone()
        tried.append((found.recall.worth, strengths, *tables))
        return found

    monkeypatch.setattr(validation, "calibrate", noted)
    chosen = start_spectral(tower, inputs, settings, None, validation)
    best = max(tried, key=lambda one: one[0])
    others = len(module._SMOOTHINGS) + len(module._TEXTS) - 2
    assert len(tried) == len(module._STRENGTHS) + others + bool(half_life)
    assert (chosen.items, chosen.queries) == pytest.approx(best[1])
    assert torch.equal(tower.query_adapter.identity.table, best[2])
    assert torch.equal(tower.residual.item_map, best[3])
    assert not tower.unseen_pull.any()


def test_identities_that_are_not_to_learn_stay_and_the_rest_learns(tmp_path: Path) -> None:
    settings, inputs, tower = made(tmp_path)
    strength = Strength(3.0, 2.0, 0.0)
    start_spectral(tower, inputs, settings, strength, None)
    one = Pass("", settings, ITEM_TOWER, inputs, settings.layout.checkpoints("one"), "", "run", strength=strength)
    outcome = run_pass(one, CPU)
    trained = outcome.tower.state_dict()
    for name, tensor in tower.state_dict().items():
        is_fixed = name in tower.lookup_tables or name.endswith((".keys", "unseen_pull", "kind_of_task"))
        assert torch.equal(tensor, trained[name]) == is_fixed or name.endswith("draws"), name
    assert outcome.strength == strength


def test_a_pass_of_no_steps_is_its_start(tmp_path: Path) -> None:
    settings, inputs, tower = made(tmp_path)
    strength = Strength(3.0, 2.0, 1.0)
    start_spectral(tower, inputs, settings, strength, None)
    without = settings.model_copy(update={"train": settings.train.model_copy(update={"steps": 0})})
    one = Pass("", without, ITEM_TOWER, inputs, settings.layout.checkpoints("one"), "", "run", strength=strength)
    outcome = run_pass(one, CPU)
    for name, tensor in tower.state_dict().items():
        assert torch.equal(tensor, outcome.tower.state_dict()[name]), name


def test_a_pass_that_was_stopped_goes_on_with_the_strength_that_it_started_with(tmp_path: Path) -> None:
    settings, inputs, _ = made(tmp_path)
    short = settings.model_copy(update={"train": settings.train.model_copy(update={"steps": 3})})
    strength = Strength(3.0, 2.0, 1.0)
    one = Pass("", short, ITEM_TOWER, inputs, settings.layout.checkpoints("one"), "", "run", strength=strength)
    run_pass(one, CPU)
    resumed = run_pass(replace(one, settings=settings, strength=None), CPU)
    whole = run_pass(replace(one, settings=settings, checkpoints=settings.layout.checkpoints("whole")), CPU)
    assert resumed.strength == strength
    for name, tensor in whole.tower.state_dict().items():
        assert torch.equal(tensor, resumed.tower.state_dict()[name]), name
