"""Lists of unequal length laid end to end in numpy arrays, and picking some items' lists with one copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Ragged:
    """One element of some items: a list of values an item, or a list for each of its slots.

    Attributes:
        values: All values, in the order of items and slots: int32 [value], or float16 [value, length].
        counts: How many values each item has, int64 [item], or each of its slots, int32 [item, slot].
    """

    values: npt.NDArray[Any]
    counts: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def totals(self) -> npt.NDArray[np.int64]:
        """Values of each item [item]."""
        of_items = self.counts if self.counts.ndim == 1 else self.counts.sum(axis=1, dtype=np.int64)
        totals: npt.NDArray[np.int64] = of_items.astype(np.int64, copy=False)
        return totals

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each item's values begin [item]."""
        return starts_of(self.totals)

    def first(self, limit: int) -> Ragged:
        """At most the first `limit` values of each item, where counts are per item."""
        if self.counts.max(initial=0) <= limit:
            return self
        kept = np.minimum(self.counts, limit)
        return Ragged(self.values[runs(self.starts, kept)], kept)

    @staticmethod
    def gather(parts: Sequence[Ragged], chosen: Sequence[Chosen], row_count: int) -> Ragged:
        """Chosen items of several parts, copied once; see `PackedItems.gather`."""
        counts = np.empty((row_count, *parts[0].counts.shape[1:]), parts[0].counts.dtype)
        for part, (targets, own) in zip(parts, chosen, strict=True):
            counts[targets] = part.counts[own]
        gathered = Ragged(np.empty(0), counts)
        totals, starts = gathered.totals, gathered.starts
        values = np.empty((int(totals.sum()), *parts[0].values.shape[1:]), parts[0].values.dtype)
        for part, (targets, own) in zip(parts, chosen, strict=True):
            _copy_runs(part.values, part.starts[own], values, starts, totals, targets)
        return Ragged(values, counts)


Chosen = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Of one part: to which rows of the result it contributes, and which of its own rows go there."""


@dataclass(frozen=True)
class PackedItems:
    """Items as arrays, the numpy side of a batch: each element's values under the name of their column."""

    elements: dict[str, Ragged]

    def __len__(self) -> int:
        return len(next(iter(self.elements.values())))

    def __getitem__(self, key: str) -> Ragged:
        return self.elements[key]

    def take(self, rows: npt.NDArray[np.int64]) -> PackedItems:
        """The items at `rows`, in that order; rows may repeat."""
        return PackedItems.gather([self], rows)

    @staticmethod
    def gather(parts: Sequence[PackedItems], rows: npt.NDArray[np.int64]) -> PackedItems:
        """The items at `rows` of the parts laid end to end, in that order, copied once; rows may repeat.

        Ascending rows are the fastest: what comes of one part then lies together.
        """
        chosen = list(_by_part([len(part) for part in parts], rows))
        return PackedItems(
            {key: Ragged.gather([part[key] for part in parts], chosen, len(rows)) for key in parts[0].elements}
        )


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


def take_rows(parts: Sequence[npt.NDArray[Any]], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The given rows of arrays laid end to end, without laying them so."""
    if len(parts) == 1:
        return parts[0][rows]
    taken = np.empty((len(rows), *parts[0].shape[1:]), parts[0].dtype)
    for part, (targets, own) in zip(parts, _by_part([len(part) for part in parts], rows), strict=True):
        taken[targets] = part[own]
    return taken


def starts_of(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of some lists begins that lie end to end; [list]."""
    starts: npt.NDArray[np.int64] = np.cumsum(counts) - counts
    return starts


def runs(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Indices start, start + 1, ... for each start, as many as its length, end to end."""
    offsets: npt.NDArray[np.int64] = np.repeat(starts - starts_of(lengths), lengths)
    return offsets + np.arange(len(offsets))


def _by_part(lengths: list[int], rows: npt.NDArray[np.int64]) -> Iterator[Chosen]:
    """For each part: which of `rows` lie in it, and at which of its own rows."""
    start = 0
    for length in lengths:
        targets = np.flatnonzero((rows >= start) & (rows < start + length))
        yield targets, rows[targets] - start
        start += length


def _copy_runs(
    source: npt.NDArray[Any],
    starts: npt.NDArray[np.int64],
    target: npt.NDArray[Any],
    target_starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
) -> None:
    """Copy one run of `source` to each of some lists of `target`.

    Args:
        source: Numbers or rows.
        starts: Where each run begins in `source`; [run].
        target: Filled in.
        target_starts: Where each list begins in `target`; [list].
        lengths: Of each list; [list].
        targets: Which list each run fills; ascending; [run].
    """
    if not len(targets):
        return
    taken = runs(starts, lengths[targets])
    first, last = int(targets[0]), int(targets[-1])
    if last - first + 1 == len(targets):
        end = int(target_starts[last] + lengths[last])
        # "clip", because "raise" would fill a copy first; the positions are known to lie within.
        np.take(source, taken, axis=0, out=target[int(target_starts[first]) : end], mode="clip")
    else:
        target[runs(target_starts[targets], lengths[targets])] = source[taken]
