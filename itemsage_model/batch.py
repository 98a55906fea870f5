"""What the model reads: items and pairs as arrays, unpacked from the tables' binary cells.

Shape words used throughout the model:
    item      distinct item of a batch          pair      (query, item) row of a training table
    text      text feature slot (12)            image     image slot (up to 20)
    token     token ids, flat                   dim       256, the length of every embedding
    column    distinct in-batch item            negative  distinct random item
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from schemas.columns import TableError
from schemas.tables import EMBEDDING_DIM

FEATURE_CELLS = ("text_token_ids", "text_token_counts", "image_embeddings")
"""The packed columns that hold an item's features."""

Cells = Sequence[bytes] | npt.NDArray[np.object_]


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
        """The items at `rows` of the parts laid end to end, in that order, copied once; rows may repeat."""
        counts = gather_rows([part.text_token_counts for part in parts], rows)
        image_counts = gather_rows([part.image_counts for part in parts], rows)
        token_counts = counts.sum(axis=1, dtype=np.int64)
        tokens = np.empty(token_counts.sum(), np.int32)
        images = np.empty((image_counts.sum(), EMBEDDING_DIM), np.float16)
        to_tokens, to_images = np.cumsum(token_counts) - token_counts, np.cumsum(image_counts) - image_counts
        for part, (places, own) in zip(parts, _by_part([len(part) for part in parts], rows), strict=True):
            if not len(places):
                continue
            taken = token_counts[places]
            tokens[_runs(to_tokens[places], taken)] = part.text_token_ids[_runs(part._token_starts[own], taken)]
            taken = image_counts[places]
            images[_runs(to_images[places], taken)] = part.image_embeddings[_runs(part._image_starts[own], taken)]
        return PackedItems(tokens, counts, images, image_counts)

    @cached_property
    def _token_starts(self) -> npt.NDArray[np.int64]:
        counts = self.text_token_counts.sum(axis=1, dtype=np.int64)
        starts: npt.NDArray[np.int64] = np.cumsum(counts) - counts
        return starts

    @cached_property
    def _image_starts(self) -> npt.NDArray[np.int64]:
        starts: npt.NDArray[np.int64] = np.cumsum(self.image_counts) - self.image_counts
        return starts


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
    """Items as the model takes them.

    Attributes:
        text_token_ids: Token ids of all text features, flat.
        text_token_counts: How many of them each text feature has; 0 = the feature is empty.
        image_embeddings: Image vectors, missing slots zero.
        image_counts: How many of the image slots are filled.
    """

    text_token_ids: Int[Tensor, "token"]
    text_token_counts: Int[Tensor, "item text"]
    image_embeddings: Float[Tensor, "item image dim"]
    image_counts: Int[Tensor, "item"]

    def to(self, device: torch.device) -> ItemBatch:
        """The same batch on a device."""
        return ItemBatch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


@dataclass(frozen=True)
class PairBatch:
    """One rank's share of a training batch. `items` holds every distinct item of its pairs and negatives once.

    Attributes:
        items: The distinct items to encode.
        item_keys: Their identities.
        positive: For each pair, the position of its item in `items`.
        negatives: Positions in `items` of the random negatives, distinct.
        query_embedding: Frozen query vectors.
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
        return PairBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


def unpack_items(table: str, cells: dict[str, Cells], text_count: int, vocabulary_size: int) -> PackedItems:
    """Turn the packed feature columns of some rows into arrays, checking that they are what the schema says.

    Args:
        table: The table's name, for the error.
        cells: `text_token_ids`, `text_token_counts` and `image_embeddings`, one bytes object a row.
        text_count: Number of text features of every row.
        vocabulary_size: Token ids must lie below it.

    Raises:
        TableError: a cell is null or of the wrong size, an id lies outside the vocabulary, a number is not finite.
    """
    rows = len(cells["text_token_counts"])
    joined = {name: _join(table, name, cells) for name in FEATURE_CELLS}
    ids = np.frombuffer(joined["text_token_ids"], dtype="<i4")
    flat_counts = np.frombuffer(joined["text_token_counts"], dtype="<i4")
    if len(flat_counts) != rows * text_count:
        raise _misshapen(table, "text_token_counts", f"{text_count} counts a row", f"{len(flat_counts)} in {rows} rows")
    counts = flat_counts.reshape(rows, text_count)
    ids_per_row = np.fromiter((len(cell) for cell in cells["text_token_ids"]), np.int64, rows) // 4
    if (counts < 0).any() or (counts.sum(axis=1) != ids_per_row).any():
        raise _misshapen(table, "text_token_ids", "as many ids a row as text_token_counts says", "another number")
    if len(ids) and (ids.min() < 0 or ids.max() >= vocabulary_size):
        raise _misshapen(table, "text_token_ids", f"ids from 0 to {vocabulary_size - 1}", f"up to {ids.max()}")
    image_bytes = np.fromiter((len(cell) for cell in cells["image_embeddings"]), np.int64, rows)
    if (image_bytes % (2 * EMBEDDING_DIM)).any():
        raise _misshapen(table, "image_embeddings", f"a multiple of {2 * EMBEDDING_DIM} bytes a row", "another size")
    images = np.frombuffer(joined["image_embeddings"], dtype="<f2").reshape(-1, EMBEDDING_DIM)
    if not all_finite(images):
        raise _misshapen(table, "image_embeddings", "finite numbers", "NaN or infinity")
    return PackedItems(ids, counts, images, image_bytes // (2 * EMBEDDING_DIM))


def to_item_batch(packed: PackedItems, image_slots: int) -> ItemBatch:
    """Lay packed items out as tensors, images padded to the most that any item here has (at most `image_slots`).

    Padding to the longest list and not to 20 changes no output: slots beyond an item's count are masked.
    """
    used = np.minimum(packed.image_counts, image_slots)
    slots = int(used.max(initial=0))
    images = np.zeros((len(packed), slots, EMBEDDING_DIM), np.float16)
    # [item, image] mask of the filled slots; row-major order is the order of the flat list
    filled = np.arange(slots) < used[:, None]
    if (packed.image_counts > image_slots).any():
        kept = np.concatenate([np.arange(c) < image_slots for c in packed.image_counts])
        images[filled] = packed.image_embeddings[kept]
    else:
        images[filled] = packed.image_embeddings
    return ItemBatch(
        torch.from_numpy(packed.text_token_ids.astype(np.int64)),
        torch.from_numpy(packed.text_token_counts.astype(np.int64)),
        torch.from_numpy(images).float(),
        torch.from_numpy(used),
    )


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


def _runs(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """start, start + 1, ... for each start, as many as its length, end to end."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    positions: npt.NDArray[np.int64] = np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
    return positions


def all_finite(halves: npt.NDArray[np.float16]) -> bool:
    """Whether no float16 is NaN or infinite: its five exponent bits are then not all ones.

    numpy tests float16 by converting one number at a time, ten times slower.
    """
    return not ((halves.view(np.uint16) & 0x7C00) == 0x7C00).any()


def _join(table: str, column: str, cells: dict[str, Cells]) -> bytes:
    try:
        return b"".join(cells[column])
    except TypeError as error:
        raise _misshapen(table, column, "packed bytes in every row", "a null or another type") from error


def _misshapen(table: str, column: str, expected: str, found: str) -> TableError:
    cure = "Write the table again with the job that makes it, with these settings."
    return TableError(table, column, expected=expected, found=found, cure=cure)
