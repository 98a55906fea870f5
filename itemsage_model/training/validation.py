"""Recall on the validation window while a model trains, and when it has trained enough.

The window is the end of the training period, never the test. A pass that is validated learns from what came before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

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
from schemas.elements import FROZEN_TEXT, SizedElement
from schemas.tables import EMBEDDING_DIM

K = 10
"""Recall is measured at this rank."""
MAX_SCORES = 200_000_000
"""Most scores of one measurement, over all tasks: a few seconds on two cores."""
_ITEMS_AT_ONCE = 1_024
_MAX_PULL, _HALVINGS = 0.5, 6
"""At .5 unseen items lead most lists; six halvings find a pull to within .01."""


@dataclass(frozen=True)
class Recall:
    """Recall@10 of the validation pairs, weighted by engagements, in the mean over the tasks by their shares.

    Attributes:
        step: Steps taken when it was measured.
        of_all: Of all pairs.
        of_unseen: Of pairs whose item has no engagement before the window; NaN where there is none.
    """

    step: int
    of_all: float
    of_unseen: float

    def __str__(self) -> str:
        unseen = "" if math.isnan(self.of_unseen) else f", of unseen items {self.of_unseen:.4f}"
        return f"step {self.step}: recall@10 {self.of_all:.4f}{unseen}"


@dataclass(frozen=True)
class _Task:
    """One task's pairs as a batch of its distinct queries, and as pairs of positions."""

    queries: PairBatch
    held_out: HeldOut
    is_unseen: Tensor
    share: float


