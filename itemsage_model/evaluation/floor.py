"""The floor: is a model below a simple rival by more than chance explains? Knows figures alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from schemas.tables import RIVALS

_COMPARED = ("task", "slice", "system", "difference", "difference_low", "difference_high")


@dataclass(frozen=True)
class Comparison:
    """The model minus one rival, on one slice of one task's pairs.

    Attributes:
        task: The task.
        part: The slice, such as all or unseen.
        rival: The system it is compared with.
        difference: The model's figure minus the rival's.
        low: Lower end of the interval of the difference; None = too few queries for one.
        high: Upper end.
    """

    task: str
    part: str
    rival: str
    difference: float
    low: float | None
    high: float | None

    @property
    def is_below(self) -> bool:
        """Whether the model is below the rival by more than the interval: its upper end is below zero."""
        return self.high is not None and self.high < 0


def comparisons(rows: Iterable[Mapping[str, Any]], metric: str, systems: Collection[str] = RIVALS) -> list[Comparison]:
    """The model against each rival by one metric, on every task and slice.

    Args:
        rows: By the columns of the table evaluation.
        metric: Such as recall@10.
        systems: What it is compared with.
    """
    return [
        Comparison(*(row[column] for column in _COMPARED))
        for row in rows if row["metric"] == metric and row["system"] in systems and row["difference"] is not None
    ]  # fmt: skip


def hardest_rivals(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """For each task and slice the comparison that decides: with a rival that the model is below, else with the best.

    A model that is surely below one rival is below the floor, even where a better one's interval is too wide to tell.
    Of several rivals that it is below, and of several that it is not, the best is named; of equals the first by name.
    """

    def of_slice(one: Comparison) -> tuple[str, str]:
        return one.task, one.part

    found = groupby(sorted(comparisons, key=of_slice), key=of_slice)
    return [min(group, key=lambda one: (not one.is_below, one.difference, one.rival)) for _, group in found]
