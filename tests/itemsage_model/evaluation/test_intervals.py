"""Bootstrap intervals: means as weighted by hand, coverage, pairing, and what is said of a handful of queries."""

from __future__ import annotations

import numpy as np

from itemsage_model.evaluation.intervals import FEW_QUERIES, RESAMPLES, bootstrap

EVERY = "all"


def everything(pairs: int) -> dict[str, np.ndarray]:
    return {EVERY: np.ones(pairs, bool)}


def test_means_are_weighted_by_engagement_within_each_slice() -> None:
    values = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    slices = everything(3) | {"first": np.array([True, True, False])}
    found = bootstrap(np.array([7, 7, 9]), np.array([3.0, 1.0, 4.0]), values, slices)
    assert found[EVERY].values.tolist() == [7 / 8, 5 / 8]
    assert found["first"].values.tolist() == [0.75, 0.25]


def test_the_interval_is_that_of_a_slow_bootstrap_over_queries() -> None:
    random = np.random.default_rng(5)
    query = random.integers(0, 60, 300)
    weights = random.integers(1, 5, 300).astype(float)
    values = (random.random((300, 1)) < 0.2 + 0.6 * (query % 2)[:, None]).astype(float)
    chosen = random.random(300) < 0.7
    low, high = bootstrap(query, weights, values, {"some": chosen})["some"].intervals()[0]
    means = []
    for _ in range(4 * RESAMPLES):
        times = np.bincount(random.integers(0, 60, 60), minlength=60)[query] * weights * chosen
        means.append((times * values[:, 0]).sum() / times.sum())
    np.testing.assert_allclose([low, high], np.percentile(means, [2.5, 97.5]), atol=0.012)
    assert high - low > 0.15


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(11)
    covered = 0
    for _ in range(100):
        values = (random.random((200, 1)) < 0.3).astype(float)
        low, high = bootstrap(np.arange(200), np.ones(200), values, everything(200))[EVERY].intervals()[0]
        covered += low <= 0.3 <= high
    assert 88 <= covered <= 100


def test_a_difference_is_paired_by_query() -> None:
    random = np.random.default_rng(3)
    easy = random.random(400)
    values = np.stack([easy, easy - 0.01, random.random(400)], axis=1)
    found = bootstrap(np.arange(400), np.ones(400), values, everything(400))[EVERY]
    paired, unpaired = found.differences(np.array([0, 0]), np.array([1, 2]))
    np.testing.assert_allclose(paired, (0.01, 0.01), atol=1e-6)
    assert unpaired[0] < 0 < unpaired[1]


def test_a_rerun_gives_the_same_intervals_and_few_queries_none() -> None:
    values = np.random.default_rng(0).random((FEW_QUERIES, 2))
    query = np.arange(FEW_QUERIES)
    once, again = (bootstrap(query, np.ones(len(query)), values, everything(len(query)))[EVERY] for _ in range(2))
    assert once.intervals() == again.intervals()
    assert once.intervals()[0] != (None, None)
    few = bootstrap(query[1:], np.ones(len(query) - 1), values[1:], everything(len(query) - 1))[EVERY]
    assert few.intervals() == [(None, None)] * 2
    assert few.differences(np.array([0]), np.array([1])) == [(None, None)]
