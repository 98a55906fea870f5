"""What short forms lose is measured beside the 256 floats, on the same pairs and candidates."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.evaluation.compared import Candidates, TaskPairs, Vectors
from jobs.evaluation.short_recall import evaluation_rows, losses, mean_recalls, worth_of_forms
from retrieval.short_vectors import rotations, shortened
from schemas.short_vectors import ShortVector, short_vector
from schemas.tasks import Task
from tests.retrieval.test_short_vectors import unit_vectors

ITEMS = 60
KEYS = np.arange(ITEMS, dtype=np.int64) + 5
VECTORS = unit_vectors(ITEMS, 1)
EXACT, BLIND = short_vector("float32:128"), short_vector("int8:64")


def pairs_of(task: Task, rows: list[int], weight: float) -> tuple[TaskPairs, Vectors]:
    """Every query is the vector of its own item."""
    ids = np.array([f"q{row}" for row in rows], object)
    nothing = np.zeros(len(rows), np.int64)
    weights = np.full(len(rows), weight, np.float32)
    return TaskPairs(task, np.arange(len(rows)), KEYS[rows], weights, ids, nothing, nothing), VECTORS[rows]


@pytest.fixture
def measured() -> tuple[list[TaskPairs], Candidates, list[dict[str, dict[str, object]]]]:
    no = np.zeros(ITEMS, bool)
    candidates = Candidates(KEYS, ~no, np.ones(ITEMS, np.int64), {"itemsage": VECTORS}, no, no)
    pairs, asked = zip(
        pairs_of(Task("search", "click"), list(range(30)), 1), pairs_of(Task("search", "save"), list(range(30, 45)), 9),
        strict=True,
    )  # fmt: skip
    rotation = rotations(VECTORS, VECTORS)["items"]

    def decode(form: ShortVector) -> Vectors:
        # Of the blind form only the items of the second task are there: it finds nothing of the first.
        short = shortened(VECTORS, rotation, form.length)
        return np.where(np.arange(ITEMS)[:, None] >= 30, short, 0).astype(np.float32) if form == BLIND else short

    worths = worth_of_forms(list(pairs), list(asked), candidates, [EXACT, BLIND], decode, rotation, 1)
    return list(pairs), candidates, worths


def test_a_loss_is_the_mean_over_tasks_however_many_pairs_they_have(measured) -> None:
    pairs, _, worths = measured
    assert mean_recalls(pairs, worths, "recall@1") == {"itemsage": 1.0, "float32:128": 1.0, "int8:64": 0.5}
    found = losses(pairs, worths, "recall@1")
    assert (found["float32:128"].recall, found["float32:128"].full, found["float32:128"].low) == (1.0, 1.0, 0.0)
    assert found["int8:64"].recall == pytest.approx(0.5, abs=1e-4)
    assert found["int8:64"].share == pytest.approx(0.5, abs=1e-4)
    assert found["int8:64"].low is not None
    assert 0.25 < found["int8:64"].low < 0.5
    assert losses([], [], "recall@1") == mean_recalls([], [], "recall@1") == {}


def test_the_rows_of_forms_stand_beside_those_of_the_floats(measured) -> None:
    pairs, candidates, worths = measured
    rows = [
        row for row in evaluation_rows(pairs, candidates, worths, "") if (row.metric, row.slice) == ("recall@1", "all")
    ]
    assert [(row.task, row.system, row.value, row.pair_count, row.difference) for row in rows] == [
        ("search_click", "float32:128", 1.0, 30, 0.0), ("search_click", "int8:64", 0.0, 30, 1.0),
        ("search_save", "float32:128", 1.0, 15, 0.0), ("search_save", "int8:64", 1.0, 15, 0.0),
    ]  # fmt: skip
