"""What a pass starts from where that is more than random weights: singular vectors, as strong as is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from itemsage_model.data.reader import Weight
from itemsage_model.encoders.identity import KeyIdentity
from itemsage_model.encoders.item_tower import ItemTower
from itemsage_model.training import distributed
from itemsage_model.training.inputs import Inputs
from itemsage_model.training.spectral import Keys, Measure, SpectralStart, Vectors, spectral_start
from itemsage_model.training.validation import Validation
from schemas.settings import Settings
from schemas.tables import EMBEDDING_DIM

_STRENGTHS = ((0.3, 0.3), (0.3, 1.0), (1.0, 1.0), (3.0, 2.0), (8.0, 6.0))
"""Of items and queries: from a whisper to hardly any text."""
_SMOOTHINGS = (1.0, 0.0, 4.0, 12.0)
"""Strengths are tried with the first, and the others then with the best of them."""
_COUNTS: dict[Weight, Measure] = {"pair_weight": "engagement_count", "fit_weight": "fit_engagement_count"}
"""What a pair's weight is where no event is discounted by its age."""


_FEW_HITS = 25
"""A recall of so many hits has a standard error of a fifth of itself."""


@dataclass(frozen=True)
class Strength:
    """What the singular vectors are of, how much they weigh beside the frozen ones, and what is popular in a query's.

    Attributes:
        items: Factor of the items' vectors, gamma of the residual path.
        queries: Factor of the queries' vectors, beta of the query adapter.
        smoothing: See `SpectralStart.query_vectors`.
        counts: 1 = of the pairs' engagement counts, 0 = of their weights, in which older events count less.
    """

    items: float = 3.0
    queries: float = 2.0
    smoothing: float = 0.0
    counts: float = 0.0

    def __str__(self) -> str:
        what = "counts" if self.counts else "weights"
        return f"of {what}, items x {self.items}, queries x {self.queries}, smoothing {self.smoothing}"

    def to_tensor(self) -> Tensor:
        """As a checkpoint holds it, and ranks tell it to each other."""
        return torch.tensor([self.items, self.queries, self.smoothing, self.counts], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Strength:
        """The inverse of `to_tensor`."""
        return cls(*(float(number) for number in tensor))


def least_unseen(validation: Validation) -> float:
    """Recall that pairs with unseen items are to have: that of the frozen vectors.

    Less a standard error where it is a handful of hits: one lucky hit would cost the recall of everything else. NaN
    where there are no such pairs or no frozen vectors.
    """
    frozen = validation.frozen()
    if frozen is None or math.isnan(frozen.of_unseen):
        return math.nan
    hits = max(frozen.of_unseen * validation.unseen_count, 1.0)
    return frozen.of_unseen * (1 - 1 / math.sqrt(hits)) if hits < _FEW_HITS else frozen.of_unseen


def start_spectral(
    tower: ItemTower, inputs: Inputs, settings: Settings, known: Strength | None, validation: Validation | None
) -> Strength:
    """Give items and queries their singular vectors.

    Args:
        tower: With item vectors and query identities; the same on all ranks, as it then is again.
        inputs: The pass's tables.
        settings: The tasks' shares.
        known: The strength that an earlier pass has found; None = choose it on the validation window.
        validation: Of rank 0; None elsewhere, or where nothing is validated.
    """
    items, queries = _tables(tower)
    device, strength = items.table.device, torch.zeros(4, dtype=torch.float64)
    if distributed.rank() == 0:

        @cache
        def found(counts: float) -> SpectralStart:
            measure = _COUNTS[inputs.weight] if counts else inputs.weight
            return spectral_start(inputs.tasks, [task.share for task in settings.tasks], measure)

        has_ages = bool(settings.half_life_days)
        chosen = known or (_best(tower, found, validation, has_ages) if validation else Strength())
        _give(items, found(chosen.counts).item_keys, found(chosen.counts).items)
        _set(tower, found(chosen.counts), chosen)
        strength += chosen.to_tensor()
    for table in (items.table, queries.table):
        _take_first(table)
    chosen = Strength.from_tensor(distributed.sum_over_ranks(strength.to(device)).cpu())
    _set(tower, None, chosen)
    tower.pull_unseen(torch.zeros(EMBEDDING_DIM, device=device))  # of the last strength tried
    return chosen


def _best(
    tower: ItemTower, found: Callable[[float], SpectralStart], validation: Validation, has_ages: bool
) -> Strength:
    """Of the strengths that are tried, the one with the best recall of all once unseen items are pulled."""
    wanted, device = least_unseen(validation), tower.temperature().device

    def reached(strength: Strength) -> float:
        _set(tower, found(strength.counts), strength)
        measured = validation.calibrate(tower, wanted, 0, device)
        print(f"  singular vectors {strength}, pull {measured.pull}: {measured.recall}", flush=True)
        return measured.recall.of_all

    tried: dict[Strength, float] = {}
    items = _tables(tower)[0]
    _give(items, found(0.0).item_keys, found(0.0).items)

    def best_of(strengths: Iterable[Strength]) -> Strength:
        tried.update({strength: reached(strength) for strength in strengths})
        return max(tried, key=tried.__getitem__)

    first, *others = _SMOOTHINGS
    best = best_of(Strength(*pair, first) for pair in _STRENGTHS)
    best = best_of(replace(best, smoothing=other) for other in others)
    if not has_ages:
        return best
    _give(items, found(1.0).item_keys, found(1.0).items)
    return best_of([replace(best, counts=1.0)])


def _tables(tower: ItemTower) -> tuple[KeyIdentity, KeyIdentity]:
    """The identities of items and of queries."""
    assert tower.item_identity is not None
    assert tower.query_adapter is not None
    assert tower.query_adapter.identity is not None
    return tower.item_identity, tower.query_adapter.identity


def _give(identity: KeyIdentity, keys: Keys, vectors: Vectors) -> None:
    """Make the vectors those of the keys."""
    device = identity.table.device
    identity.assign(torch.from_numpy(keys).to(device), torch.from_numpy(vectors).to(device))


@torch.no_grad()
def _set(tower: ItemTower, found: SpectralStart | None, strength: Strength) -> None:
    """Set the factors, and with singular vectors at hand the identities of the queries."""
    assert tower.residual is not None
    assert tower.residual.gamma is not None
    assert tower.query_adapter is not None
    tower.residual.gamma.fill_(strength.items)
    tower.query_adapter.beta.fill_(strength.queries)
    if found is not None:
        _give(_tables(tower)[1], found.query_keys, found.query_vectors(strength.smoothing))


@torch.no_grad()
def _take_first(parameter: nn.Parameter) -> None:
    """The values of rank 0 on all ranks."""
    if distributed.world_size() > 1:
        parameter.mul_(float(distributed.rank() == 0))
        parameter.copy_(distributed.sum_over_ranks(parameter))
