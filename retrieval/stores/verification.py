"""Whether a store holds what was published: ids by count and checksum, values by a random sample.

The checksum of a set of ids is the sum of their 64-bit hashes (MurmurHash3) modulo 2^64, so their order does not
matter and nothing has to be kept. It is taken in 4,096 buckets; where one differs, its ids alone are read again, to
name those that are missing or too many. Memory is that of the sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import mmh3
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.stores.store import EMBEDDING, ITEM_ID, Store
from schemas.tables import EMBEDDING_DIM

_BUCKET_BITS = 12
_BUCKETS_READ = 4
"""Differing buckets whose ids are read again: what they hold are examples."""
_NAMED = 5
"""Ids that a message names."""

Ids = Callable[[], Iterable[pa.Array]]
"""A pass over ids, which can be taken again."""


class IdSet:
    """Count and checksum of ids, a batch after the other."""

    def __init__(self) -> None:
        self._counts = np.zeros(1 << _BUCKET_BITS, np.int64)
        self._sums = np.zeros(1 << _BUCKET_BITS, np.uint64)

    def add(self, item_ids: pa.Array) -> None:
        """Count some ids."""
        hashes = _hashes(item_ids.to_pylist())
        buckets = _bucket(hashes)
        np.add.at(self._sums, buckets, hashes)
        self._counts += np.bincount(buckets, minlength=len(self._counts))

    @property
    def count(self) -> int:
        """How many there were."""
        return int(self._counts.sum())

    @property
    def checksum(self) -> str:
        """The sum of their hashes, 16 hexadecimal digits."""
        return f"{int(self._sums.sum(dtype=np.uint64)):016x}"

    def differing(self, other: IdSet) -> npt.NDArray[np.int64]:
        """Buckets in which two differ."""
        return np.flatnonzero((self._counts != other._counts) | (self._sums != other._sums))


def ids_of(passes: Iterable[pa.Array]) -> IdSet:
    """Count and checksum of a whole pass."""
    found = IdSet()
    for item_ids in passes:
        found.add(item_ids)
    return found


class Sample:
    """A uniform random sample of rows that go by.

    Args:
        size: Rows at most.
        generator: Where chance comes from.
    """

    def __init__(self, size: int, generator: np.random.Generator) -> None:
        self._size, self._generator, self._bound = size, generator, 1.0
        self._keys: list[npt.NDArray[np.float64]] = []
        self._parts: list[pa.RecordBatch] = []

    def add(self, rows: pa.RecordBatch) -> None:
        """Draw from some rows."""
        keys = self._generator.random(len(rows))
        chosen = np.flatnonzero(keys < self._bound)
        if len(chosen):
            self._keys.append(keys[chosen])
            self._parts.append(rows.take(pa.array(chosen)))
        if sum(map(len, self._keys)) > 2 * self._size:
            self._shrink()

    def _shrink(self) -> None:
        keys, rows = np.concatenate(self._keys), pa.Table.from_batches(self._parts).combine_chunks()
        kept = np.argsort(keys)[: self._size]
        self._bound = float(keys[kept].max())
        self._keys, self._parts = [keys[kept]], rows.take(pa.array(kept)).to_batches()

    def rows(self) -> pa.Table | None:
        """The sample; None where no row went by."""
        if not self._parts:
            return None
        self._shrink()
        return pa.Table.from_batches(self._parts)


def id_differences(expected: IdSet, again: Ids, stored: Ids, what: str = "rows") -> list[str]:
    """What is wrong with the ids that a store returns, in words; empty = nothing.

    Args:
        expected: Of what was published.
        again: The published ids once more, to name those that differ.
        stored: The ids that the store returns.
        what: What has these ids.
    """
    found = ids_of(stored())
    buckets = expected.differing(found)
    if not len(buckets):
        return []
    said = [
        f"{found.count:,} {what} with the checksum {found.checksum} where {expected.count:,} with {expected.checksum} "
        "were published"
    ]
    wanted, there = (Counter(_within(passes, buckets[:_BUCKETS_READ])) for passes in (again, stored))
    if missing := sorted((wanted - there).elements()):
        said.append(f"missing: {_named(missing)}")
    if extra := sorted((there - wanted).elements()):
        said.append(f"too many: {_named(extra)}")
    return said


def value_differences(sample: pa.Table, store: Store) -> list[str]:
    """Which rows of a sample a store returns otherwise, in words; empty = none.

    Args:
        sample: Rows as they were published.
        store: Is asked for them by id.
    """
    item_ids = sample[ITEM_ID].to_pylist()
    places = {item: place for place, item in enumerate(item_ids)}
    expected = {name: sample[name].to_pylist() for name in sample.column_names if name not in (ITEM_ID, EMBEDDING)}
    vectors = _matrix(sample[EMBEDDING].combine_chunks())
    wrong: dict[str, str] = {}
    left = set(item_ids)
    for rows in store.rows(item_ids):
        found_ids = rows.column(ITEM_ID).to_pylist()
        left.difference_update(found_ids)
        at = [places[item] for item in found_ids]
        for item, difference in zip(found_ids, _distances(rows.column(EMBEDDING), vectors[at]), strict=True):
            if not difference <= store.tolerance:  # NaN is not
                wrong[item] = f"{EMBEDDING} differs by {difference:.2g}"
        for name, values in expected.items():
            for item, place, value in zip(found_ids, at, rows.column(name).to_pylist(), strict=True):
                if value != values[place]:
                    wrong[item] = f"{name} is {_shortened(value)} and not {_shortened(values[place])}"
    wrong |= dict.fromkeys(left, "not returned")
    if not wrong:
        return []
    examples = "; ".join(f"{item}: {wrong[item]}" for item in sorted(wrong)[:_NAMED])
    return [f"{len(wrong):,} of {len(item_ids):,} sampled rows come back otherwise ({examples})"]


def _hashes(item_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    values = (mmh3.hash64(item, signed=False)[0] for item in item_ids)
    return np.fromiter(values, np.uint64, len(item_ids))


def _bucket(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    return (hashes >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)


def _within(passes: Ids, buckets: npt.NDArray[np.int64]) -> Iterator[str]:
    for batch in passes():
        item_ids = batch.to_pylist()
        is_within = np.isin(_bucket(_hashes(item_ids)), buckets)
        yield from (item_ids[place] for place in np.flatnonzero(is_within))


def _matrix(lists: Any) -> npt.NDArray[np.float32]:
    flat: npt.NDArray[np.float32] = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, EMBEDDING_DIM)
    return flat


def _distances(lists: pa.Array, expected: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """By how much the worst number of each vector differs; NaN where it has another length or is missing."""
    is_whole = pc.equal(pc.list_value_length(lists), EMBEDDING_DIM).fill_null(False).to_numpy(zero_copy_only=False)
    found = np.full(len(lists), np.nan)
    if is_whole.any():
        values = _matrix(lists.filter(pa.array(is_whole))).astype(np.float64)
        found[is_whole] = np.abs(values - expected[is_whole]).max(axis=1)
    return found


def _named(item_ids: Sequence[str]) -> str:
    more = ", ..." if len(item_ids) > _NAMED else ""
    return ", ".join(item_ids[:_NAMED]) + more


def _shortened(value: Any) -> str:
    return repr(value)[:60]
