"""The floor: below a rival by more than its interval, and which rival is named."""

from __future__ import annotations

from itemsage_model.evaluation.floor import Comparison, hardest_rivals


def against(rival: str, difference: float, half: float | None, part: str = "all", task: str = "t") -> Comparison:
    low, high = (None, None) if half is None else (difference - half, difference + half)
    return Comparison(task, part, rival, difference, low, high)


def test_within_the_interval_is_not_below() -> None:
    (all_pairs,) = hardest_rivals([against("bm25", 0.03, 0.001), against("tfidf", -0.004, 0.005)])
    assert (all_pairs.rival, all_pairs.is_below) == ("tfidf", False)


def test_below_by_more_than_the_interval_names_the_best_rival() -> None:
    found = hardest_rivals([against("popularity", -0.01, 0.002), against("tfidf", -0.02, 0.003)])
    assert [(one.rival, one.is_below) for one in found] == [("tfidf", True)]


def test_surely_below_one_is_below_though_a_better_rival_is_unsure() -> None:
    found = hardest_rivals([against("tfidf", -0.02, 0.03), against("bm25", -0.01, 0.003)])
    assert [(one.rival, one.is_below) for one in found] == [("bm25", True)]


def test_every_slice_of_every_task_is_judged_by_itself() -> None:
    found = hardest_rivals(
        [against("a", -1, 0.1, "unseen"), against("a", 1, 0.1, "all"), against("a", 1, 0.1, "unseen", "u")]
    )
    assert [(one.task, one.part, one.is_below) for one in found] == [
        ("t", "all", False), ("t", "unseen", True), ("u", "unseen", False)
    ]  # fmt: skip


def test_too_few_queries_for_an_interval_decide_nothing() -> None:
    (only,) = hardest_rivals([against("a", -1, None)])
    assert not only.is_below
    assert hardest_rivals([]) == []
