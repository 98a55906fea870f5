"""What a shop has without a model, on the validation window: against a slow loop over rows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch

from itemsage_model.training import rivals as module
from itemsage_model.training.inputs import validation_of
from itemsage_model.training.item_inputs import pin_inputs
from itemsage_model.training.rivals import measure_rivals
from itemsage_model.training.validation import Recall, Validation
from tests.itemsage_model.warehouses import make_warehouse

ROWS = {"click": [60, 40], "save": [45]}


def made(folder: Path) -> tuple[Validation, list]:
    settings = make_warehouse(folder, ROWS, validated=12)
    inputs = pin_inputs(settings)
    validation = validation_of(inputs, settings)
    assert validation is not None
    return validation, inputs.tasks


def slow(folder: Path, validation: Validation, name: str, by_query: bool) -> float:
    """Recall@10 of popularity, or of counts with ties by popularity, query by query."""
    keys = validation.catalog.item_key
    of_all, shares = 0.0, sum(task.share for task in validation.tasks)
    for task in validation.tasks:
        table = ds.dataset(folder / f"training_closeup_{list(ROWS)[task.number]}", format="parquet").to_table()
        rows = [row for row in table.to_pylist() if row["fit_weight"] > 0]
        hits = weights = 0.0
        for pair in range(len(task.held_out.query)):
            query = int(task.queries.query_key[task.held_out.query[pair]])
            popular = {key: sum(row[name] for row in rows if row["item_key"] == key) for key in keys}
            counts = {
                key: sum(row[name] for row in rows if row["item_key"] == key and row["query_key"] == query)
                for key in keys
            }
            scores = [counts[key] * 1_000 + popular[key] if by_query else popular[key] for key in keys]
            positive = int(task.held_out.positive[pair])
            rank = sum(score >= scores[positive] for score in scores)
            hits += float(task.weight_of_all[pair]) * (rank <= 10)
            weights += float(task.weight_of_all[pair])
        of_all += task.share / shares * hits / weights
    return of_all


def test_the_best_of_counts_popularity_and_frozen_vectors_counts_of_all_pairs(tmp_path: Path) -> None:
    validation, tasks = made(tmp_path)
    measure_rivals(validation, tasks)
    frozen = validation.frozen()
    assert frozen is not None
    slowly = [slow(tmp_path, validation, name, by) for name in ("fit_weight", "fit_engagement_count") for by in (0, 1)]
    assert max(slowly) > frozen.of_all
    assert validation.rivals.of_all == pytest.approx(max(slowly))


def test_each_system_is_that_of_its_task_and_measure(tmp_path: Path) -> None:
    validation, tasks = made(tmp_path)
    counts, popular = module._before(validation, tasks)
    for number, name in enumerate(module._MEASURES):
        assert validation.measured(counts[number]).of_all == pytest.approx(slow(tmp_path, validation, name, True))
        assert validation.measured(popular[number]).of_all == pytest.approx(slow(tmp_path, validation, name, False))


@pytest.mark.parametrize(
    ("of_unseen", "pairs", "expected"),
    [(0.05, 1_000, 0.05), (0.05, 80, 0.025), (0.0, 80, 0.0), (math.nan, 0, math.nan)],
)
def test_a_handful_of_hits_of_unseen_items_counts_less_a_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_unseen: float, pairs: int, expected: float
) -> None:
    validation, tasks = made(tmp_path)
    monkeypatch.setattr(validation, "frozen", lambda: Recall(0, 0.1, of_unseen))
    monkeypatch.setattr(Validation, "unseen_count", pairs)
    measure_rivals(validation, tasks)
    assert validation.rivals.of_unseen == pytest.approx(expected, nan_ok=True)


def test_without_frozen_vectors_nothing_is_asked_of_unseen_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation, tasks = made(tmp_path)
    monkeypatch.setattr(validation, "frozen", lambda: None)
    measure_rivals(validation, tasks)
    assert math.isnan(validation.rivals.of_unseen)
    assert validation.rivals.of_all > 0
    assert not torch.isnan(torch.tensor(validation.rivals.of_all))
    assert np.isfinite(validation.rivals.worth)
