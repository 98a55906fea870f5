"""What the model reads: items and pairs as arrays, unpacked from the tables' binary cells.

Shape words used throughout the model:
    item      distinct item of a batch          pair      (query, item) row of a training table
    text      text feature slot (12)            image     image slot (up to 20)
    token     token ids, flat                   dim       256, the length of every embedding
    column    distinct in-batch item            negative  distinct random item
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from itemsage_model.packed_cells import Column, unpack
from schemas.columns import TableError
from schemas.tables import EMBEDDING_DIM

FEATURE_CELLS = ("text_token_ids", "text_token_counts", "image_embeddings")
"""The packed columns that hold an item's features."""

_FINITE_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class PackedItems:
    """Items with their ragged lists laid end to end; the numpy side of a batch.

    Attributes:
        text_token_ids: int32 [token], the items' tokens in item and text order.
        text_token_counts: int32 [item, text].
        image_embeddings: float16 [total images, dim].
        image_counts: int64 [item].
    """

    text_token_ids: npt.NDArray[np.int32]
    text_token_counts: npt.NDArray[np.int32]
    image_embeddings: npt.NDArray[np.float16]
    image_counts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image_counts)

    def take(self, rows: npt.NDArray[np.int64]) -> PackedItems:
        """The items at `rows`, in that order; rows may repeat."""
        return PackedItems.gather([self], rows)

    @staticmethod
    def gather(parts: Sequence[PackedItems], rows: npt.NDArray[np.int64]) -> PackedItems:
        """The items at `rows` of the parts laid end to end, in that order, copied once; rows may repeat.

        Ascending rows are the fastest: what comes of one part then lies together.
        """
        own_rows = list(_by_part([len(part) for part in parts], rows))
        counts = np.empty((len(rows), parts[0].text_token_counts.shape[1]), np.int32)
        image_counts = np.empty(len(rows), np.int64)
        for part, (places, own) in zip(parts, own_rows, strict=True):
            counts[places], image_counts[places] = part.text_token_counts[own], part.image_counts[own]
        token_counts = counts.sum(axis=1, dtype=np.int64)
        tokens = np.empty(token_counts.sum(), np.int32)
        images = np.empty((image_counts.sum(), EMBEDDING_DIM), np.float16)
        token_starts, image_starts = _starts(token_counts), _starts(image_counts)
        for part, (places, own) in zip(parts, own_rows, strict=True):
            _copy_runs(part.text_token_ids, part._token_starts[own], tokens, token_starts, token_counts, places)
            _copy_runs(part.image_embeddings, part._image_starts[own], images, image_starts, image_counts, places)
        return PackedItems(tokens, counts, images, image_counts)

    @cached_property
    def _token_starts(self) -> npt.NDArray[np.int64]:
        return _starts(self.text_token_counts.sum(axis=1, dtype=np.int64))

    @cached_property
    def _image_starts(self) -> npt.NDArray[np.int64]:
        return _starts(self.image_counts)


@dataclass(frozen=True)
class ItemRows:
    """Rows of packed items, chosen but not yet copied: a batch is gathered once, from the row groups as they were read.

    Attributes:
        parts: Packed items.
        rows: int64 [item], rows of the parts laid end to end; may repeat.
    """

    parts: Sequence[PackedItems]
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: npt.NDArray[np.int64]) -> ItemRows:
        """Some of the rows, in the order given."""
        return ItemRows(self.parts, self.rows[rows])

    def gather(self) -> PackedItems:
        """The rows, copied together."""
        return PackedItems.gather(self.parts, self.rows)

    @staticmethod
    def concatenate(several: Sequence[ItemRows]) -> ItemRows:
        """All rows, in order."""
        starts = np.cumsum([0, *(sum(len(part) for part in rows.parts) for rows in several)])
        shifted = [rows.rows + start for rows, start in zip(several, starts, strict=False)]
        return ItemRows([part for rows in several for part in rows.parts], np.concatenate(shifted))


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


