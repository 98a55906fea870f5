"""What the model reads: items and pairs as arrays, unpacked from the tables' binary cells.

Shape words used throughout the model:
    item      distinct item of a batch          pair      (query, item) row of a training table
    text      text feature slot (12)            image     image slot (up to 20)
    token     token ids, flat                   dim       256, the length of every embedding
    column    distinct in-batch item            negative  distinct random item
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from itemsage_model.data.ragged import PackedItems, _runs


@dataclass(frozen=True)
class ItemBatch:
    """Items as the model takes them: ragged and in half precision, as they lie in the tables.

    Attributes:
        text_token_ids: Token ids of all text features, flat; int32.
        text_token_counts: How many of them each text feature has; 0 = the feature is empty.
        image_embeddings: The images of all items, flat; float16.
        image_counts: How many of them each item has.
    """

    text_token_ids: Int[Tensor, "token"]
    text_token_counts: Int[Tensor, "item text"]
    image_embeddings: Float[Tensor, "image dim"]
    image_counts: Int[Tensor, "item"]

    def to(self, device: torch.device) -> ItemBatch:
        """The same batch on a device."""
        return _changed(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> ItemBatch:
        """The same batch in page-locked memory, from which a GPU copies it several times as fast.

        What lies on a GPU already stays there.
        """
        return _changed(self, _pinned)


@dataclass(frozen=True)
class PairBatch:
    """One rank's share of a training batch. `items` holds every distinct item of its pairs and negatives once.

    Attributes:
        items: The distinct items to encode.
        item_keys: Their identities.
        positive: For each pair, the position of its item in `items`.
        negatives: Positions in `items` of the random negatives, distinct.
        query_embedding: Frozen query vectors, float16.
        query_keys: Identity of each pair's query.
        query_item_keys: Identity of the item the query shows; 0 = none.
        weights: Weight of each pair in the loss.
        tasks: Index of each pair's task.
    """

    items: ItemBatch
    item_keys: Int[Tensor, "item"]
    positive: Int[Tensor, "pair"]
    negatives: Int[Tensor, "negative"]
    query_embedding: Float[Tensor, "pair dim"]
    query_keys: Int[Tensor, "pair"]
    query_item_keys: Int[Tensor, "pair"]
    weights: Float[Tensor, "pair"]
    tasks: Int[Tensor, "pair"]

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on a device."""
        return _changed(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PairBatch:
        """The same batch in page-locked memory; see `ItemBatch.pin_memory`."""
        return _changed(self, _pinned)


Batch = TypeVar("Batch", ItemBatch, PairBatch)


def to_item_batch(packed: PackedItems, image_slots: int) -> ItemBatch:
    """Packed items as tensors; of more than `image_slots` images an item keeps the first."""
    images, counts = packed.image_embeddings, packed.image_counts
    if counts.max(initial=0) > image_slots:
        kept = np.minimum(counts, image_slots)
        images, counts = images[_runs(packed._image_starts, kept)], kept
    arrays = (packed.text_token_ids, packed.text_token_counts, images, counts)
    # torch takes no array that it may not write to, such as one that lies in an Arrow buffer; that one is copied.
    return ItemBatch(*(torch.from_numpy(np.require(array, requirements="W")) for array in arrays))


def _changed(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor changed, those of its items too."""
    parts = [getattr(batch, field.name) for field in fields(batch)]
    changed: list[Any] = [change(part) if isinstance(part, Tensor) else _changed(part, change) for part in parts]
    return type(batch)(*changed)


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_cuda else tensor.pin_memory()
