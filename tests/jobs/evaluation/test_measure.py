"""The rows of one task: every metric of every system on every slice, compared with ours; no job and no table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from itemsage_model.evaluation import baselines
from itemsage_model.evaluation.floor import comparisons
from jobs.evaluation.compared import Candidates, Engagements, Queries, TaskPairs
from jobs.evaluation.measure import EvaluationRow, measure
from jobs.evaluation.systems import systems_of
from schemas.tables import EVALUATION, FROZEN_ALL, FROZEN_UNSEEN
from schemas.tasks import Task

ITEMS, QUERIES = 40, 30
RANDOM = np.random.default_rng(2)
WEIGHTS = RANDOM.integers(1, 4, 2 * QUERIES).astype(np.float32)
VECTORS = RANDOM.normal(size=(ITEMS, 8)).astype(np.float32)


def window(shown: int = 0) -> tuple[TaskPairs, Candidates]:
    """Each query was answered by two items, one of them its own; items from 30 on are unseen."""
    query = np.repeat(np.arange(QUERIES), 2)
    item = np.stack([np.arange(QUERIES) + 10, np.arange(QUERIES)], axis=1).ravel()
    names = np.array([f"q{number:02}" for number in range(QUERIES)], object)
    pairs = TaskPairs(Task("search", "click"), query, item, WEIGHTS, names, np.full(QUERIES, shown), np.arange(QUERIES))
    counts = np.where(np.arange(ITEMS) < 30, 40 - np.arange(ITEMS), 0)
    yes = np.ones(ITEMS, bool)
    return pairs, Candidates(np.arange(ITEMS), yes, counts, {"itemsage": VECTORS, "untrained": -VECTORS}, yes, yes)


def rows_of(systems: dict[str, Any], **changes: Any) -> dict[tuple[str, str, str], EvaluationRow]:
    pairs, candidates = window()
    rows = measure(pairs, candidates, systems, k=10, **changes)
    assert [len(row) for row in rows] == [len(EVALUATION.columns)] * len(rows)
    return {(row.system, row.metric, row.slice): row for row in rows}


def as_dicts(found: dict[Any, EvaluationRow]) -> list[dict[str, Any]]:
    return [row._asdict() for row in found.values()]


def ours(noise: float) -> npt.NDArray[np.float32]:
    return VECTORS[10 : 10 + QUERIES] + np.float32(noise) * RANDOM.normal(size=(QUERIES, 8)).astype(np.float32)


def test_columns_are_those_of_the_table() -> None:
    assert EvaluationRow._fields == EVALUATION.column_names


def test_a_figure_is_the_weighted_share_and_lies_in_its_interval() -> None:
    pairs, _ = window()
    found = rows_of({"itemsage": baselines.dot_product(ours(0.0), VECTORS)})
    scores = ours(0.0) @ VECTORS.T
    rank = [(scores[q] >= scores[q, item]).sum() for q, item in zip(pairs.query, pairs.item_key, strict=True)]
    expected = np.average(np.array(rank) <= 10, weights=pairs.weights)
    row = found["itemsage", "recall@10", "all"]
    assert (row.value, row.pair_count) == (pytest.approx(expected), 2 * QUERIES)
    assert 0 < (row.low or 0) < row.value < (row.high or 0) < 1
    assert {metric for _, metric, _ in found} == {"recall@1", "recall@10", "recall@100", "mrr", "ndcg@10"}
    assert {part for _, _, part in found} == {"all", "unseen", "seen", "head", "middle", "tail"}
    assert found["itemsage", "recall@10", "unseen"].pair_count == 10
    assert row.difference is None


def test_the_rivals_difference_is_ours_minus_theirs() -> None:
    systems = {
        "itemsage": baselines.dot_product(ours(0.1), VECTORS),
        "popularity": baselines.popularity(window()[1].engagement_count),
    }
    found = rows_of(systems)
    mine, theirs = (found[system, "recall@10", "all"] for system in systems)
    assert theirs.difference == pytest.approx(mine.value - theirs.value)
    assert 0 < (theirs.difference_low or 0) < theirs.difference < (theirs.difference_high or 0)
    (judged,) = [one for one in comparisons(as_dicts(found), "recall@10") if one.part == "all"]
    assert (judged.rival, judged.difference) == ("popularity", theirs.difference)


def test_without_ours_there_is_no_difference_and_nothing_to_judge() -> None:
    found = rows_of({"popularity": baselines.popularity(window()[1].engagement_count)})
    assert {row.difference for row in found.values()} == {None}
    assert comparisons(as_dicts(found), "recall@10") == []


def test_systems_counted_by_age_are_there_where_engagements_have_one() -> None:
    pairs, candidates = window(shown=3)
    queries = Queries(
        pairs.query_ids, ours(0.0), ours(0.0), None, np.zeros(QUERIES, bool), {}, np.full(QUERIES, "", object)
    )
    item_pairs = (np.array([3]), np.array([4]), np.array([0.5]))
    by_age = Engagements(candidates.engagement_count / 2, item_pairs)
    counted = {"": Engagements(candidates.engagement_count, item_pairs)}
    plain = set(systems_of(pairs, candidates, queries, counted))
    assert plain == {"itemsage", "untrained", "random", "popularity", "co_occurrence"}
    both = set(systems_of(pairs, candidates, queries, counted | {"_recent": by_age}))
    assert both - plain == {"popularity_recent", "co_occurrence_recent"}


def test_a_fallback_of_all_items_is_asked_by_frozen_queries_and_one_of_the_unseen_by_adapted_ones() -> None:
    pairs, candidates = window()
    frozen, adapted = ours(0.0), ours(1.0)
    queries = Queries(pairs.query_ids, frozen, adapted, None, np.zeros(QUERIES, bool), {}, np.full(QUERIES, "", object))
    vectors = {"itemsage": VECTORS, FROZEN_UNSEEN: 2 * VECTORS, FROZEN_ALL: 3 * VECTORS}
    systems = systems_of(pairs, replace(candidates, vectors=vectors), queries, {})
    assert list(systems) == ["itemsage", "random", FROZEN_UNSEEN, FROZEN_ALL]
    every = torch.arange(QUERIES)
    np.testing.assert_allclose(systems[FROZEN_UNSEEN](every), 2 * adapted @ VECTORS.T, atol=1e-4)
    np.testing.assert_allclose(systems[FROZEN_ALL](every), 3 * frozen @ VECTORS.T, atol=1e-4)
