"""Which pairs belong to a slice."""

from __future__ import annotations

import numpy as np

from jobs.evaluation.compared import Candidates
from jobs.evaluation.slices import engagement_thirds, slices_of


def catalog(counts: list[int], **fields: np.ndarray) -> Candidates:
    numbers = np.arange(len(counts))
    yes = np.ones(len(counts), bool)
    known = {"has_text": yes, "has_images": yes} | fields
    return Candidates(numbers, yes, np.array(counts), {}, **known)


def test_head_middle_and_tail_share_the_engagements_in_thirds() -> None:
    # Laid end to end, the most engaged first: 10, 5, 5, 4, 3, 3 of 30; each where its first engagement falls.
    assert engagement_thirds(np.array([3, 0, 10, 5, 4, 5, 3])).tolist() == [2, -1, 0, 1, 2, 1, 2]
    assert engagement_thirds(np.array([9, 1])).tolist() == [0, 2]
    assert engagement_thirds(np.zeros(2, np.int64)).tolist() == [-1, -1]


def test_seen_and_unseen_part_all_pairs_and_empty_slices_are_left_out() -> None:
    found = slices_of(catalog([9, 0, 1]), np.array([0, 1, 1, 2]))
    assert {name: chosen.tolist() for name, chosen in found.items()} == {
        "all": [True] * 4,
        "unseen": [False, True, True, False],
        "seen": [True, False, False, True],
        "head": [True, False, False, False],
        "tail": [False, False, False, True],
    }


def test_what_an_item_lacks_is_a_slice_where_pairs_differ_in_it() -> None:
    has_images = np.array([True, False, True])
    found = slices_of(catalog([1, 1, 1], has_images=has_images), np.array([1, 2]))
    assert found["with_images"].tolist() == [False, True]
    assert found["without_images"].tolist() == [True, False]
    assert "with_text" not in found
    assert "with_images" not in slices_of(catalog([1, 1, 1], has_images=has_images), np.array([0, 2]))


def test_the_ten_categories_with_the_most_pairs_are_slices() -> None:
    category = np.array(["", "rare", *(f"c{number:02}" for number in range(10))], object)
    positive = np.concatenate([[0, 0, 0, 1], np.repeat(np.arange(2, 12), 2)])
    found = slices_of(catalog([1] * 12, category=category), positive, "brand")
    named = {name: int(chosen.sum()) for name, chosen in found.items() if name.startswith("brand=")}
    assert named == {f"brand=c{number:02}": 2 for number in range(10)}
