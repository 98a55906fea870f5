"""What a pass starts from where that is more than random weights: singular vectors, and a metric of the texts.

Both follow from the pairs in a minute or so; how strong they are to be is chosen on the validation window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from itemsage_model.data.reader import Weight
from itemsage_model.encoders.identity import KeyIdentity
from itemsage_model.encoders.item_tower import ItemTower
from itemsage_model.training import distributed
from itemsage_model.training.inputs import Inputs
from itemsage_model.training.spectral import Keys, Measure, SpectralStart, Vectors, spectral_start
from itemsage_model.training.text_metric import TextMetric, text_metric
from itemsage_model.training.validation import Validation
from schemas.errors import InputError
from schemas.settings import Settings
from schemas.stages import TRAIN
from schemas.tables import EMBEDDING_DIM

_STRENGTHS = ((0.3, 0.3), (0.3, 1.0), (1.0, 1.0), (3.0, 2.0), (5.0, 4.0), (8.0, 6.0))
"""Of items and queries: from a whisper to hardly any text."""
_SMOOTHINGS = (1.0, 0.0, 4.0, 12.0)
"""The others are tried with the best of what was tried before."""
_TEXTS = (4.0, 16.0, 0.0)
"""Strengths of the texts' metric, likewise."""
_COUNTS: dict[Weight, Measure] = {"pair_weight": "engagement_count", "fit_weight": "fit_engagement_count"}
"""What a pair's weight is where no event is discounted by its age."""


@dataclass(frozen=True)
class Strength:
    """What the singular vectors are of, how much they weigh beside the frozen ones, and what becomes of these.

    Attributes:
        items: Factor of the items' vectors, gamma of the residual path.
        queries: Factor of the queries' vectors, beta of the query adapter.
        smoothing: See `SpectralStart.query_vectors`.
        counts: 1 = of the pairs' engagement counts, 0 = of their weights, in which older events count less.
        text: Strength of the texts' metric; see `TextMetric.change`.
    """

    items: float = 3.0
    queries: float = 2.0
    smoothing: float = 0.0
    counts: float = 0.0
    text: float = _TEXTS[0]

    def __str__(self) -> str:
        what = "counts" if self.counts else "weights"
        numbers = f"items x {self.items}, queries x {self.queries}, smoothing {self.smoothing}"
        return f"singular vectors of {what}, {numbers}, metric of texts x {self.text}"

    def to_tensor(self) -> Tensor:
        """As a checkpoint holds it, and ranks tell it to each other."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Strength:
        """The inverse of `to_tensor`."""
        return cls(*(float(number) for number in tensor))


class _Start:
    """A tower's parts that singular vectors and the texts' metric are given to.

    Args:
        tower: With item vectors and query identities.
        inputs: The pass's tables.
        settings: The tasks' shares, and the seed.

    Raises:
        InputError: there are more items or queries with pairs than rows for them.
    """

    def __init__(self, tower: ItemTower, inputs: Inputs, settings: Settings) -> None:
        assert tower.item_identity is not None
        assert tower.residual is not None
        assert tower.residual.gamma is not None
        assert tower.query_adapter is not None
        assert tower.query_adapter.identity is not None
        self.items, self.queries = tower.item_identity, tower.query_adapter.identity
        _require_own_rows("id_rows", settings.model.id_rows, len(inputs.item_keys))
        _require_own_rows("query_id_rows", settings.model.query_id_rows, len(inputs.query_keys))
        self.gamma, self.beta = tower.residual.gamma, tower.query_adapter.beta
        self.maps = [tower.query_adapter.weight]
        if tower.residual.item_map is not None:
            self.maps.append(tower.residual.item_map)
        self._inputs, self._settings = inputs, settings
        self._shares = [task.share for task in settings.tasks]
        self._found: dict[float, SpectralStart] = {}
        self._given: dict[KeyIdentity, tuple[float, ...]] = {}

    @cached_property
    def metric(self) -> TextMetric | None:
        """Of the texts; None where the items' have no map."""
        if len(self.maps) == 1:
            return None
        return text_metric(self._inputs.tasks, self._shares, self._inputs.weight, self._settings.train.seed)

    def found(self, counts: float) -> SpectralStart:
        """Singular vectors of counts, or of weights."""
        if counts not in self._found:
            measure = _COUNTS[self._inputs.weight] if counts else self._inputs.weight
            self._found[counts] = spectral_start(self._inputs.tasks, self._shares, measure)
        return self._found[counts]

    @torch.no_grad()
    def give(self, strength: Strength) -> None:
        """Give items, queries and maps what they are to start with."""
        self.scale(strength)
        found = self.found(strength.counts)
        self._give(self.items, (strength.counts,), found.item_keys, lambda: found.items)
        of_queries = strength.counts, strength.smoothing
        self._give(self.queries, of_queries, found.query_keys, lambda: found.query_vectors(strength.smoothing))
        if self.metric is not None:
            change = torch.from_numpy(self.metric.change(strength.text))
            for parameter in self.maps:
                parameter.copy_(change.expand_as(parameter))

    def _give(self, identity: KeyIdentity, what: tuple[float, ...], keys: Keys, vectors: Callable[[], Vectors]) -> None:
        """Make the vectors those of the keys, unless they are."""
        if self._given.get(identity) != what:
            device = identity.table.device
            identity.assign(torch.from_numpy(keys).to(device), torch.from_numpy(vectors()).to(device))
            self._given[identity] = what

    @torch.no_grad()
    def scale(self, strength: Strength) -> None:
        """Set the factors of the identities."""
        self.gamma.fill_(strength.items)
        self.beta.fill_(strength.queries)

    @torch.no_grad()
    def take_first(self) -> None:
        """The values of rank 0 on all ranks, but for the factors."""
        if distributed.world_size() > 1:
            for parameter in (self.items.table, self.queries.table, *self.maps):
                parameter.mul_(float(distributed.rank() == 0))
                parameter.copy_(distributed.sum_over_ranks(parameter))


