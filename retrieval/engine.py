"""What builds and searches the graph of a shard: a library behind five members, a file each."""

from __future__ import annotations

from typing import Protocol

from retrieval.top import Rows, Scores


class Graph(Protocol):
    """A graph over the vectors of one shard, which it holds."""

    vectors: Scores
    """float32 [row, dim]."""

    @classmethod
    def build(cls, vectors: Scores, hnsw_m: int, ef_construction: int) -> Graph:
        """Build it of float32 [row, dim]; with one thread equal vectors in equal order give an equal graph.

        Args:
            vectors: Of unit length.
            hnsw_m: Links of a row in each layer.
            ef_construction: Candidates that a row's links are chosen from.
        """

    @classmethod
    def from_bytes(cls, content: bytes) -> Graph:
        """The graph that `to_bytes` has stored.

        Raises:
            ValueError: the bytes are none.
        """

    def to_bytes(self) -> bytes:
        """The graph and its vectors, for a file."""

    def search(self, queries: Scores, k: int, ef_search: int) -> tuple[Scores, Rows]:
        """Walk the graph.

        Args:
            queries: float32 [query, dim].
            k: How many to return.
            ef_search: Rows nearest to the query that are looked at.

        Returns:
            Inner products and rows, [query, k], best first; -inf and -1 where fewer were met.
        """


def engine_named(name: str) -> type[Graph]:
    """The engine that index.engine names; only its own library is imported.

    Raises:
        ValueError: there is none of this name, or its library is not installed.
    """
    try:
        if name == "faiss":
            from retrieval.faiss_engine import FaissGraph  # noqa: PLC0415

            return FaissGraph
        if name == "usearch":
            from retrieval.usearch_engine import UsearchGraph  # noqa: PLC0415

            return UsearchGraph
    except ImportError as error:
        raise ValueError(f"{name} is not installed: pip install 'itemsage-open[{name}]' ({error})") from error
    raise ValueError(f"no engine {name!r}; there are faiss and usearch")
