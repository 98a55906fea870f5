"""A shard of an index: some items with their vectors, filter columns and a graph to find the nearest by.

A shard of few rows has no graph: comparing a query with all of them is as quick, and exact.

A walk through a graph takes no notice of a filter. It looks at the ef_search / selectivity rows nearest to the query,
of which the best that pass are the answer, where k of them pass as near to the query as they would by chance. If they
do not, the filter keeps out what lies near the query; the walk knows little of what lies further out, and the query is
compared with every row that passes. A walk that is told to return rows that pass would return what it met on its way,
and may find a twentieth of what it should (docs/lab-log.md). Each step of a walk compares the query with the neighbours
of a row, about 32 that it has not met yet; so where rows * selectivity^2 < 32 ef_search the rows that pass are fewer
than what it would look at, and are compared at once.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.engine import Graph, engine_named
from retrieval.top import Rows, Scores, best, nearest

_COMPARED_A_STEP = 32
"""Vectors that a step of a walk compares a query with, about, at 32 links a row."""

_DEVIATIONS = 4
"""Standard deviations that the k-th row that passes may lie further out than it does on average, by chance alone."""


@dataclass(frozen=True)
class BuildSettings:
    """What the graph of a shard is built and searched with; equal ones give equal indexes.

    Attributes:
        engine: What builds it.
        hnsw_m: Links of a row in each layer of the graph.
        ef_construction: Candidates that a row's links are chosen from.
        ef_search: Rows nearest to a query that a search looks at.
        items_per_shard: Most items of one shard.
        exact_rows: A shard of at most so many rows has no graph.
    """

    engine: str = "faiss"
    hnsw_m: int = 32
    ef_construction: int = 200
    ef_search: int = 64
    items_per_shard: int = 1_000_000
    exact_rows: int = 10_000


Allowed = npt.NDArray[np.bool_]
"""Which rows of a shard may be found; bool [row]."""


@dataclass(frozen=True)
class Shard:
    """Some items.

    Attributes:
        rows: item_id and filter columns of each row.
        vectors: float32 [row, dim], unit length.
        graph: Over the same rows; None = every search compares with all of them.
    """

    rows: pa.Table
    vectors: Scores
    graph: Graph | None

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @classmethod
    def build(cls, rows: pa.Table, vectors: Scores, settings: BuildSettings) -> Shard:
        """A shard of rows, in the order of their ids: which row is where does not depend on how they came.

        Args:
            rows: item_id and filter columns.
            vectors: float32 [row, dim].
            settings: What it is built with.
        """
        order = np.asarray(pc.sort_indices(rows["item_id"]))
        rows, vectors = rows.take(order).combine_chunks(), np.ascontiguousarray(vectors[order], np.float32)
        if len(vectors) <= settings.exact_rows:
            return cls(rows, vectors, None)
        graph = engine_named(settings.engine).build(vectors, settings.hnsw_m, settings.ef_construction)
        return cls(rows, graph.vectors, graph)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """What its two files hold: the vectors, with the graph if there is one, and the rows."""
        vectors = io.BytesIO()
        if self.graph is None:
            np.save(vectors, self.vectors, allow_pickle=False)
        rows = pa.BufferOutputStream()
        with pa.ipc.new_file(rows, self.rows.schema) as writer:
            writer.write_table(self.rows)
        return self.graph.to_bytes() if self.graph else vectors.getvalue(), rows.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, vectors: bytes, rows: bytes, engine: str) -> Shard:
        """The shard that `to_bytes` has stored.

        Args:
            vectors: The first file.
            rows: The second.
            engine: What has built its graph, if it has one.

        Raises:
            ValueError: the bytes are none, the engine is not here, or vectors and rows are not as many.
        """
        graph = None if vectors[:6] == b"\x93NUMPY" else engine_named(engine).from_bytes(vectors)
        found = np.load(io.BytesIO(vectors), allow_pickle=False) if graph is None else graph.vectors
        with pa.ipc.open_file(pa.py_buffer(rows)) as reader:
            table = reader.read_all().combine_chunks()
        if found.ndim != 2 or len(found) != table.num_rows:
            raise ValueError(f"vectors {found.shape} of {table.num_rows} rows")
        return cls(table, found, graph)

    def search(self, queries: Scores, k: int, ef_search: int, allowed: Allowed | None = None) -> tuple[Scores, Rows]:
        """The nearest rows of each query; never fewer than k, where k are allowed.

        Args:
            queries: float32 [query, dim].
            k: How many.
            ef_search: Rows that a search without a filter looks at.
            allowed: Rows that may be found, bool [row]; None = all.

        Returns:
            Inner products and rows, [query, k], best first; -inf and -1 where there are fewer.
        """
        if allowed is None:
            count, share, is_quicker = len(self), 1.0, False
        else:
            count = int(np.count_nonzero(allowed))
            share = count / max(len(self), 1)
            is_quicker = count * share <= _COMPARED_A_STEP * ef_search
        if self.graph is None or is_quicker or count <= k:
            return self._compare(queries, k, allowed)
        if allowed is None:
            scores, rows = self.graph.search(queries, k, ef_search)
            short = rows[:, -1] < 0
        else:
            by_chance = math.ceil((k + _DEVIATIONS * math.sqrt(k * (1 - share))) / share)
            width = min(max(math.ceil(ef_search / share), by_chance), len(self))
            scores, rows = self.graph.search(queries, width, width)
            keep = allowed[rows] & (rows >= 0)
            short = keep[:, :by_chance].sum(axis=1) < k
            scores, rows = best(np.where(keep, scores, -np.inf), np.where(keep, rows, -1), k)
        if short.any():
            scores[short], rows[short] = self._compare(queries[short], k, allowed)
        return scores, rows

    def _compare(self, queries: Scores, k: int, allowed: Allowed | None) -> tuple[Scores, Rows]:
        return nearest(queries, self.vectors, k, None if allowed is None else np.flatnonzero(allowed))
