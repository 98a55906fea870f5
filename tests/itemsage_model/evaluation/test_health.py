"""Figures that tell a sick catalog: vectors alike, items on each other, other neighbours, vectors that have turned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from itemsage_model.evaluation.health import VectorSample, health_of, spread_of

ITEMS, DIM = 60, 16


def unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def sample(vectors: npt.NDArray[np.float32], features: list[str] | None = None, first: int = 0) -> VectorSample:
    ids = np.array([f"i{number:04}" for number in range(first, first + len(vectors))])
    return VectorSample(ids, np.array(features or [f"f{first + number}" for number in range(len(vectors))]), vectors)


@pytest.fixture
def vectors() -> npt.NDArray[np.float32]:
    return unit(np.random.default_rng(0).normal(size=(ITEMS, DIM)))


def test_spread_and_dimensions_are_of_what_vectors_do_not_have_in_common() -> None:
    axes = np.concatenate([np.eye(DIM), -np.eye(DIM)]).astype(np.float32)
    assert spread_of(axes) == (1, DIM)
    assert spread_of(axes[[0, 1, 2, 16, 17, 18]]) == (1, 3)
    assert spread_of(np.ones((9, DIM), np.float32) / 4)[0] == 0
    assert spread_of(np.zeros((0, DIM), np.float32)) == (0, 0)
    cone = axes / 10
    cone[:, 0] += 1
    spread, dimensions = spread_of(cone)
    assert (spread, dimensions) == (pytest.approx(0.01, rel=1e-3), DIM)


def test_the_same_catalog_once_more_is_well(vectors: npt.NDArray[np.float32]) -> None:
    found = health_of(sample(vectors), sample(vectors), is_same_model=True)
    assert (found.sampled, found.near_duplicates, found.neighbour_overlap, found.drift) == (ITEMS, 0, 1, 0)
    assert DIM / 2 < found.dimensions <= DIM


def test_a_first_version_is_compared_with_nothing(vectors: npt.NDArray[np.float32]) -> None:
    found = health_of(sample(vectors), None, is_same_model=False)
    assert (found.neighbour_overlap, found.drift) == (None, None)


def test_only_items_of_both_versions_are_compared(vectors: npt.NDArray[np.float32]) -> None:
    found = health_of(sample(vectors[20:], first=20), sample(vectors[:40]), is_same_model=True)
    assert (found.neighbour_overlap, found.drift) == (1, 0)
    none_in_common = health_of(sample(vectors), sample(vectors, first=500), is_same_model=True)
    assert (none_in_common.neighbour_overlap, none_in_common.drift) == (None, None)


def test_other_vectors_have_other_neighbours_and_have_turned(vectors: npt.NDArray[np.float32]) -> None:
    others = unit(np.random.default_rng(1).normal(size=(ITEMS, DIM)))
    found = health_of(sample(others), sample(vectors), is_same_model=True)
    assert found.neighbour_overlap is not None
    assert found.drift is not None
    assert abs(found.neighbour_overlap - 10 / (ITEMS - 1)) < 0.08, "chance"
    assert 0.8 < found.drift < 1.2
    assert health_of(sample(others), sample(vectors), is_same_model=False).drift is None


def test_only_items_whose_features_are_as_before_can_drift(vectors: npt.NDArray[np.float32]) -> None:
    turned = vectors.copy()
    turned[0] = -turned[0]
    changed = ["new", *[f"f{number}" for number in range(1, ITEMS)]]
    assert health_of(sample(turned, changed), sample(vectors), is_same_model=True).drift == 0
    found = health_of(sample(turned), sample(vectors), is_same_model=True).drift
    assert found == pytest.approx(2 / ITEMS, rel=1e-3)


def test_items_of_equal_features_are_no_duplicates_and_others_on_one_place_are(
    vectors: npt.NDArray[np.float32],
) -> None:
    vectors[1] = vectors[0]
    assert health_of(sample(vectors), None, is_same_model=False).near_duplicates == pytest.approx(2 / ITEMS, abs=1e-4)
    narrow = vectors / 20
    narrow[:, 0] += 1
    close = unit(narrow)
    assert health_of(sample(close), None, is_same_model=False).near_duplicates == pytest.approx(2 / ITEMS, abs=1e-4)
    alike = ["same", "same", *[f"f{number}" for number in range(2, ITEMS)]]
    assert health_of(sample(vectors, alike), None, is_same_model=False).near_duplicates == 0
