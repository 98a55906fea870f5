"""Rows with lists of unequal length, laid end to end in numpy arrays, and picking some of them with one copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.tables import EMBEDDING_DIM


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
