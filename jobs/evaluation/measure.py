"""Every figure of every system on one set of pairs: of the held-out window, or of any other; arrays in, rows out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from itemsage_model.evaluation.intervals import Estimates, bootstrap
from itemsage_model.evaluation.recall import HeldOut, ScoreQueries, gains, ranks
from jobs.evaluation.compared import Candidates, TaskPairs
from jobs.evaluation.slices import slices_of
from schemas.tables import EVALUATED_SYSTEMS

OURS = "itemsage"

Worth = dict[str, dict[str, Tensor]]
"""System -> metric -> what each pair's rank is worth [pair]."""


class EvaluationRow(NamedTuple):
    """A row of the table evaluation, which explains the columns."""

    task: str
    system: str
    metric: str
    slice: str
    value: float
    pair_count: int
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None


def measure(
    pairs: TaskPairs, candidates: Candidates, systems: dict[str, ScoreQueries], k: int, slice_by: str = ""
) -> list[EvaluationRow]:
    """All metrics of each system on one task, over each slice of its pairs, with intervals.

    Args:
        pairs: The pairs, of any window.
        candidates: The items that compete.
        systems: Names out of EVALUATED_SYSTEMS -> scores; the rivals are compared with `itemsage`, if it is there.
        k: Ranks that recall@k and ndcg@k count.
        slice_by: The text feature whose values are `candidates.category`.
    """
    held_out = held_out_of(pairs, candidates)
    known = [system for system in EVALUATED_SYSTEMS if system in systems]
    worth = {system: gains(ranks(held_out, systems[system]), k) for system in known}
    return rows_of(pairs, candidates, worth, slice_by)


def rows_of(pairs: TaskPairs, candidates: Candidates, worth: Worth, slice_by: str = "") -> list[EvaluationRow]:
    """All metrics of each system on one task, over each slice of its pairs, with intervals.

    Args:
        pairs: The pairs.
        candidates: The items that compete.
        worth: What each pair's rank is worth; the other systems are compared with `itemsage`, if it is there.
        slice_by: As of `measure`.
    """
    figures = [(system, metric) for system in worth for metric in worth[system]]
    values = np.stack([worth[system][metric].numpy() for system, metric in figures], axis=1)
    slices = slices_of(candidates, np.searchsorted(candidates.item_key, pairs.item_key), slice_by)
    found = bootstrap(pairs.query, pairs.weights.astype(np.float64), values, slices)
    counts = {name: int(chosen.sum()) for name, chosen in slices.items()}
    return [row for name in slices for row in _rows(pairs.task.name, name, counts[name], figures, found[name])]


def held_out_of(pairs: TaskPairs, candidates: Candidates) -> HeldOut:
    """The pairs, by the places of their items among the candidates; all of them are."""
    shown = np.searchsorted(candidates.item_key, pairs.query_item_key)
    shown = np.minimum(shown, len(candidates.item_key) - 1)
    has_item = candidates.item_key[shown] == pairs.query_item_key
    return HeldOut(
        query=torch.from_numpy(pairs.query),
        positive=torch.from_numpy(np.searchsorted(candidates.item_key, pairs.item_key)),
        query_item=torch.from_numpy(np.where(has_item, shown, -1)),
        weights=torch.from_numpy(pairs.weights),
        distractors=torch.from_numpy(candidates.is_distractor),
    )


def _rows(
    task: str, part: str, pair_count: int, figures: list[tuple[str, str]], found: Estimates
) -> list[EvaluationRow]:
    place = {figure: number for number, figure in enumerate(figures)}
    # Without itemsage every figure is compared with itself, and no difference is written.
    own = np.array([place.get((OURS, metric), number) for number, (_, metric) in enumerate(figures)])
    differences = found.values[own] - found.values
    between = found.differences(own, np.arange(len(figures)))
    rows = []
    for number, (interval, of_difference) in enumerate(zip(found.intervals(), between, strict=True)):
        is_compared = own[number] != number
        compared = (float(differences[number]), *of_difference) if is_compared else (None, None, None)
        value = float(found.values[number])
        rows.append(EvaluationRow(task, *figures[number], part, value, pair_count, *interval, *compared))
    return rows