def unpack_items(table: str, cells: dict[str, Column], text_count: int, vocabulary_size: int) -> PackedItems:
    """Turn the packed feature columns of some rows into arrays, checking that they are what the schema says.

    The numbers are not copied: the arrays lie in Arrow's buffers.

    Args:
        table: The table's name, for the error.
        cells: `text_token_ids`, `text_token_counts` and `image_embeddings`, binary columns.
        text_count: Number of text features of every row.
        vocabulary_size: Token ids must lie below it.

    Raises:
        TableError: a cell is null or of the wrong size, an id lies outside the vocabulary, a number is not finite.
    """
    ids, ids_per_row = _unpack(table, "text_token_ids", cells, "<i4")
    flat_counts, counts_per_row = _unpack(table, "text_token_counts", cells, "<i4")
    if (counts_per_row != text_count).any():
        raise _misshapen(table, "text_token_counts", f"{text_count} counts a row", f"{counts_per_row.max()}")
    counts = flat_counts.reshape(-1, text_count)
    if (counts < 0).any() or (counts.sum(axis=1) != ids_per_row).any():
        raise _misshapen(table, "text_token_ids", "as many ids a row as text_token_counts says", "another number")
    # Seen as unsigned, a negative id is a very large one.
    if len(ids) and ids.view(np.uint32).max() >= vocabulary_size:
        raise _misshapen(table, "text_token_ids", f"ids from 0 to {vocabulary_size - 1}", f"{ids.min()} to {ids.max()}")
    numbers, numbers_per_row = _unpack(table, "image_embeddings", cells, "<f2")
    if (numbers_per_row % EMBEDDING_DIM).any():
        raise _misshapen(table, "image_embeddings", f"a multiple of {2 * EMBEDDING_DIM} bytes a row", "another size")
    if not all_finite(numbers):
        raise _misshapen(table, "image_embeddings", "finite numbers", "NaN or infinity")
    return PackedItems(ids, counts, numbers.reshape(-1, EMBEDDING_DIM), numbers_per_row // EMBEDDING_DIM)


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


def gather_rows(parts: Sequence[npt.NDArray[Any]], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The given rows of arrays laid end to end, without laying them so."""
    if len(parts) == 1:
        return parts[0][rows]
    gathered = np.empty((len(rows), *parts[0].shape[1:]), parts[0].dtype)
    for part, (places, own) in zip(parts, _by_part([len(part) for part in parts], rows), strict=True):
        gathered[places] = part[own]
    return gathered


def _by_part(
    lengths: list[int], rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """For each part: which of `rows` lie in it, and at which of its own rows."""
    start = 0
    for length in lengths:
        places = np.flatnonzero((rows >= start) & (rows < start + length))
        yield places, rows[places] - start
        start += length


def _starts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of some lists begins that lie end to end."""
    starts: npt.NDArray[np.int64] = np.cumsum(counts) - counts
    return starts


def _runs(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """start, start + 1, ... for each start, as many as its length, end to end."""
    offsets: npt.NDArray[np.int64] = np.repeat(starts - _starts(lengths), lengths)
    return offsets + np.arange(len(offsets))


def _copy_runs(
    source: npt.NDArray[Any],
    starts: npt.NDArray[np.int64],
    target: npt.NDArray[Any],
    target_starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
) -> None:
    """Copy one run of `source` to each of some places of `target`.

    Args:
        source: Numbers or rows.
        starts: Where each run begins in `source`; [run].
        target: Filled in.
        target_starts: Where each place begins in `target`; [place].
        lengths: Of each place; [place].
        places: Which place each run fills; ascending; [run].
    """
    if not len(places):
        return
    taken = _runs(starts, lengths[places])
    first, last = int(places[0]), int(places[-1])
    if last - first + 1 == len(places):
        end = int(target_starts[last] + lengths[last])
        # "clip", because "raise" would fill a copy first; the positions are known to lie within.
        np.take(source, taken, axis=0, out=target[int(target_starts[first]) : end], mode="clip")
    else:
        target[_runs(target_starts[places], lengths[places])] = source[taken]


def all_finite(halves: npt.NDArray[np.float16]) -> bool:
    """Whether no float16 is NaN or infinite: its five exponent bits are then not all ones.

    numpy tests float16 by converting one number at a time, ten times slower. As whole numbers, the largest without sign
    are those that are not finite, with one as without; a piece at a time stays in the cache.
    """
    bits = halves.reshape(-1).view(np.uint16)
    pieces = (bits[first : first + _FINITE_AT_ONCE] for first in range(0, len(bits), _FINITE_AT_ONCE))
    return not any(piece.view(np.int16).max() >= 0x7C00 or piece.max() >= 0xFC00 for piece in pieces)


def _unpack(
    table: str, name: str, cells: dict[str, Column], dtype: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    try:
        return unpack(cells[name], dtype)
    except ValueError as error:
        raise _misshapen(table, name, "packed bytes in every row", str(error)) from error


def _misshapen(table: str, column: str, expected: str, found: str) -> TableError:
    cure = "Write the table again with the job that makes it, with these settings."
    return TableError(table, column, expected=expected, found=found, cure=cure)
