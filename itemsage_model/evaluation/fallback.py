"""What to publish where a model is below the floor: its own vectors, the frozen ones, or nothing. Knows figures alone.

A shop has the rivals without us. So where the model is surely below one, the vectors that its items have without the
model take its place, if they were measured to be better there and surely worse nowhere; and it is always said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from itemsage_model.evaluation.floor import Comparison, comparisons, hardest_rivals
from schemas.errors import GateError
from schemas.metrics import ValidateMetrics, Verdict
from schemas.tables import FROZEN_ALL, FROZEN_UNSEEN

PARTS = ("all", "unseen")
FALLBACKS = {
    FROZEN_UNSEEN: "the frozen vectors of their texts for the items without a training pair",
    FROZEN_ALL: "the frozen vectors of their texts for all items, and the frozen query vectors",
}
_OURS = "itemsage"
_MEANT = {"all": "all pairs", "unseen": "pairs of unseen items"}


@dataclass(frozen=True)
class Decision:
    """What is published.

    Attributes:
        fallback: Key of FALLBACKS; empty = the model's own vectors.
        lines: Why, one line a finding.
    """

    fallback: str
    lines: tuple[str, ...]


def verdicts(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[tuple[Verdict, ...], tuple[Verdict, ...]]:
    """The model against the rival that decides on each task and slice, and against each fallback.

    Args:
        rows: By the columns of the table validation.
        metric: Such as recall@10.
    """
    values = {(r["task"], r["slice"], r["system"]): float(r["value"]) for r in rows if r["metric"] == metric}

    def verdict(one: Comparison) -> Verdict:
        ours, other = (values[one.task, one.part, system] for system in (_OURS, one.rival))
        return Verdict(one.task, one.part, one.rival, ours, other, one.low, one.high)

    judged = [row for row in rows if row["slice"] in PARTS]
    rivals = hardest_rivals(comparisons(judged, metric))
    fallbacks = comparisons(judged, metric, tuple(FALLBACKS))
    return tuple(map(verdict, rivals)), tuple(map(verdict, fallbacks))


def decide(found: ValidateMetrics, gate: Literal["fallback", "refuse"]) -> Decision:
    """What to publish, and why.

    Raises:
        GateError: the gate is "refuse" and the model is below a rival.
    """
    if found.note:
        return Decision("", (f"not compared with simple rivals: {found.note}",))
    below = [one for one in found.verdicts if one.is_below]
    if not below:
        return Decision("", ("on the validation window the model is below no simple rival",))
    said = [_said(one, found.metric) for one in below]
    if gate == "refuse":
        raise GateError(
            "item_embeddings",
            "floor",
            expected="a model that is below no simple rival on the validation window (floor.gate)",
            found="; ".join(said),
            cure='Nothing was published. Train longer or with another preset, or publish the better vectors with '
            '`--set floor.gate=fallback`, or the model as it is with `--set floor.gate=off`.',
        )  # fmt: skip
    fallback = _best_fallback(below, found.fallbacks)
    return Decision(fallback, (*said, *_outcome(fallback, below, found)))


def _best_fallback(below: Sequence[Verdict], measured: Iterable[Verdict]) -> str:
    """The fallback that raises the slices below the floor most, of those that lower no task and slice surely."""
    wanted = {(one.task, one.part) for one in below}
    # Where only unseen items are below, what was learned of the others is kept.
    possible = FALLBACKS if any(one.part == "all" for one in below) else (FROZEN_UNSEEN,)
    gains = {}
    for name in possible:
        own = [one for one in measured if one.system == name]
        gain = sum(one.other - one.value for one in own if (one.task, one.part) in wanted)
        if gain > 0 and not any(one.is_above for one in own):
            gains[name] = gain
    return max(gains, key=lambda name: gains[name], default="")


def _outcome(fallback: str, below: Sequence[Verdict], found: ValidateMetrics) -> list[str]:
    """What is published, and which rivals stay better than that."""
    published = {(one.task, one.part): one.other for one in found.fallbacks if one.system == fallback}
    lines = []
    if fallback:
        figures = [f"{one.task}, {_MEANT[one.part]}: {published[one.task, one.part]:.4f}" for one in below]
        lines.append(f"published instead: {FALLBACKS[fallback]} ({found.metric} of {'; '.join(figures)})")
    else:
        why = "are not better there" if found.fallbacks else "lie in another space than the queries, or there are none"
        lines.append(f"the model's own vectors are published: frozen ones {why}")
    for one in below:
        ours = published.get((one.task, one.part), one.value)
        if ours < one.other:
            lines.append(
                f"{one.task}, {_MEANT[one.part]}: {one.system} stays better by {one.other - ours:.4f}: serve it beside "
                "the vectors there, or train longer or with another preset"
            )
    return lines


def _said(one: Verdict, metric: str) -> str:
    return (
        f"{one.task}, {_MEANT[one.part]}: {metric} of {one.value:.4f} is below {one.system} with {one.other:.4f} "
        f"(difference {one.value - one.other:+.4f}, interval {one.low:+.4f} to {one.high:+.4f})"
    )
