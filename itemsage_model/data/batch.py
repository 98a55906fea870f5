"""What the model reads: items and pairs as tensors, ragged and in half precision, as they lie in the tables.

Shape words used throughout the model:
    item      distinct item of a batch          pair      (query, item) row of a training table
    text      text feature slot (12)            image     image, of all items end to end (up to 20 an item)
    token     token ids, flat                   dim       256, the length of every embedding
    column    distinct in-batch item            negative  distinct random item
    value     value of an element, flat         slot      slot of an element
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from itemsage_model.data.ragged import PackedItems, Ragged
from schemas.elements import SizedElement


@dataclass(frozen=True)
class RaggedTensor:
    """One element of a batch's items.

    Attributes:
        values: All values, in the order of items and slots: ids [value], or vectors [value, length].
        counts: How many values each item has [item], or each of its slots [item, slot]; 0 = none.
    """

    values: Shaped[Tensor, "value ..."]
    counts: Int[Tensor, "item ..."]

    def take(self, rows: Int[Tensor, "row"]) -> RaggedTensor:
        """The values of the items at `rows`, in that order."""
        totals = self.counts if self.counts.ndim == 1 else self.counts.sum(dim=1)
        lengths, starts = totals[rows], (totals.cumsum(0) - totals)[rows]
        first = torch.repeat_interleave(starts - (lengths.cumsum(0) - lengths), lengths)
        return RaggedTensor(self.values[first + torch.arange(len(first), device=rows.device)], self.counts[rows])


@dataclass(frozen=True)
class ItemBatch:
    """Items as a tower takes them.

    Attributes:
        elements: Each element's values under the name of their column.
        item_key: The items' identities; None where no tower asks for them.
    """

    elements: dict[str, RaggedTensor]
    item_key: Int[Tensor, "item"] | None = None

    def __getitem__(self, key: str) -> RaggedTensor:
        return self.elements[key]

    def __len__(self) -> int:
        return len(next(iter(self.elements.values())).counts)

    def take(self, rows: Int[Tensor, "row"]) -> ItemBatch:
        """The items at `rows`, in that order."""
        keys = None if self.item_key is None else self.item_key[rows]
        return ItemBatch({name: element.take(rows) for name, element in self.elements.items()}, keys)

    def to(self, device: torch.device) -> ItemBatch:
        """This batch with its tensors on a device."""
        return _changed(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> ItemBatch:
        """This batch in page-locked memory, from which a GPU copies it several times as fast.

        What lies on a GPU already stays there.
        """
        return _changed(self, _pinned)


@dataclass(frozen=True)
class ExplicitNegatives:
    """Items that count against single pairs: each in its own row's denominator, and in no other.

    Attributes:
        item: For each pair, the index of its negative among the batch's items, which with a full softmax are those of
            all ranks; any, where it has none.
        weight: How often it counts there; 0 = the pair has none.
        is_column: Items of all ranks that stand in every row's denominator; the others are encoded as negatives alone.
    """

    item: Int[Tensor, "pair"]
    weight: Float[Tensor, "pair"]
    is_column: Bool[Tensor, "item"]


@dataclass(frozen=True)
class Buckets:
    """Which items stand in whose denominator, in a bucketed softmax.

    Attributes:
        of_pair: The bucket that each pair's query is in.
        items: Indices in `PairBatch.items` of each bucket's items, distinct within a bucket.
        log_probability: Log probability with which each of them is in its bucket.
    """

    of_pair: Int[Tensor, "pair"]
    items: Int[Tensor, "bucket entry"]
    log_probability: Float[Tensor, "bucket entry"]


@dataclass(frozen=True)
class PairBatch:
    """One rank's share of a training batch. `items` holds every distinct item of its pairs and negatives once.

    Attributes:
        items: The distinct items to encode.
        item_key: Their identities.
        positive: For each pair, the index of its item in `items`.
        negatives: Indices in `items` of the random negatives, distinct.
        query_embedding: Frozen query vectors, float16.
        query_key: Identity of each pair's query.
        query_item_key: Identity of the item the query shows; 0 = none.
        pair_weight: Weight of each pair in the loss.
        task: Index of each pair's task.
        explicit: The pairs' explicit negatives; None where the settings have none.
        buckets: With a bucketed softmax, once its items are chosen; else None.
    """

    items: ItemBatch
    item_key: Int[Tensor, "item"]
    positive: Int[Tensor, "pair"]
    negatives: Int[Tensor, "negative"]
    query_embedding: Float[Tensor, "pair dim"]
    query_key: Int[Tensor, "pair"]
    query_item_key: Int[Tensor, "pair"]
    pair_weight: Float[Tensor, "pair"]
    task: Int[Tensor, "pair"]
    explicit: ExplicitNegatives | None = None
    buckets: Buckets | None = None

    def to(self, device: torch.device) -> PairBatch:
        """This batch with its tensors on a device."""
        return _changed(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PairBatch:
        """This batch in page-locked memory; see `ItemBatch.pin_memory`."""
        return _changed(self, _pinned)


Batch = TypeVar("Batch")


def to_item_batch(
    packed: PackedItems, elements: Sequence[SizedElement], item_key: Int[Tensor, "item"] | None = None
) -> ItemBatch:
    """Packed items as tensors; of more vectors than an element has slots an item keeps the first."""
    parts = {}
    for element in elements:
        ragged = packed[element.key]
        parts[element.key] = _tensors(ragged if element.element.counts else ragged.first(element.slots))
    return ItemBatch(parts, item_key)


def _tensors(ragged: Ragged) -> RaggedTensor:
    # torch takes no array that it may not write to, such as one that lies in an Arrow buffer; that one is copied.
    arrays = (np.require(array, requirements="W") for array in (ragged.values, ragged.counts))
    return RaggedTensor(*map(torch.from_numpy, arrays))


def _changed(part: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """A batch, or a part of one, with every tensor in it changed."""
    changed: Any
    if isinstance(part, Tensor):
        changed = change(part)
    elif isinstance(part, dict):
        changed = {key: _changed(value, change) for key, value in part.items()}
    elif isinstance(part, tuple):
        changed = tuple(_changed(one, change) for one in part)
    elif part is None:
        changed = None
    else:
        changed = type(part)(*(_changed(getattr(part, field.name), change) for field in fields(part)))  # type: ignore[arg-type]
    return changed  # type: ignore[no-any-return]


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_cuda else tensor.pin_memory()
