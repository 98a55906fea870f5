"""The questions of a recall certificate: real queries of the published version, held-out ones where there are any."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import mmh3
import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from retrieval.measure import Questions
from retrieval.source import published_queries
from schemas.errors import TableError
from schemas.published import Published
from schemas.storage import read_columns
from schemas.tables import QUERY_VECTORS
from schemas.tasks import Task


def questions_of(found: Published, tasks: Sequence[Task], count: int, slices: Sequence[str]) -> Questions:
    """As many queries of each kind: the ones of the smallest hash of their id, so that every run asks the same.

    Args:
        found: The published version.
        tasks: Whose held-out pairs say which queries those are; a kind that has none there gives any.
        count: Most queries of a kind.
        slices: query_kind, task: by what the figures are told apart.

    Raises:
        TableError: query_vectors has no row, or as of `published_queries`.
    """
    held_out = {task: _held_out(found, task) for task in tasks}
    asked_kinds = {task.query_kind for task, ids in held_out.items() if ids}
    asked_ids = set().union(*held_out.values())
    chosen: dict[str, list[tuple[int, str, np.ndarray]]] = {}  # type: ignore[type-arg]
    for ids, kinds, vectors in published_queries(found):
        for query_id, kind, vector in zip(ids.to_pylist(), kinds.to_pylist(), vectors, strict=True):
            if kind not in asked_kinds or query_id in asked_ids:
                entry = (-mmh3.hash64(query_id)[0], query_id, vector)
                of_kind = chosen.setdefault(kind, [])
                if len(of_kind) < count:
                    heapq.heappush(of_kind, entry)
                else:
                    heapq.heappushpop(of_kind, entry)
    rows = [
        (kind, query_id, vector) for kind in sorted(chosen) for _, query_id, vector in sorted(chosen[kind], key=_id)
    ]
    if not rows:
        cure = "Publish a version with queries: without them nobody knows what an index is worth."
        raise TableError(QUERY_VECTORS.name, "(all)", expected="at least one row", found="none", cure=cure)
    kinds, query_ids = np.array([row[0] for row in rows]), [row[1] for row in rows]
    parts = {f"{kind} queries": kinds == kind for kind in sorted(chosen)} if "query_kind" in slices else {}
    if "task" in slices:
        of_tasks = {task.name: np.array([one in ids for one in query_ids]) for task, ids in held_out.items()}
        parts |= {f"held-out {name}": of_task for name, of_task in of_tasks.items() if of_task.any()}
    asked = (
        "held-out queries"
        if asked_kinds == set(chosen)
        else "queries, held-out ones of " + (", ".join(sorted(asked_kinds)) or "no kind")
    )
    return Questions(np.stack([row[2] for row in rows]), parts, asked)


def _id(entry: tuple[int, str, object]) -> str:
    return entry[1]


def _held_out(found: Published, task: Task) -> set[str]:
    """The queries of a task's held-out pairs; none where there is no such table."""
    uri = found.warehouse.table(task.held_out_table)
    if not DeltaTable.is_deltatable(uri):
        return set()
    ids: pa.ChunkedArray = read_columns(uri, None, ["query_id"])["query_id"]
    return set(ids.to_pylist())
