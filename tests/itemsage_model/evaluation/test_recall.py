from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from itemsage_model.evaluation import baselines
from itemsage_model.evaluation.recall import HeldOut, hits, weighted_share


def slow_hits(held_out: HeldOut, scores: torch.Tensor, k: int) -> list[bool]:
    result = []
    for query, positive in zip(held_out.query.tolist(), held_out.positive.tolist(), strict=True):
        rank = 1
        for candidate in range(scores.shape[1]):
            competes = held_out.distractors[candidate] and candidate != positive
            if (
                competes
                and candidate != held_out.query_item[query]
                and scores[query, candidate] >= scores[query, positive]
            ):
                rank += 1
        result.append(rank <= k and not math.isnan(scores[query, positive]))
    return result


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 4))
def test_hits_equal_the_slow_count_with_ties_against_us(seed: int, k: int, levels: int):
    random = np.random.default_rng(seed)
    queries, candidates, pairs = 4, 9, 12
    scores = torch.from_numpy(random.integers(0, levels, (queries, candidates)).astype(np.float32))
    held_out = HeldOut(
        query=torch.from_numpy(random.integers(0, queries, pairs)),
        positive=torch.from_numpy(random.integers(0, candidates, pairs)),
        query_item=torch.from_numpy(random.integers(-1, candidates, queries)),
        weights=torch.ones(pairs),
        distractors=torch.from_numpy(random.random(candidates) < 0.8),
    )
    assert hits(held_out, lambda some: scores[some], k).tolist() == slow_hits(held_out, scores, k)


def test_a_score_that_is_no_number_never_hits():
    held_out = HeldOut(*(torch.tensor([0]) for _ in range(2)), torch.tensor([-1]), torch.ones(1), torch.ones(3).bool())
    assert not hits(held_out, lambda _: torch.tensor([[math.nan, 0.0, 0.0]]), 3).any()


def test_the_mean_is_weighted_by_engagement():
    assert weighted_share(torch.tensor([True, False]), torch.tensor([3.0, 1.0])) == 0.75
    assert weighted_share(torch.zeros(0, dtype=torch.bool), torch.zeros(0)) == 0.0


def test_co_occurrence_counts_pairs_and_orders_ties_by_popularity():
    score = baselines.co_occurrence(
        np.array([50, 0, 70]),
        np.array([10, 20, 30]),
        (np.array([50, 50, 60]), np.array([30, 99, 10]), np.array([4.0, 7.0, 1.0])),
        np.array([5, 10, 0]),
    )
    torch.testing.assert_close(
        score(torch.tensor([0, 1, 2])),
        torch.tensor([[0.25, 0.5, 4.0], [0.25, 0.5, 0.0], [0.25, 0.5, 0.0]], dtype=torch.double),
    )
