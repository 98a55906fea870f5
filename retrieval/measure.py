"""What an index finds, beside exact search: hits, their scores by the table, and milliseconds, under every filter.

Exact search runs over the rows of the published table, not over the index, and what a hit scores is computed from the
table's row of that id. So a hit that is no row any more, an old vector, and an item found twice all cost recall.
Filters of a given selectivity are by an attribute drawn from a hash of the item's id, so that their figures exist for
every shop; the index's own filter columns come beside them.

A catalog that no one machine holds is measured where its shards are built: `measure` for each, `merged` for all.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import mmh3
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.filters import allowed_values, passing
from retrieval.index import Index
from retrieval.shards import Allowed
from retrieval.top import Scores, best

K = 10
_MOST_VALUES = 10_000
"""Values of a filter column of which the shares are looked at."""

_TIMED = 50
"""Queries of which each is timed alone, under each filter."""

Attribute: TypeAlias = npt.NDArray[np.float64]
"""A number from 0 to 1 of each row, float64 [row]."""


@dataclass(frozen=True)
class Questions:
    """What an index is asked.

    Attributes:
        vectors: float32 [query, dim].
        parts: Slice -> which queries are of it, bool [query].
        asked: Where they are from.
    """

    vectors: Scores
    parts: Mapping[str, npt.NDArray[np.bool_]]
    asked: str


@dataclass(frozen=True)
class Filter:
    """A filter of a certificate.

    Attributes:
        name: What its figure is called.
        share: By the random attribute: the share of items that pass; 1 = all.
        where: By filter columns: column -> values; then `share` is 1.
    """

    name: str
    share: float = 1.0
    where: tuple[tuple[str, tuple[object, ...]], ...] = ()

    def passing(self, rows: pa.Table, attribute: Attribute, columns: Mapping[str, str]) -> Allowed | None:
        """Which rows, of which the random attribute is given, pass; None = all."""
        if self.where:
            return passing(rows, allowed_values(dict(self.where), columns))
        return None if self.share >= 1 else attribute < self.share


@dataclass(frozen=True)
class Measured:
    """What was found of all questions under one filter, by a part of an index in a part of the table.

    Attributes:
        said: What the index says that its hits score; float32 [query, k].
        true: What they score by the table; -inf = no such row, or one that does not pass, or found before.
        exact: The best scores of all rows that pass; float32 [query, k].
        milliseconds: Of a query alone, float64 [query timed].
        passing: Rows that pass.
        rows: Rows.
    """

    said: Scores
    true: Scores
    exact: Scores
    milliseconds: npt.NDArray[np.float64]
    passing: int
    rows: int

    def to_bytes(self) -> bytes:
        """For the way from a worker."""
        stored = io.BytesIO()
        counts = np.array([self.passing, self.rows])
        np.savez(
            stored, said=self.said, true=self.true, exact=self.exact, milliseconds=self.milliseconds, counts=counts
        )
        return stored.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Measured:
        """What `to_bytes` has stored."""
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            counts = found["counts"]
            return cls(
                found["said"], found["true"], found["exact"], found["milliseconds"], int(counts[0]), int(counts[1])
            )


def random_attribute(item_ids: pa.ChunkedArray) -> Attribute:
    """A number for each item that follows from its id and from nothing else."""
    return np.array([mmh3.hash(one, signed=False) for one in item_ids.to_pylist()], np.float64) / 2**32


def filters_of(
    selectivities: Sequence[float], batches: Iterable[pa.RecordBatch], columns: Sequence[str]
) -> list[Filter]:
    """All items, the random attribute at some selectivities, and of each filter column the values nearest to them.

    Args:
        selectivities: Shares of the items that pass, above 0, at most 1.
        batches: The filter columns of all items.
        columns: Their names; one of very many values, such as a price, is left out.
    """
    counts: dict[str, Counter[Any]] = {column: Counter() for column in columns}
    rows = 0
    for batch in batches if columns else ():
        rows += len(batch)
        for column, counted in list(counts.items()):
            for entry in pc.value_counts(batch.column(column)).to_pylist():
                counted[entry["values"]] += entry["counts"]
            if len(counted) > _MOST_VALUES:
                del counts[column]
    filters = [Filter("all items"), *(Filter(f"{share:.3g} of the items, at random", share) for share in selectivities)]
    for column, counted in counts.items():
        shares = {value: count / rows for value, count in counted.items() if value is not None}
        nearest = {
            min(shares, key=lambda value: abs(np.log(shares[value] / wanted))) for wanted in selectivities if shares
        }
        for value in sorted(nearest, key=lambda value: (-shares[value], str(value))):
            filters.append(Filter(f"{column} = {value}", 1.0, ((column, (value,)),)))
    return filters


def measure(
    index: Index, pieces: Iterable[tuple[pa.Table, Scores]], questions: Questions, filters: Sequence[Filter]
) -> list[Measured]:
    """Ask the index every question under every filter, and the table itself.

    Args:
        index: The index, or a part of it.
        pieces: The rows of the table, or of the part that it holds: item_id and filter columns, and vectors.
        questions: What to ask.
        filters: Under which filters.

    Returns:
        One for each filter.
    """
    queries, columns = questions.vectors, index.manifest.columns
    drawn = [(shard.rows, random_attribute(shard.rows["item_id"])) for shard in index.shards]
    answers = [_ask(index, queries, [one.passing(*shard, columns) for shard in drawn]) for one in filters]
    wanted = pa.array(sorted({one for ids, _, _ in answers for one in ids.ravel() if one is not None}), pa.string())
    vectors = np.full((len(wanted), queries.shape[1]), np.nan, np.float32)
    passes = np.zeros((len(filters), len(wanted)), bool)
    exact = [np.full((len(queries), K), -np.inf, np.float32) for _ in filters]
    counts, rows_read = [0] * len(filters), 0
    for rows, piece in pieces:
        rows_read += rows.num_rows
        scores, attribute = queries @ piece.T, random_attribute(rows["item_id"])
        positions = pc.index_in(rows["item_id"], wanted).fill_null(-1).to_numpy()
        is_wanted = positions >= 0
        vectors[positions[is_wanted]] = piece[is_wanted]
        for number, one in enumerate(filters):
            keep = one.passing(rows, attribute, columns)
            chosen = scores if keep is None else scores[:, keep]
            counts[number] += chosen.shape[1]
            exact[number] = _with_better(exact[number], chosen)
            passes[number, positions[is_wanted]] = True if keep is None else keep[is_wanted]
    place = {item_id: number for number, item_id in enumerate(wanted.to_pylist())}
    return [
        Measured(
            said,
            _true_scores(ids, queries, vectors, passes[number], place),
            exact[number],
            took,
            counts[number],
            rows_read,
        )
        for number, (ids, said, took) in enumerate(answers)
    ]


def _with_better(found: Scores, scores: Scores) -> Scores:
    """The best k of those found and of further scores, of which few are better: only these are sorted.

    Args:
        found: float32 [query, k], best first.
        scores: float32 [query, row].
    """
    lines, rows = np.nonzero(scores > found[:, -1:])
    counts = np.bincount(lines, minlength=len(found))
    if not len(lines):
        return found
    places = np.arange(len(lines)) - np.repeat(np.cumsum(counts) - counts, counts)
    better = np.full((len(found), counts.max()), -np.inf, np.float32)
    better[lines, places] = scores[lines, rows]
    both = np.hstack([found, better])
    return best(both, np.zeros(both.shape, np.int64), found.shape[1])[0]


def _ask(
    index: Index, queries: Scores, allowed: Sequence[Allowed | None]
) -> tuple[npt.NDArray[np.object_], Scores, npt.NDArray[np.float64]]:
    """Ids and scores of all queries at once, and what some of them take alone, in milliseconds."""
    scores, rows = index.find(queries, K, allowed)
    took = []
    for query in queries[:: max(1, len(queries) // _TIMED)][:_TIMED]:
        started = time.perf_counter()
        index.find(query[None], K, allowed)
        took.append(1_000 * (time.perf_counter() - started))
    return index.ids_of(rows), scores, np.array(took)


def _true_scores(
    ids: npt.NDArray[np.object_], queries: Scores, vectors: Scores, passes: Allowed, place: Mapping[str, int]
) -> Scores:
    """What hits score by the table; -inf where a hit does not count."""
    true = np.full(ids.shape, -np.inf, np.float32)
    for line, found in enumerate(ids):
        distinct = {item_id: column for column, item_id in reversed(list(enumerate(found))) if item_id is not None}
        for item_id, column in distinct.items():
            number = place[item_id]
            if passes[number]:
                true[line, column] = vectors[number] @ queries[line]
    return true


def merged(parts: Sequence[Measured]) -> Measured:
    """What the whole index finds, of what parts that share no item have found."""
    said, exact = (np.hstack([getattr(part, name) for part in parts]) for name in ("said", "exact"))
    true = np.hstack([part.true for part in parts])
    columns = np.broadcast_to(np.arange(said.shape[1]), said.shape)
    said, chosen = best(said, columns, K)
    return Measured(
        said,
        np.take_along_axis(true, chosen, 1),
        best(exact, np.zeros(exact.shape, np.int64), K)[0],
        np.sum([part.milliseconds for part in parts], axis=0),
        sum(part.passing for part in parts),
        sum(part.rows for part in parts),
    )
