"""The door to faiss: a graph (HNSW) over the vectors of a shard, built, stored and searched; nobody else imports it."""

from __future__ import annotations

from typing import Any

import faiss as untyped
import numpy as np

from retrieval.top import Rows, Scores

_FEW_QUERIES = 16

faiss: Any = untyped
"""Its stubs know the C++ side and not the Python one."""


class FaissGraph:
    """An HNSW graph that holds the vectors it was built of.

    Args:
        index: faiss's own; `IndexHNSWFlat` of the inner product.
    """

    def __init__(self, index: Any) -> None:
        self._index = index
        self._parameters = faiss.SearchParametersHNSW(efSearch=16)
        count, dim = int(index.ntotal), int(index.d)
        flat = faiss.downcast_index(index.storage)
        # A view: it lives as long as the index does.
        self.vectors: Scores = faiss.rev_swig_ptr(flat.get_xb(), count * dim).reshape(count, dim)

    @classmethod
    def build(cls, vectors: Scores, hnsw_m: int, ef_construction: int) -> FaissGraph:
        """See `engine.Graph`."""
        index = faiss.IndexHNSWFlat(vectors.shape[1], hnsw_m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = ef_construction
        index.add(np.ascontiguousarray(vectors, np.float32))
        return cls(index)

    @classmethod
    def from_bytes(cls, content: bytes) -> FaissGraph:
        """See `engine.Graph`."""
        try:
            index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
        except RuntimeError as error:
            raise ValueError(" ".join(str(error).split())[:200]) from error
        if not isinstance(index, faiss.IndexHNSWFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{type(index).__name__}, no HNSW graph of inner products")
        return cls(index)

    def to_bytes(self) -> bytes:
        """See `engine.Graph`."""
        return bytes(faiss.serialize_index(self._index).tobytes())

    def search(self, queries: Scores, k: int, ef_search: int) -> tuple[Scores, Rows]:
        """See `engine.Graph`."""
        ef_search = max(ef_search, k)
        parameters = self._parameters
        if parameters.efSearch != ef_search:  # to make them takes a tenth of a search
            parameters = self._parameters = faiss.SearchParametersHNSW(efSearch=ef_search)
        threads = faiss.omp_get_max_threads()
        # Threads that wait for each other cost more than a few queries: 23 ms in place of 1 on a busy machine.
        faiss.omp_set_num_threads(1 if len(queries) < _FEW_QUERIES else threads)
        try:
            scores, rows = self._index.search(queries, k, params=parameters)
        finally:
            faiss.omp_set_num_threads(threads)
        if len(rows) and rows[:, -1].min() < 0:
            scores[rows < 0] = -np.inf
        return scores, rows
