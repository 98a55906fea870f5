"""Recall on the validation window while a model trains.

The window is the end of the training period, never the test. A pass that is validated learns from what came before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from itemsage_model.data.batch import PairBatch, to_item_batch
from itemsage_model.data.reader import CatalogItems
from itemsage_model.data.validation import ValidationPairs
from itemsage_model.encoders.item_tower import ItemTower
from itemsage_model.encoders.tower import Tower
from itemsage_model.evaluation.recall import HeldOut, ScoreQueries, ranks
from itemsage_model.training.pulled_hits import pulled_hits
from schemas.elements import FROZEN_TEXT, SizedElement
from schemas.tables import EMBEDDING_DIM

K = 10
"""Recall is measured at this rank."""
MAX_SCORES = 500_000_000
"""Most scores of one measurement, over all tasks: some ten seconds on two cores. What was chosen on 821 queries of The
Complete Journey's window had .0474 of these, .0442 of 3,378 and .0425 of all 23,433."""
_ITEMS_AT_ONCE = 1_024
_STRENGTHS = (0.04, 0.08, 0.12, 0.18, 0.25, 0.35, 0.5)
_PULLS = (-2.0, -1.4, -1.0, -0.7, *(-strength for strength in reversed(_STRENGTHS)), 0.0, *_STRENGTHS)
"""At -2 no list has an unseen item, at .5 they lead most lists."""
_WORTH = 0.98
"""Share of the recall of all that is left when unseen items are nearer than is worth most."""


@dataclass(frozen=True)
class Recall:
    """Recall@10 of the validation pairs, weighted by engagements, in the mean over the tasks by their shares.

    Attributes:
        step: Steps taken when it was measured.
        of_all: Of all pairs.
        of_unseen: Of pairs whose item has no engagement before the window; NaN where there is none.
        worth: What is compared: the recall of all, or less where unseen items are farther below their rival.
    """

    step: int
    of_all: float
    of_unseen: float
    worth: float = field(default=math.nan)

    def __post_init__(self) -> None:
        if math.isnan(self.worth):
            object.__setattr__(self, "worth", self.of_all)

    def __str__(self) -> str:
        unseen = "" if math.isnan(self.of_unseen) else f", of unseen items {self.of_unseen:.4f}"
        worth = "" if self.worth == self.of_all else f", worth {self.worth:.4f}"
        return f"step {self.step}: recall@10 {self.of_all:.4f}{unseen}{worth}"


@dataclass(frozen=True)
class Calibration:
    """A pull on items without training pairs, and the recall with it; see `Validation.calibrate` for its worth."""

    pull: float
    recall: Recall


@dataclass(frozen=True)
class _Task:
    """One task's pairs as a batch of its distinct queries, and as pairs of positions.

    Where they are too many, half of the queries are drawn from all, for the recall of all, and half from those with
    unseen items, for theirs.

    Attributes:
        number: Of the task.
        queries: The queries.
        held_out: The pairs.
        is_unseen: bool [pair].
        weight_of_all: What each pair counts in the recall of all [pair]; 0 = its query was not drawn for that.
        weight_of_unseen: What it counts in the recall of unseen items [pair].
        share: Of the task in the mean.
    """

    number: int
    queries: PairBatch
    held_out: HeldOut
    is_unseen: Tensor
    weight_of_all: Tensor
    weight_of_unseen: Tensor
    share: float


