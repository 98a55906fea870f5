"""Ranks against a slow count, what they are worth, and the systems that score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from itemsage_model.evaluation import baselines
from itemsage_model.evaluation.recall import HeldOut, gains, ranks


def slow_ranks(held_out: HeldOut, scores: torch.Tensor) -> list[float]:
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
        result.append(rank)
    return result


@given(st.integers(0, 2**31), st.integers(2, 4))
def test_ranks_equal_the_slow_count_with_ties_against_us(seed: int, levels: int):
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
    assert ranks(held_out, lambda some: scores[some]).tolist() == slow_ranks(held_out, scores)


def test_a_score_that_is_no_number_has_no_rank_and_is_worth_nothing():
    held_out = HeldOut(*(torch.tensor([0]) for _ in range(2)), torch.tensor([-1]), torch.ones(1), torch.ones(3).bool())
    rank = ranks(held_out, lambda _: torch.tensor([[math.nan, 0.0, 0.0]]))
    assert rank.tolist() == [math.inf]
    assert {value.item() for value in gains(rank, 3).values()} == {0.0}


def test_what_a_rank_is_worth():
    found = {name: value.tolist() for name, value in gains(torch.tensor([1.0, 3.0, 11.0, 101.0]), 10).items()}
    assert found.pop("mrr") == [1, 1 / 3, 1 / 11, 1 / 101]
    assert found.pop("ndcg@10") == pytest.approx([1, 0.5, 0, 0])
    assert found == {"recall@1": [1, 0, 0, 0], "recall@10": [1, 1, 0, 0], "recall@100": [1, 1, 1, 0]}
    assert list(gains(torch.ones(1), 1)) == ["recall@1", "recall@100", "mrr", "ndcg@1"]


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


def test_popularity_by_age_orders_ties_alone():
    pairs = (np.array([50, 50]), np.array([10, 30]), np.array([0.031, 0.03]))
    score = baselines.co_occurrence(np.array([50]), np.array([10, 20, 30, 40]), pairs, np.array([0.1, 0.2, 7.0, 0.3]))
    assert score(torch.tensor([0]))[0].argsort(descending=True).tolist() == [0, 2, 3, 1]


def test_equal_texts_are_ordered_by_popularity_and_others_by_their_words():
    query = csr_matrix(np.array([[1, 1]], np.float32))
    items = csr_matrix(np.array([[0.5, 0], [0.5, 0], [0, 0.501]], np.float32))
    score = baselines.sparse_dot_product(query, items, np.array([1, 100, 0]))
    assert score(torch.tensor([0, 0])).argsort(dim=1, descending=True).tolist() == [[2, 1, 0]] * 2