def start_spectral(
    tower: ItemTower, inputs: Inputs, settings: Settings, known: Strength | None, validation: Validation | None
) -> Strength:
    """Give items and queries their singular vectors, and the maps of their frozen ones the texts' metric.

    Args:
        tower: With item vectors and query identities; the same on all ranks, as it then is again.
        inputs: The pass's tables.
        settings: The tasks' shares.
        known: The strength that an earlier pass has found; None = choose it on the validation window.
        validation: Of rank 0; None elsewhere, or where nothing is validated.

    Raises:
        InputError: there are more items or queries with pairs than rows for them.
    """
    start = _Start(tower, inputs, settings)
    device = start.gamma.device
    strength = torch.zeros(len(astuple(Strength())), dtype=torch.float64)

    def find() -> None:
        has_ages = bool(settings.half_life_days)
        chosen = known or (_best(tower, start, validation, has_ages) if validation else Strength())
        start.give(chosen)
        strength.add_(chosen.to_tensor())

    distributed.on_first(find)
    start.take_first()
    chosen = Strength.from_tensor(distributed.sum_over_ranks(strength.to(device)).cpu())
    start.scale(chosen)
    tower.pull_unseen(torch.zeros(EMBEDDING_DIM, device=device))  # of the last strength tried
    return chosen


def _best(tower: ItemTower, start: _Start, validation: Validation, has_ages: bool) -> Strength:
    """Of the strengths that are tried, the one that is worth most once unseen items are pulled.

    One number after the other: all combinations would take an hour on a large shop.
    """
    tried: dict[Strength, float] = {}

    def best_of(strengths: Iterable[Strength]) -> Strength:
        for strength in strengths:
            start.give(strength)
            measured = validation.calibrate(tower, 0, start.gamma.device)
            tried[strength] = measured.recall.worth
            print(f"  start: {strength}, pull {measured.pull}: {measured.recall}", flush=True)
        return max(tried, key=tried.__getitem__)

    smoothing, *smoothings = _SMOOTHINGS
    text, *texts = _TEXTS if start.metric is not None else (0.0,)
    best = best_of(Strength(*pair, smoothing, text=text) for pair in _STRENGTHS)
    best = best_of(replace(best, text=other) for other in texts)
    best = best_of(replace(best, smoothing=other) for other in smoothings)
    return best_of([replace(best, counts=1.0)]) if has_ages else best


def _require_own_rows(key: str, rows: int, needed: int) -> None:
    if rows < needed:
        raise InputError(
            TRAIN.name,
            f"model.{key}",
            expected=f'at least {needed:,}, a row for each that has training pairs, as train.start is "spectral"',
            found=f"{rows:,}",
            cure='Raise it, leave it out so that the preset chooses, or set train.start = "random".',
        )