class Validation:
    """Measures a tower on validation pairs against a sample of the catalog.

    Args:
        tasks: The pairs of each task.
        shares: The tasks' weights in the mean.
        catalog: The candidates, sorted by key; pairs with another item are left out.
        fit_keys: Sorted keys of the items engaged before the window.
        elements: What the tower reads of an item.

    Attributes:
        rivals: What a shop has without a model; unknown before `rivals.measure_rivals`.
    """

    def __init__(
        self,
        tasks: Sequence[ValidationPairs],
        shares: Sequence[float],
        catalog: CatalogItems,
        fit_keys: npt.NDArray[np.int64],
        elements: Sequence[SizedElement],
    ) -> None:
        self.catalog, self.elements = catalog, elements
        self.rivals = Recall(0, math.nan, math.nan)
        # A task's figure needs to be as exact as it weighs in the mean.
        most = MAX_SCORES / len(catalog) / max(sum(shares), 1e-12)
        self.tasks = [
            task
            for number, (pairs, share) in enumerate(zip(tasks, shares, strict=True))
            if (task := self._task(pairs, number, share, fit_keys, max(1, round(most * share)))) is not None
        ]

    @property
    def pair_count(self) -> int:
        """Pairs that are measured, over all tasks."""
        return sum(int((task.weight_of_all > 0).sum()) for task in self.tasks)

    @property
    def unseen_share(self) -> float:
        """Share of these pairs whose item has no engagement before the window."""
        drawn = sum(int((task.is_unseen & (task.weight_of_all > 0)).sum()) for task in self.tasks)
        return drawn / max(self.pair_count, 1)

    @property
    def unseen_count(self) -> int:
        """Pairs with unseen items that are measured, over all tasks."""
        return sum(int((task.weight_of_unseen > 0).sum()) for task in self.tasks)

    @torch.no_grad()
    def recall(self, tower: Tower, step: int, device: torch.device) -> Recall:
        """Measure a tower; it is in evaluation mode meanwhile."""
        return self._recall(*self._vectors(tower, device), step)

    def measured(self, systems: Sequence[ScoreQueries], step: int = 0) -> Recall:
        """Measure a system for each task."""
        hits = [ranks(task.held_out, score) <= K for task, score in zip(self.tasks, systems, strict=True)]
        return self._mean(hits, step)

    def _mean(self, hits: Sequence[Tensor], step: int) -> Recall:
        """The recalls, of which pairs of each task are hits [pair]."""
        shares = sum(task.share for task in self.tasks)
        of_all, of_unseen, unseen_shares = 0.0, 0.0, 0.0
        for task, is_hit in zip(self.tasks, hits, strict=True):
            hit, weights, own = is_hit.double(), task.weight_of_all, task.weight_of_unseen
            of_all += task.share / shares * float((hit * weights).sum() / weights.sum())
            if own.any():
                of_unseen += task.share * float((hit * own).sum() / own.sum())
                unseen_shares += task.share
        return Recall(step, of_all, of_unseen / unseen_shares if unseen_shares else float("nan"))

    def _vectors(self, tower: Tower, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Query vectors of each task, and those of the candidates."""
        was_training = tower.training
        tower.eval()
        items = self._item_vectors(tower, device)
        queries = [tower.query_vectors(task.queries.to(device)).float().cpu() for task in self.tasks]
        tower.train(was_training)
        return queries, items

    def _recall(self, query_vectors: Sequence[Tensor], items: Tensor, step: int) -> Recall:
        return self.measured([_dot_product(queries, items) for queries in query_vectors], step)

    def frozen(self) -> Recall | None:
        """What the frozen vectors of queries and item texts reach by themselves; None where items have none."""
        texts = self.catalog.items.gather()[FROZEN_TEXT.values.name]
        if not texts.counts.any():
            return None
        vectors = torch.zeros(len(self.catalog), texts.values.shape[1])
        vectors[torch.from_numpy(texts.counts > 0)] = torch.from_numpy(texts.values.astype(np.float32))
        return self._recall([task.queries.query_embedding for task in self.tasks], vectors, 0)

    @torch.no_grad()
    def calibrate(self, tower: ItemTower, step: int, device: torch.device) -> Calibration:
        """Find and set the pull on items without training pairs; see `ItemTower.pull_unseen`.

        The nearer they lie to all queries, the more of them are found, and the less of all others. The pull that is
        worth most, see `_worth`; then as much more as costs at most 2 % of the recall of all, for the new items of the
        weeks to come are others. What is measured is worth what that first pull was.

        Args:
            tower: The tower, with identities of items.
            step: Steps that it has taken.
            device: Where the tower is.
        """
        assert tower.item_identity is not None
        direction = self.mean_query(tower, device)
        tower.pull_unseen(torch.zeros(EMBEDDING_DIM, device=device))
        queries, items = self._vectors(tower, device)
        is_unseen = ~tower.item_identity.is_known(torch.from_numpy(self.catalog.item_key).to(device)).cpu()
        hits = [
            pulled_hits(task.held_out, vectors, items, is_unseen, direction, _PULLS, K)
            for task, vectors in zip(self.tasks, queries, strict=True)
        ]
        found = [self._mean(of_pull, step) for of_pull in zip(*hits, strict=True)]
        worths = [self._worth(one) for one in found]
        best = worths.index(max(worths))
        is_cheap = [one.of_all >= _WORTH * found[best].of_all for one in found]
        chosen = max(place for place in range(best, len(_PULLS)) if is_cheap[place])
        tower.pull_unseen(_PULLS[chosen] * direction.to(device))
        return Calibration(_PULLS[chosen], replace(found[chosen], worth=worths[best]))

    def _worth(self, found: Recall) -> float:
        """The lesser of two multiples, as a recall of all: of all over its best rival, of unseen items over theirs.

        Where no rival finds an unseen item, the recall of all.
        """
        has_rivals = self.rivals.of_all > 0 and self.rivals.of_unseen > 0
        if not has_rivals or math.isnan(found.of_unseen):
            return found.of_all
        return min(found.of_all, found.of_unseen * self.rivals.of_all / self.rivals.of_unseen)

    @torch.no_grad()
    def mean_query(self, tower: Tower, device: torch.device) -> Tensor:
        """The direction of the mean query of the window, as the tower sees queries [dim]."""
        was_training = tower.training
        tower.eval()  # no identity of a query is hidden
        nothing = torch.empty(0, EMBEDDING_DIM, device=device)
        means = [tower.sides(nothing, task.queries.to(device))[0].mean(dim=0) * task.share for task in self.tasks]
        tower.train(was_training)
        return F.normalize(torch.stack(means).sum(dim=0), dim=0).cpu()

    def _item_vectors(self, tower: Tower, device: torch.device) -> Tensor:
        parts = []
        for first in range(0, len(self.catalog), _ITEMS_AT_ONCE):
            rows = np.arange(first, min(first + _ITEMS_AT_ONCE, len(self.catalog)))
            keys = torch.from_numpy(self.catalog.item_key[rows])
            items = to_item_batch(self.catalog.items.take(rows).gather(), self.elements, keys)
            parts.append(tower.item_vectors(items.to(device)).float().cpu())
        return torch.cat(parts)

    def _task(
        self, pairs: ValidationPairs, number: int, share: float, fit_keys: npt.NDArray[np.int64], max_queries: int
    ) -> _Task | None:
        """The pairs of a task whose items are candidates, of at most so many queries; None where there is none."""
        positive, is_candidate = _positions(self.catalog.item_key, pairs.item_key)
        known = np.flatnonzero(is_candidate)
        if not len(known):
            return None
        queries, query = np.unique(pairs.query_key[known], return_inverse=True)
        _, is_seen = _positions(fit_keys, pairs.item_key[known])
        most = max_queries if len(queries) <= max_queries else max(1, max_queries // 2)
        weight = pairs.weight[known].astype(np.float64)
        of_all = weight * _sample(np.bincount(query, weight).astype(np.float64), most)[query]
        weight[is_seen] = 0
        of_unseen = weight * _sample(np.bincount(query, weight).astype(np.float64), most)[query]
        is_measured = np.isin(query, query[(of_all > 0) | (of_unseen > 0)])
        rows, is_seen, of_all, of_unseen = (
            known[is_measured], is_seen[is_measured], of_all[is_measured], of_unseen[is_measured],
        )  # fmt: skip
        queries, first, query = np.unique(pairs.query_key[rows], return_index=True, return_inverse=True)
        first = rows[first]
        shown, is_shown = _positions(self.catalog.item_key, pairs.query_item_key[first])
        batch = PairBatch(
            items=to_item_batch(self.catalog.items.take(np.arange(1)).gather(), self.elements),
            item_key=torch.from_numpy(self.catalog.item_key[:1]),
            positive=torch.zeros(len(first), dtype=torch.long),
            negatives=torch.zeros(0, dtype=torch.long),
            query_embedding=torch.from_numpy(pairs.query_embedding[first]),
            query_key=torch.from_numpy(queries),
            query_item_key=torch.from_numpy(pairs.query_item_key[first]),
            pair_weight=torch.ones(len(first)),
            task=torch.full((len(first),), number),
        )
        held_out = HeldOut(
            query=torch.from_numpy(query.astype(np.int64)),
            positive=torch.from_numpy(positive[rows]),
            query_item=torch.from_numpy(np.where(is_shown, shown, -1)),
            weights=torch.from_numpy(pairs.weight[rows]),
            distractors=torch.ones(len(self.catalog), dtype=torch.bool),
        )
        weights = torch.from_numpy(of_all), torch.from_numpy(of_unseen)
        return _Task(number, batch, held_out, torch.from_numpy(~is_seen), *weights, share)


def _dot_product(queries: Tensor, items: Tensor) -> ScoreQueries:
    return lambda block: queries[block] @ items.T


def _sample(sizes: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.float64]:
    """Draw at most so many queries, large ones rather than small; what a drawn one's pairs then count, 0 of the others.

    Few queries have much of all engagements; a sample that left them to chance would say something else each time. In
    priority sampling (Duffield, Lund and Thorup 2007) the sums over the drawn ones are right on average.
    """
    if np.count_nonzero(sizes) <= most:
        return (sizes > 0).astype(np.float64)
    priority = sizes / np.random.default_rng(0).uniform(1e-9, 1, len(sizes))
    order = np.argsort(-priority, kind="stable")
    factor = np.zeros(len(sizes))
    drawn = order[:most]
    factor[drawn] = np.maximum(sizes[drawn], priority[order[most]]) / sizes[drawn]
    return factor


def _positions(
    keys: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each wanted key stands among sorted keys, and whether it does."""
    index = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    return index, keys[index] == wanted if len(keys) else np.zeros(len(wanted), bool)
