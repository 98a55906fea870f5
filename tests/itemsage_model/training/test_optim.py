"""Learning rates: a warm-up from 0, then a cosine to 0 or the same rate on; factors of single parameters."""

from __future__ import annotations

import math

import pytest

from itemsage_model.encoders.item_tower import ItemTower
from itemsage_model.training.optim import make_optimizer, set_learning_rates
from schemas.settings import TrainSettings
from tests.itemsage_model.factories import FULL_SPEC

SETTINGS = TrainSettings(steps=20, warmup_steps=4, learning_rate=0.01, table_learning_rate=0.02, weight_decay=0.1)


def rates(settings: TrainSettings) -> list[list[float]]:
    """The rates of all groups of parameters at every step."""
    optimizer = make_optimizer(FULL_SPEC.build(), settings)
    found = []
    for step in range(settings.steps):
        set_learning_rates(optimizer, step, settings)
        found.append([group["lr"] / group["start_rate"] for group in optimizer.param_groups])
    return found


def test_a_constant_rate_stays_after_the_warm_up():
    found = rates(SETTINGS.model_copy(update={"schedule": "constant"}))
    assert [row[0] for row in found] == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 17])
    assert all(row == pytest.approx([row[0]] * len(row)) for row in found)


def test_a_cosine_falls_to_zero():
    found = [row[0] for row in rates(SETTINGS)]
    expected = [0.5 * (1 + math.cos(math.pi * (step - 4) / 16)) for step in range(4, 20)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, *expected])
    assert found[-1] < 0.02


def test_tables_and_scales_have_rates_of_their_own_and_no_decay():
    tower: ItemTower = FULL_SPEC.build()
    optimizer = make_optimizer(tower, SETTINGS)
    of = {parameter: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for parameter in g["params"]}
    found = {name: of[parameter] for name, parameter in tower.named_parameters()}
    assert found["residual.alpha"] == found["query_adapter.beta"] == pytest.approx((0.1, 0.0))
    for table in ("hash_embedding.table", "item_identity.table", "query_adapter.identity.table"):
        assert found[table] == (0.02, 0.0)
    assert found["residual.item_map"] == found["query_adapter.weight"] == (0.01, 0.1)
    assert found["log_temperature"] == (0.01, 0.0)
