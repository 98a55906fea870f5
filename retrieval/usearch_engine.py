"""The door to usearch: the same graph as faiss's, in another library; nobody else imports it."""

from __future__ import annotations

from typing import Any

import numpy as np
from usearch.index import Index as untyped  # noqa: N813

from retrieval.top import Rows, Scores

_Index: Any = untyped
_HEAD = 8
"""Bytes before the vectors of a stored index: how many they are, and the bytes of each, as 32-bit integers."""


class UsearchGraph:
    """An HNSW graph of usearch over inner products of float32; row numbers are its keys.

    Args:
        index: usearch's own.
        vectors: What it was built of [row, dim].
    """

    def __init__(self, index: Any, vectors: Scores) -> None:
        self._index = index
        self.vectors = vectors

    @classmethod
    def build(cls, vectors: Scores, hnsw_m: int, ef_construction: int) -> UsearchGraph:
        """See `engine.Graph`."""
        own = np.ascontiguousarray(vectors, np.float32)
        index = _Index(ndim=own.shape[1], metric="ip", dtype="f32", connectivity=hnsw_m, expansion_add=ef_construction)
        index.add(np.arange(len(own), dtype=np.uint64), own, threads=1)
        return cls(index, own)

    @classmethod
    def from_bytes(cls, content: bytes) -> UsearchGraph:
        """See `engine.Graph`."""
        index = _Index.restore(content)
        if index is None or str(index.metric_kind) != "MetricKind.IP" or str(index.dtype) != "ScalarKind.F32":
            raise ValueError("no graph of usearch over inner products of float32")
        count, dim = len(index), int(index.ndim)
        # A view: the vectors stand first, in the order in which they were added.
        vectors: Scores = np.frombuffer(content, "<f4", count * dim, _HEAD).reshape(count, dim)
        ends = [0, count - 1] if count else []
        if any(not np.array_equal(index.get(row), vectors[row]) for row in ends):
            raise ValueError("vectors in another order than their rows")
        return cls(index, vectors)

    def to_bytes(self) -> bytes:
        """See `engine.Graph`."""
        return bytes(self._index.save())

    def search(self, queries: Scores, k: int, ef_search: int) -> tuple[Scores, Rows]:
        """See `engine.Graph`."""
        self._index.expansion_search = max(ef_search, k)
        found = self._index.search(queries, min(k, len(self.vectors)), threads=1)
        # Of one query usearch returns vectors, of several rows, which are padded where fewer were met.
        keys, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)
        scores, rows = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        counts = np.atleast_1d(getattr(found, "counts", keys.shape[1]))
        is_found = np.arange(keys.shape[1]) < counts[:, None]
        scores[:, : keys.shape[1]] = np.where(is_found, 1 - distances, -np.inf)
        rows[:, : keys.shape[1]] = np.where(is_found, keys.astype(np.int64), -1)
        return scores, rows
