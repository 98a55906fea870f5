"""Mixing tasks and random negatives into batches in which every distinct item is encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import numpy.typing as npt
import torch

from itemsage_model.data.batch import ExplicitNegatives, ItemBatch, PairBatch, to_item_batch
from itemsage_model.data.near_negatives import NearNegatives
from itemsage_model.data.ragged import ItemRows
from itemsage_model.data.reader import CatalogItems, Pairs, RowStream, gather_blocks
from schemas.elements import SizedElement
from schemas.errors import TableError
from schemas.stages import remade

CPU = torch.device("cpu")


@dataclass(frozen=True)
class MixedBatches:
    """An endless iterable of one rank's batches: some pairs of every task, and random negatives they all share.

    Rows of weight 0 are no part of a batch, which then has fewer pairs.

    Source: ItemSage section 3.4 and Figure 4.

    Attributes:
        tasks: One stream a task.
        pairs: Rows of each task in a batch.
        catalog: Where random negatives come from; None with a full softmax.
        negative_count: Random negatives of a batch.
        negative_keys: Sorted keys of the items that may be negatives; None = all.
        elements: What of an item goes into a batch.
        start_step: Steps already taken by an earlier run, whose rows are passed over.
        near: Draws a hard negative for each pair of the first task; None = none.
    """

    tasks: list[RowStream[Pairs]]
    pairs: list[int]
    catalog: RowStream[CatalogItems] | None
    negative_count: int
    negative_keys: npt.NDArray[np.int64] | None
    elements: Sequence[SizedElement]
    start_step: int = 0
    near: NearNegatives | None = None

    def __iter__(self) -> Iterator[PairBatch]:
        streams = [
            stream.batches(size, self.start_step * size) for stream, size in zip(self.tasks, self.pairs, strict=True)
        ]
        negatives = self._negatives()
        for step in count(self.start_step):
            blocks = [_weighing(next(stream)) for stream in streams]
            hard = self.near.drawn(blocks[0], step) if self.near else None
            yield collate(blocks, next(negatives), self.elements, hard)

    def _negatives(self) -> Iterator[CatalogItems | None]:
        if self.catalog is None or not self.negative_count:
            while True:
                yield None
        for block in self.catalog.batches(self.negative_count, self.start_step * self.negative_count):
            if self.negative_keys is None:
                yield block
                continue
            rows = np.flatnonzero(np.isin(block.item_key, self.negative_keys))
            yield CatalogItems(block.item_key[rows], block.items.take(rows))


def _weighing(block: Pairs) -> Pairs:
    """The rows whose weight is above 0: in a batch, the item of another one would be a column of the softmax."""
    rows = np.flatnonzero(block.pair_weight)
    return block if len(rows) == len(block) else gather_blocks([block], rows)


def collate(
    blocks: list[Pairs],
    negatives: CatalogItems | None,
    elements: Sequence[SizedElement],
    hard: tuple[CatalogItems, npt.NDArray[np.float32]] | None = None,
) -> PairBatch:
    """Join the tasks' rows and the negatives into one batch, each distinct item once.

    Args:
        blocks: Rows of each task.
        negatives: Random items.
        elements: What of an item goes into a batch.
        hard: An item for each row of the first task that counts against that row alone, and its weight.
    """
    item_key = np.concatenate([block.item_key for block in blocks])
    further = [one for one in (negatives, hard[0] if hard else None) if one is not None]
    keys = np.concatenate([item_key, *(one.item_key for one in further)])
    distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    parts = [block.items for block in blocks] + [one.items for one in further]
    items = ItemRows.concatenate([part for part in parts if part is not None]).take(first)
    # In the order in which they lie in memory, as they are copied faster so.
    order = np.argsort(items.rows)
    index_of = np.empty_like(order)
    index_of[order] = np.arange(len(order))
    index = index_of[inverse]
    item_keys = torch.from_numpy(distinct[order])
    end = len(item_key) + (0 if negatives is None else len(negatives))
    batch = _pair_batch(
        blocks,
        to_item_batch(items.take(order).gather(), elements, item_keys),
        item_keys,
        index[: len(item_key)],
        np.unique(index[len(item_key) : end]),
    )
    return batch if hard is None else replace(batch, explicit=_of_first(index[end:], hard[1], batch))


def _of_first(item: npt.NDArray[np.int64], weight: npt.NDArray[np.float32], batch: PairBatch) -> ExplicitNegatives:
    """Explicit negatives of the rows of the first task; the others have none."""
    others = len(batch.positive) - len(item)
    items, weights = np.pad(item, (0, others)), np.pad(weight, (0, others))
    is_column = torch.ones(len(batch.item_key), dtype=torch.bool)
    return ExplicitNegatives(torch.from_numpy(items), torch.from_numpy(weights), is_column)


def _pair_batch(
    blocks: list[Pairs],
    items: ItemBatch,
    item_keys: torch.Tensor,
    positive: npt.NDArray[np.int64],
    negatives: npt.NDArray[np.int64],
) -> PairBatch:
    return PairBatch(
        items=items,
        item_key=item_keys,
        positive=torch.from_numpy(positive),
        negatives=torch.from_numpy(negatives),
        query_embedding=torch.from_numpy(np.concatenate([block.query_embedding for block in blocks])),
        query_key=torch.from_numpy(np.concatenate([block.query_key for block in blocks])),
        query_item_key=torch.from_numpy(np.concatenate([block.query_item_key for block in blocks])),
        pair_weight=torch.from_numpy(np.concatenate([block.pair_weight for block in blocks])),
        task=torch.from_numpy(np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])),
    )


@dataclass(frozen=True)
class CatalogBatches:
    """An endless iterable of batches for the full softmax: pairs of every task against the whole catalog.

    The catalog is encoded anew in every step, each rank its slice, which is brought to its device once. Rows of weight
    0 are no part of a batch, which then has fewer pairs. For the bucketed softmax every rank has all of it, as slice 0
    of 1, and encodes what it chooses.

    Attributes:
        tasks: One stream a task, read without item features.
        pairs: Rows of each task in a batch.
        catalog: The items to encode, sorted by key; every positive and every explicit negative must be among them.
        rank: This rank.
        ranks: Number of ranks.
        elements: What of an item goes into a batch.
        start_step: Steps already taken by an earlier run.
        device: Where the catalog is encoded.
        is_column: bool [item] of the catalog, the items of the softmax; the others are there as rows' explicit
            negatives. None = the rows have no negatives of their own.
    """

    tasks: list[RowStream[Pairs]]
    pairs: list[int]
    catalog: CatalogItems
    rank: int
    ranks: int
    elements: Sequence[SizedElement]
    start_step: int = 0
    device: torch.device = CPU
    is_column: npt.NDArray[np.bool_] | None = None

    def __iter__(self) -> Iterator[PairBatch]:
        bounds = np.linspace(0, len(self.catalog), self.ranks + 1).astype(np.int64)
        own = np.arange(bounds[self.rank], bounds[self.rank + 1])
        keys = torch.from_numpy(self.catalog.item_key)
        items = to_item_batch(self.catalog.items.take(own).gather(), self.elements, keys[own]).to(self.device)
        keys = keys.to(self.device)
        is_column = None if self.is_column is None else torch.from_numpy(self.is_column).to(self.device)
        streams = [
            stream.batches(size, self.start_step * size) for stream, size in zip(self.tasks, self.pairs, strict=True)
        ]
        while True:
            blocks = [_weighing(next(stream)) for stream in streams]
            positive = np.searchsorted(self.catalog.item_key, np.concatenate([block.item_key for block in blocks]))
            batch = _pair_batch(blocks, items, keys, positive, np.empty(0, np.int64))
            yield batch if is_column is None else replace(batch, explicit=self._explicit(blocks, is_column))

    def _explicit(self, blocks: list[Pairs], is_column: torch.Tensor) -> ExplicitNegatives:
        key = np.concatenate([block.negative_item_key for block in blocks if block.negative_item_key is not None])
        weight = np.concatenate([block.negative_weight for block in blocks if block.negative_weight is not None])
        # The key 0 of a row without a negative leads anywhere.
        item = np.searchsorted(self.catalog.item_key, key).clip(max=len(self.catalog) - 1)
        is_unknown = (weight > 0) & (self.catalog.item_key[item] != key)
        if is_unknown.any():
            raise TableError(
                self.tasks[0].files.table,
                "negative_item_key",
                expected="keys of items of the catalog",
                found=f"{int(is_unknown.sum())} others in one batch",
                cure=remade(self.tasks[0].files.table),
            )
        return ExplicitNegatives(torch.from_numpy(item), torch.from_numpy(weight), is_column)


def pairs_per_task(batch_size: int, shares: list[float]) -> list[int]:
    """Split a batch over the tasks by their shares: largest remainder, at least one pair each.

    Source: ItemSage section 3.4 (equal T_k = |B| / K is the start value).
    """
    exact = np.array(shares) / sum(shares) * batch_size
    counts = np.maximum(np.floor(exact).astype(int), 1)
    while counts.sum() < batch_size:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > batch_size:
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return [int(count) for count in counts]
