"""A vectorised int64 -> int32 hash map (open addressing): a whole array of keys is looked up at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class KeyTable:
    """A dictionary from numbers to ids, asked for whole arrays at once.

    Args:
        keys: Different numbers from 0 to 2^63 - 1.
        ids: The id of each key.
        absent: What is found for every other number.
    """

    def __init__(self, keys: Ints, ids: Ints, absent: int) -> None:
        bits = 1 + int(2 * len(ids)).bit_length()
        self._shift, self._mask = np.uint64(64 - bits), (1 << bits) - 1
        self._absent = absent
        self._keys = np.full(1 << bits, -1)  # -1 marks a free slot
        self._ids = np.empty(1 << bits, np.int32)
        slot = self._home(keys)
        while len(keys):
            is_free = self._keys[slot] == -1
            self._keys[slot[is_free]] = keys[is_free]
            has_won = self._keys[slot] == keys  # of several keys for one slot, one gets it
            self._ids[slot[has_won]] = ids[has_won]
            keys, ids, slot = keys[~has_won], ids[~has_won], (slot[~has_won] + 1) & self._mask

    def find(self, keys: Ints) -> Ints:
        """Look up the id of each number; a number may be negative (and is then absent), but not -1."""
        slot = self._home(keys)
        there = self._keys[slot]
        found = np.where(there == keys, self._ids[slot], self._absent).astype(np.int64)
        pending = np.flatnonzero((there != keys) & (there != -1))
        while len(pending):
            slot[pending] = (slot[pending] + 1) & self._mask
            there, wanted = self._keys[slot[pending]], keys[pending]
            is_hit = there == wanted
            found[pending[is_hit]] = self._ids[slot[pending[is_hit]]]
            pending = pending[~is_hit & (there != -1)]
        return found

    def _home(self, keys: Ints) -> Ints:
        return (keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> self._shift).astype(np.int64)
