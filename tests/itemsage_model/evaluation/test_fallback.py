"""Never silently worse than what it replaces: from figures on the validation window to what is published."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itemsage_model.evaluation.fallback import decide, verdicts
from schemas.errors import GateError
from schemas.metrics import ValidateMetrics, Verdict
from schemas.tables import FROZEN_ALL, FROZEN_UNSEEN


def verdict(system: str, ours: float, other: float, part: str = "all", half: float = 0.01, task: str = "t") -> Verdict:
    return Verdict(task, part, system, ours, other, ours - other - half, ours - other + half)


def found(rivals: list[Verdict], fallbacks: list[Verdict] = ()) -> ValidateMetrics:  # type: ignore[assignment]
    return ValidateMetrics("m", "recall@10", tuple(rivals), tuple(fallbacks))


BELOW_UNSEEN = [verdict("bm25", 0.2, 0.15), verdict("frozen_query", 0.03, 0.07, "unseen")]
BETTER_UNSEEN = [verdict(FROZEN_UNSEEN, 0.2, 0.21), verdict(FROZEN_UNSEEN, 0.03, 0.075, "unseen")]
BETTER_ALL = [verdict(FROZEN_ALL, 0.2, 0.1), verdict(FROZEN_ALL, 0.03, 0.08, "unseen")]


def test_a_model_below_no_rival_is_published_as_it_is() -> None:
    decision = decide(found([verdict("bm25", 0.2, 0.205)], [verdict(FROZEN_ALL, 0.2, 0.205)]), "fallback")
    assert decision.fallback == ""
    assert decision.lines == ("on the validation window the model is below no simple rival",)


def test_below_on_unseen_items_alone_they_get_their_frozen_vectors() -> None:
    decision = decide(found(BELOW_UNSEEN, BETTER_UNSEEN + BETTER_ALL), "fallback")
    assert decision.fallback == FROZEN_UNSEEN
    below, published = decision.lines
    assert below.startswith("t, pairs of unseen items: recall@10 of 0.0300 is below frozen_query with 0.0700")
    assert "(recall@10 of t, pairs of unseen items: 0.0750)" in published


def test_frozen_vectors_that_are_not_better_there_are_not_published() -> None:
    worse = [verdict(FROZEN_UNSEEN, 0.03, 0.03, "unseen")]
    decision = decide(found(BELOW_UNSEEN, worse), "fallback")
    assert decision.fallback == ""
    assert decision.lines[1] == "the model's own vectors are published: frozen ones are not better there"
    assert decision.lines[2].startswith("t, pairs of unseen items: frozen_query stays better by 0.0400: serve it")


@pytest.mark.parametrize("harmed", [("t", "all"), ("u", "unseen")])
def test_a_fallback_that_surely_lowers_another_slice_or_task_is_not_taken(harmed: tuple[str, str]) -> None:
    task, part = harmed
    lowers = verdict(FROZEN_UNSEEN, 0.2, 0.15, part, task=task)
    others = [one for one in BETTER_UNSEEN if (one.task, one.part) != harmed]
    assert decide(found(BELOW_UNSEEN, [*others, lowers]), "fallback").fallback == ""
    unsure = replace(lowers, low=-0.01)
    assert decide(found(BELOW_UNSEEN, [*others, unsure]), "fallback").fallback == FROZEN_UNSEEN


def test_below_on_all_pairs_the_better_of_both_fallbacks_is_taken() -> None:
    below = [verdict("frozen_query", 0.05, 0.1)]
    all_better = [verdict(FROZEN_ALL, 0.05, 0.1), verdict(FROZEN_UNSEEN, 0.05, 0.07)]
    assert decide(found(below, all_better), "fallback").fallback == FROZEN_ALL
    unseen_better = [verdict(FROZEN_ALL, 0.05, 0.1), verdict(FROZEN_UNSEEN, 0.05, 0.12)]
    assert decide(found(below, unseen_better), "fallback").fallback == FROZEN_UNSEEN


def test_a_rival_that_is_no_vector_is_named_with_what_to_do() -> None:
    below = [verdict("co_occurrence", 0.05, 0.1)]
    decision = decide(found(below, [verdict(FROZEN_ALL, 0.05, 0.02)]), "fallback")
    assert decision.fallback == ""
    assert "co_occurrence stays better by 0.0500: serve it beside the vectors there" in decision.lines[-1]
    partly = decide(found(below, [verdict(FROZEN_ALL, 0.05, 0.08)]), "fallback")
    assert partly.fallback == FROZEN_ALL
    assert "co_occurrence stays better by 0.0200" in partly.lines[-1]


def test_item_texts_in_another_space_leave_the_model_and_say_so() -> None:
    assert "another space than the queries" in decide(found(BELOW_UNSEEN), "fallback").lines[1]


def test_refuse_names_slice_rival_both_figures_and_cures() -> None:
    with pytest.raises(GateError) as raised:
        decide(found(BELOW_UNSEEN, BETTER_UNSEEN), "refuse")
    said = str(raised.value)
    assert raised.value.exit_code == 4
    for part in ("unseen items", "frozen_query", "0.0300", "0.0700", "floor.gate=fallback", "floor.gate=off"):
        assert part in said
    assert decide(found([verdict("bm25", 0.2, 0.1)]), "refuse").fallback == ""


def test_without_a_verdict_nothing_is_replaced_and_that_is_said() -> None:
    nothing = ValidateMetrics("m", "recall@10", note="training validated nothing")
    assert decide(nothing, "refuse").lines == ("not compared with simple rivals: training validated nothing",)


figures = st.floats(0, 1)


@settings(deadline=None)
@given(
    rivals=st.tuples(figures, figures),
    ours=st.tuples(figures, figures),
    frozen=st.lists(figures, min_size=4, max_size=4),
)
def test_never_silently_worse_than_what_it_replaces(
    rivals: tuple[float, float], ours: tuple[float, float], frozen: list[float]
) -> None:
    """Below a rival: what is published raises the slices below and harms no other, and who stays better is named."""
    parts = ("all", "unseen")
    judged = [verdict("tfidf", own, rival, part) for part, own, rival in zip(parts, ours, rivals, strict=True)]
    measured = [
        verdict(name, own, value, part)
        for name, values in ((FROZEN_UNSEEN, frozen[:2]), (FROZEN_ALL, frozen[2:]))
        for part, own, value in zip(parts, ours, values, strict=True)
    ]
    decision = decide(found(judged, measured), "fallback")
    below = [one for one in judged if one.is_below]
    assert below or not decision.fallback
    published = {one.part: one.other for one in measured if one.system == decision.fallback}
    published = published or dict(zip(parts, ours, strict=True))
    if decision.fallback:
        assert sum(published[one.part] - one.value for one in below) > 0
        assert all(published[part] >= own - 0.02 for part, own in zip(parts, ours, strict=True))
    for one in below:
        assert any(f"{one.value:.4f} is below tfidf with {one.other:.4f}" in line for line in decision.lines)
        is_named = any(f"{'unseen items' if one.part == 'unseen' else 'all pairs'}: tfidf stays" in line
                       for line in decision.lines)  # fmt: skip
        assert is_named == (published[one.part] < one.other)


def test_verdicts_hold_both_figures_of_the_deciding_rival_and_of_each_fallback() -> None:
    def row(system: str, value: float, part: str = "all", half: float = 0.01) -> dict[str, Any]:
        difference = None if system == "itemsage" else 0.1 - value
        ends = (None, None) if difference is None else (difference - half, difference + half)
        return {"task": "t", "slice": part, "system": system, "metric": "recall@10", "value": value,
                "difference": difference, "difference_low": ends[0], "difference_high": ends[1]}  # fmt: skip

    rows = [row("itemsage", 0.1), row("bm25", 0.2), row("popularity", 0.05), row(FROZEN_ALL, 0.15),
            row("itemsage", 0.1, "head"), row("bm25", 0.3, "head"), row("untrained", 0.9)]  # fmt: skip
    (rival,), (fallback,) = verdicts(rows, "recall@10")
    assert (rival.system, rival.value, rival.other, rival.is_below) == ("bm25", 0.1, 0.2, True)
    assert (fallback.system, fallback.other) == (FROZEN_ALL, 0.15)
