"""The home surface: what a user's interests are, and how the answers to them become one list."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.home import Engaged, HomeSettings, Interest, interests, merge, recent, search_home

SETTINGS = HomeSettings(half_life_days=10, max_distance=0.9, max_interests=5, sharpness=8)


@dataclass(frozen=True)
class Found:
    item_ids: Any
    scores: Any


class Exact:
    """An index of a handful of items that gives None where it has no more."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.ids, self.vectors = np.array([*vectors], object), np.stack([*vectors.values()])
        self.asked: list[np.ndarray] = []

    def search(self, vectors: np.ndarray, k: int, where: Any = None) -> Found:
        self.asked.append(vectors)
        scores = vectors @ self.vectors.T
        order = np.argsort(-scores, axis=1)[:, :k]
        missing = ((0, 0), (0, max(0, k - len(self.ids))))
        ids = np.pad(self.ids[order], missing, constant_values=None)
        return Found(ids, np.pad(np.take_along_axis(scores, order, 1), missing, constant_values=-np.inf))


def around(direction: int, count: int, seed: int) -> np.ndarray:
    """Unit vectors near an axis of 16."""
    vectors = np.eye(16)[direction] + 0.05 * np.random.default_rng(seed).normal(size=(count, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


GARDEN, TEA, TOYS = (around(axis, 8, axis) for axis in range(3))
VECTORS = {f"{name}{n}": v for name, vs in (("g", GARDEN), ("t", TEA), ("x", TOYS)) for n, v in enumerate(vs)}


def known(**ages: float) -> tuple[list[Engaged], np.ndarray]:
    engaged = recent([Engaged(item_id, age) for item_id, age in ages.items()], 100)
    return engaged, np.stack([VECTORS[one.item_id] for one in engaged])


def test_interests_are_clusters_with_a_medoid_and_weigh_as_their_items_are_recent() -> None:
    engaged, vectors = known(g0=0, g1=10, t0=20, g2=30, t1=20)
    garden, tea = interests(engaged, vectors, SETTINGS)
    assert (set(garden.items), set(tea.items)) == ({"g0", "g1", "g2"}, {"t0", "t1"})
    total = 1 + 1 / 2 + 1 / 4 + 1 / 8 + 1 / 4
    assert (garden.weight, tea.weight) == pytest.approx(((1 + 1 / 2 + 1 / 8) / total, (1 / 2) / total))
    spread = {
        one: sum(np.linalg.norm(VECTORS[one] - VECTORS[other]) ** 2 for other in garden.items) for one in garden.items
    }
    assert garden.medoid == min(spread, key=lambda one: spread[one])
    assert [one.medoid for one in interests(engaged, vectors, replace(SETTINGS, max_interests=1))] == [garden.medoid]
    assert len(interests(engaged, vectors, replace(SETTINGS, max_distance=0))) == 5
    assert len(interests(engaged, vectors, replace(SETTINGS, max_distance=9))) == 1
    assert interests([], np.zeros((0, 16), np.float32), SETTINGS) == []
    assert len(interests(*known(g0=1e6, t0=1e6), SETTINGS)) == 2


def test_repetitions_count_once_at_their_most_recent() -> None:
    log = [Engaged("b", 3), Engaged("a", 3), Engaged("b", 9), Engaged("c", 1)]
    assert recent(log, 2) == [Engaged("c", 1), Engaged("a", 3)]
    assert recent(log[::-1], 9) == [Engaged("c", 1), Engaged("a", 3), Engaged("b", 3)]


IDS = st.lists(st.sampled_from([*"abcdefgh"]), min_size=3, max_size=3, unique=True)
SCORES = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(IDS, SCORES, st.floats(0.01, 1)), min_size=1, max_size=4), left_out=st.sets(IDS.map(min))
)
def test_merged_scores_are_those_of_the_formula(rows: list[Any], left_out: set[str]) -> None:
    ids = np.array([row[0] for row in rows], object)
    scores = np.array([sorted(row[1], reverse=True) for row in rows], np.float32)
    asked = [Interest(f"m{n}", (), row[2]) for n, row in enumerate(rows)]
    found = merge(Found(ids, scores), asked, left_out, 4, 8.0)
    total = sum(row[2] for row in rows)
    expected = {}
    for item in {item for row in rows for item in row[0]} - left_out:
        each = [dict(zip(ids[n], scores[n].tolist(), strict=True)).get(item, scores[n][-1]) for n in range(len(rows))]
        weighted = sum(row[2] / total * math.exp(8 * one) for row, one in zip(rows, each, strict=True))
        expected[item] = math.log(weighted) / 8
    best = sorted(expected.values(), reverse=True)[:4]
    assert [one.score for one in found] == pytest.approx(best, abs=1e-6)
    assert [expected[one.item_id] for one in found] == pytest.approx(best, abs=1e-6)
    assert len({one.item_id for one in found}) == len(found)


def test_every_interest_has_a_place_and_what_the_user_has_is_left_out() -> None:
    index = Exact(VECTORS)
    engaged = [Engaged("g0", 0), Engaged("g1", 1), Engaged("t0", 5), Engaged("unknown", 0), Engaged("g0", 7)]
    found = search_home(index, engaged, VECTORS, 8, SETTINGS)
    assert {one.item_id[0] for one in found} == {"g", "t"}
    assert not {one.item_id for one in found} & {"g0", "g1", "t0"}
    assert all(one.because_of[0] == one.item_id[0] for one in found)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert search_home(index, engaged[::-1], VECTORS, 8, SETTINGS) == found
    with_own = search_home(index, engaged, VECTORS, 8, replace(SETTINGS, leave_out_engaged=False))
    assert {"g0", "t0"} & {one.item_id for one in with_own}
    # An index with fewer items than are asked for.
    assert len(search_home(index, engaged, VECTORS, 99, SETTINGS)) == len(VECTORS) - 3
    assert search_home(index, [Engaged("unknown", 0)], VECTORS, 8, SETTINGS) == []


def test_a_medoid_is_searched_for_by_the_query_that_shows_it() -> None:
    index = Exact(VECTORS)
    search_home(index, [Engaged("g0", 0)], VECTORS, 3, SETTINGS, query_of={"g0": TOYS[0]}.get)
    search_home(index, [Engaged("t0", 0)], VECTORS, 3, SETTINGS, query_of={"g0": TOYS[0]}.get)
    np.testing.assert_array_equal(index.asked[0], TOYS[:1])
    np.testing.assert_array_equal(index.asked[1], VECTORS["t0"][None])


def test_an_item_of_tomorrow_is_as_new_as_one_of_now_and_one_of_long_ago_weighs_nothing() -> None:
    """A clock that goes ahead made the weight infinite, and every score no number."""
    index = Exact(VECTORS)
    now, ahead = (search_home(index, [Engaged("g0", age), Engaged("t0", 9)], VECTORS, 8, SETTINGS) for age in (0, -1e5))
    assert ahead == now
    assert recent([Engaged("a", -3), Engaged("b", 0)], 9) == [Engaged("a", 0), Engaged("b", 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = search_home(index, [Engaged("g0", 0), Engaged("t0", 1e9)], VECTORS, 8, SETTINGS)
    assert {one.because_of for one in found} == {"g0"}


def test_an_answer_may_be_longer_than_a_search_is_deep() -> None:
    found = search_home(Exact(VECTORS), [Engaged("g0", 0)], VECTORS, 20, replace(SETTINGS, depth=4))
    assert len(found) == 20
