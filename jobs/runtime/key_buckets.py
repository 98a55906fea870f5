"""Buckets of hashes that the keys of changed rows fall into, so that a merge leaves out the rest where it reads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

_BUCKETS_A_CHANGE, _LEAST_BUCKETS, _MOST_BUCKETS = 8, 1 << 6, 1 << 18
"""Delta writes a merge's condition into its log: at most 80 KB of it are buckets."""


def changed_buckets(keys: DataFrame, count: int) -> npt.NDArray[np.int64] | None:
    """Which buckets of hashes the keys of changed rows fall into; None = none, or too many for that to say much.

    Delta's MERGE shuffles whole rows of the table to find the few that it marks as deleted, unless a condition on the
    table alone leaves out most of them where they are read: 17 CPU seconds in place of 36 to 41 for 30,000 of 3,000,000
    embeddings (docs/lab-log.md).

    Args:
        keys: One column of the type that the table's key has.
        count: How many they are.

    Returns:
        A bit a bucket, 64 in each number [words]; a power of two of buckets.
    """
    wanted = max(_LEAST_BUCKETS, _BUCKETS_A_CHANGE * count)
    size = min(1 << (wanted - 1).bit_length(), _MOST_BUCKETS)
    if not count or 2 * count > size:
        return None
    hashed = F.pmod(F.xxhash64(*keys.columns), F.lit(size)).alias("bucket")
    bits = np.zeros(size, np.bool_)
    bits[keys.select(hashed).distinct().toArrow()["bucket"].to_numpy()] = True
    return np.packbits(bits, bitorder="little").view("<i8")


def is_in_buckets(key: Column, buckets: npt.NDArray[np.int64]) -> Column:
    """Whether a key falls into one of these buckets: true for all that they were made of, and for a few others."""
    bucket = F.pmod(F.xxhash64(key), F.lit(64 * len(buckets)))
    word = F.get(F.lit(buckets), F.shiftright(bucket, 6).cast("int"))
    return F.getbit(word, bucket.bitwiseAND(63).cast("int")) == 1