class Validation:
    """Measures a tower on validation pairs against a sample of the catalog.

    Args:
        tasks: The pairs of each task.
        shares: The tasks' weights in the mean.
        catalog: The candidates, sorted by key; pairs with another item are left out.
        fit_keys: Sorted keys of the items engaged before the window.
        elements: What the tower reads of an item.
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
        max_queries = max(1, MAX_SCORES // (len(catalog) * max(1, len(tasks))))
        self.tasks = [
            task
            for number, (pairs, share) in enumerate(zip(tasks, shares, strict=True))
            if (task := self._task(pairs, number, share, fit_keys, max_queries)) is not None
        ]

    @property
    def pair_count(self) -> int:
        """Pairs that are measured, over all tasks."""
        return sum(len(task.is_unseen) for task in self.tasks)

    @property
    def unseen_share(self) -> float:
        """Share of these pairs whose item has no engagement before the window."""
        return sum(int(task.is_unseen.sum()) for task in self.tasks) / max(self.pair_count, 1)

    @torch.no_grad()
    def recall(self, tower: Tower, step: int, device: torch.device) -> Recall:
        """Measure a tower; it is in evaluation mode meanwhile."""
        was_training = tower.training
        tower.eval()
        items = self._item_vectors(tower, device)
        queries = [tower.sides(items, task.queries.to(device))[0].cpu() for task in self.tasks]
        tower.train(was_training)
        return self._recall(queries, items, step)

    def _recall(self, query_vectors: Sequence[Tensor], items: Tensor, step: int) -> Recall:
        shares = sum(task.share for task in self.tasks)
        of_all, of_unseen, unseen_shares = 0.0, 0.0, 0.0
        for task, queries in zip(self.tasks, query_vectors, strict=True):
            hit = (ranks(task.held_out, _dot_product(queries, items)) <= K).double()
            weights = task.held_out.weights.double()
            of_all += task.share / shares * float((hit * weights).sum() / weights.sum())
            if task.is_unseen.any():
                own = weights * task.is_unseen
                of_unseen += task.share * float((hit * own).sum() / own.sum())
                unseen_shares += task.share
        return Recall(step, of_all, of_unseen / unseen_shares if unseen_shares else float("nan"))

    def frozen(self) -> Recall | None:
        """What the frozen vectors of queries and item texts reach by themselves; None where items have none."""
        texts = self.catalog.items.gather()[FROZEN_TEXT.values.name]
        if not texts.counts.any():
            return None
        vectors = torch.zeros(len(self.catalog), texts.values.shape[1])
        vectors[torch.from_numpy(texts.counts > 0)] = torch.from_numpy(texts.values.astype(np.float32))
        return self._recall([task.queries.query_embedding for task in self.tasks], vectors, 0)

    @torch.no_grad()
    def calibrate(self, tower: ItemTower, least_unseen: float, device: torch.device) -> float:
        """The smallest pull on items without training pairs at which their recall is at least so high, by bisection.

        The tower is left with that pull: with the strongest where even that is not enough.

        Args:
            tower: The tower, trained.
            least_unseen: Recall that is wanted of pairs with unseen items.
            device: Where the tower is.
        """
        direction = self.mean_query(tower, device).to(device)

        def is_enough(strength: float) -> bool:
            tower.pull_unseen(strength * direction)
            return self.recall(tower, 0, device).of_unseen >= least_unseen

        if is_enough(0.0):
            return 0.0
        low, high = 0.0, _MAX_PULL
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if is_enough(middle) else (middle, high)
        tower.pull_unseen(high * direction)
        return high

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
            parts.append(tower(items.to(device)).float().cpu())
        return torch.cat(parts)

    def _task(
        self, pairs: ValidationPairs, number: int, share: float, fit_keys: npt.NDArray[np.int64], max_queries: int
    ) -> _Task | None:
        """The pairs of a task whose items are candidates, of at most so many queries; None where there is none."""
        positive, is_candidate = _positions(self.catalog.item_key, pairs.item_key)
        known = np.flatnonzero(is_candidate)
        # Keys are hashes: the first of them in order are as good as drawn at random.
        queries, first, query = np.unique(pairs.query_key[known], return_index=True, return_inverse=True)
        rows, first = known[query < max_queries], known[first[:max_queries]]
        query = query[query < max_queries]
        if not len(rows):
            return None
        shown, is_shown = _positions(self.catalog.item_key, pairs.query_item_key[first])
        keys = torch.from_numpy(queries[:max_queries])
        batch = PairBatch(
            items=to_item_batch(self.catalog.items.take(np.arange(1)).gather(), self.elements),
            item_key=torch.from_numpy(self.catalog.item_key[:1]),
            positive=torch.zeros(len(first), dtype=torch.long),
            negatives=torch.zeros(0, dtype=torch.long),
            query_embedding=torch.from_numpy(pairs.query_embedding[first]),
            query_key=keys,
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
        _, is_seen = _positions(fit_keys, pairs.item_key[rows])
        return _Task(batch, held_out, torch.from_numpy(~is_seen), share)


@dataclass
class EarlyStopping:
    """The best weights so far by their recall, and whether more steps are worth it.

    Attributes:
        patience: Measurements without a gain after which it is enough.
        history: What was measured.
        best: The best of it.
        weights: The tower's weights then.
    """

    patience: int
    history: list[Recall] = field(default_factory=list)
    best: Recall | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    def add(self, found: Recall, tower: Tower) -> bool:
        """Take a measurement; returns whether it is enough."""
        self.history.append(found)
        if self.best is None or found.of_all > self.best.of_all:
            self.best = found
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in tower.state_dict().items()}
        return sum(one.step > self.best.step for one in self.history) >= self.patience

    def to_tensors(self) -> dict[str, Tensor]:
        """As a checkpoint holds it."""
        rows = [[one.step, one.of_all, one.of_unseen] for one in self.history]
        return {"history": torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)} | {
            f"best.{name}": tensor for name, tensor in self.weights.items()
        }

    def take(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `to_tensors`."""
        rows = tensors.get("history", torch.empty(0, 3)).tolist()
        self.history = [Recall(int(step), of_all, of_unseen) for step, of_all, of_unseen in rows]
        self.best = max(self.history, key=lambda one: (one.of_all, -one.step), default=None)
        self.weights = {
            name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")
        }


def _dot_product(queries: Tensor, items: Tensor) -> ScoreQueries:
    return lambda block: queries[block] @ items.T


def _positions(
    keys: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each wanted key stands among sorted keys, and whether it does."""
    index = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    return index, keys[index] == wanted if len(keys) else np.zeros(len(wanted), bool)
