"""When a pass has trained enough, and that it keeps its best weights."""

from __future__ import annotations

import math

import pytest
import torch

from itemsage_model.encoders.item_tower import ItemTower
from itemsage_model.training.early_stopping import EarlyStopping
from itemsage_model.training.validation import Recall
from tests.itemsage_model.factories import FULL_SPEC


def model() -> ItemTower:
    return FULL_SPEC.build(seed=1)


def stopped(figures: list[float], patience: int) -> tuple[EarlyStopping, list[bool], list[dict[str, torch.Tensor]]]:
    """Measurements of a tower that moves between them; what was said, and its weights at each of them."""
    stopping, trained, said, weights = EarlyStopping(patience), model(), [], []
    for step, of_all in enumerate(figures, 1):
        trained.log_temperature.data += 1
        weights.append({name: tensor.clone() for name, tensor in trained.state_dict().items()})
        said.append(stopping.add(Recall(10 * step, of_all, float("nan")), trained))
    return stopping, said, weights


@pytest.mark.parametrize(
    ("figures", "patience", "best", "is_enough"),
    [
        ([0.1, 0.3, 0.2, 0.25, 0.29], 3, 1, [False, False, False, False, True]),
        ([0.1, 0.3, 0.3], 1, 1, [False, False, True]),  # the same again is no gain
        ([0.3, 0.2, 0.4, 0.1, 0.1], 2, 2, [False, False, False, False, True]),  # a gain starts the count anew
        ([0.0, 0.0], 4, 0, [False, False]),
    ],
)
def test_it_is_enough_after_so_many_measurements_without_a_gain(
    figures: list[float], patience: int, best: int, is_enough: list[bool]
) -> None:
    stopping, said, weights = stopped(figures, patience)
    assert said == is_enough
    assert stopping.best is not None
    assert (stopping.best.step, stopping.best.of_all) == (10 * (best + 1), figures[best])
    for name, tensor in weights[best].items():
        assert torch.equal(stopping.weights[name], tensor), name


@pytest.mark.parametrize(
    ("figures", "is_enough"),
    [
        ([0.1, 0.2, 0.29, 0.31], [False, False, True, False]),  # too little at half time
        ([0.1, 0.19, 0.3, 0.31], [False, True, False, False]),  # and earlier
        ([0.1, 0.2, 0.3, 0.3], [False, False, False, False]),
        ([0.1, 0.4, 0.2, 0.2], [False, False, False, False]),  # its best counts
    ],
)
def test_what_is_far_behind_has_had_enough(figures: list[float], is_enough: list[bool]) -> None:
    stopping = EarlyStopping(9, hopeless=0.3, half_time=30)
    assert [stopping.add(Recall(10 * n, of_all, 0.0), model()) for n, of_all in enumerate(figures, 1)] == is_enough


def test_early_stopping_goes_on_from_its_tensors() -> None:
    whole, _, _ = stopped([0.1, 0.3, 0.3, 0.2], 4)
    resumed = EarlyStopping(4)
    resumed.take({name: tensor.clone() for name, tensor in whole.to_tensors().items()})
    assert resumed.best is not None
    assert (resumed.best.step, resumed.best.of_all) == (20, 0.3)
    assert [(one.step, one.of_all) for one in resumed.history] == [(one.step, one.of_all) for one in whole.history]
    assert all(math.isnan(one.of_unseen) for one in resumed.history)
    assert set(resumed.weights) == set(whole.weights)
    assert all(torch.equal(tensor, whole.weights[name]) for name, tensor in resumed.weights.items())
    assert [stopping.add(Recall(50, 0.1, 0.0), model()) for stopping in (whole, resumed)] == [False, False]
    assert [stopping.add(Recall(60, 0.1, 0.0), model()) for stopping in (whole, resumed)] == [True, True]


def test_early_stopping_without_a_measurement_takes_nothing() -> None:
    empty = EarlyStopping(4)
    empty.take({})
    assert (empty.history, empty.best, empty.weights) == ([], None, {})
    empty.take(EarlyStopping(4).to_tensors())
    assert (empty.history, empty.best, empty.weights) == ([], None, {})


def test_what_is_worth_most_is_the_best_whatever_its_recall_of_all() -> None:
    stopping = EarlyStopping(1)
    stopping.add(Recall(10, 0.3, 0.1, worth=0.2), model())
    assert not stopping.add(Recall(20, 0.25, 0.2, worth=0.25), model())
    assert stopping.best is not None
    assert stopping.best.step == 20
    resumed = EarlyStopping(1)
    resumed.take(stopping.to_tensors())
    assert resumed.best == stopping.best
