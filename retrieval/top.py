"""The best k of many scores, and the best k of several such lists: how answers of shards and of batches are merged."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
"""Inner products of unit vectors, -1 to 1; -inf where there is nothing."""

Rows = npt.NDArray[np.int64]
"""Positions of rows; -1 where there is nothing."""

_ROWS_AT_ONCE = 65_536


def best(scores: Scores, rows: Rows, k: int) -> tuple[Scores, Rows]:
    """The best k of each line, best first; filled up with -inf and -1.

    Args:
        scores: float32 [query, candidate].
        rows: What each score belongs to; int64 [query, candidate].
        k: How many.

    Returns:
        float32 and int64 [query, k].
    """
    if scores.shape[1] < k:
        missing = ((0, 0), (0, k - scores.shape[1]))
        scores = np.pad(scores, missing, constant_values=-np.inf)
        rows = np.pad(rows, missing, constant_values=-1)
    if scores.shape[1] > k:
        chosen = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        scores, rows = np.take_along_axis(scores, chosen, 1), np.take_along_axis(rows, chosen, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def nearest(queries: Scores, vectors: Scores, k: int, chosen: Rows | None = None) -> tuple[Scores, Rows]:
    """The rows of the largest inner product with each query, by comparing with every one of them.

    Args:
        queries: float32 [query, dim].
        vectors: float32 [row, dim].
        k: How many.
        chosen: The rows that may be found; None = all.

    Returns:
        Inner products and rows, [query, k], as of `best`.
    """
    found, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    count = len(vectors) if chosen is None else len(chosen)
    for start in range(0, count, _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, count)
        numbers = np.arange(start, end) if chosen is None else chosen[start:end]
        scores = queries @ (vectors[start:end] if chosen is None else vectors[numbers]).T
        here = np.broadcast_to(numbers, scores.shape)
        found, rows = best(np.hstack([found, scores]), np.hstack([rows, here]), k)
    return best(found, rows, k)
