"""What an index is built of and asked: the items and queries of one published version, checked as they are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.filters import filter_columns
from retrieval.top import Scores
from schemas.cells import to_matrix
from schemas.errors import InputError, TableError
from schemas.published import Published
from schemas.storage import read_bytes
from schemas.tables import EMBEDDING_DIM, FROZEN_ALL, ITEM_EMBEDDINGS, QUERY_VECTORS

_UNIT = 1e-3
"""How far the length of a published vector may be from 1."""


def item_columns(columns: Mapping[str, str]) -> list[str]:
    """The columns of item_embeddings that an index reads, of which `columns` are its filter columns."""
    return ["item_id", "embedding", "model_id", *columns]


def published_items(found: Published) -> Iterator[tuple[pa.Table, Scores]]:
    """The rows of a version, a piece after the other: item_id and filter columns, and vectors, float32 [row, dim].

    Raises:
        TableError: as of `checked`.
    """
    columns = filter_columns(found.outputs[0].uri, found.version)
    return checked(found.items(item_columns(columns)), found.model_id)


def checked(batches: Iterable[pa.RecordBatch], model_id: str) -> Iterator[tuple[pa.Table, Scores]]:
    """Rows of item_embeddings as an index takes them.

    Raises:
        TableError: a row of another model, without an id, or with a vector of another length than 256 and 1.
    """
    for batch in batches:
        if not len(batch):
            continue
        require_model(ITEM_EMBEDDINGS.name, batch, model_id)
        ids = batch.column("item_id")
        if ids.null_count:
            raise _refusal(ITEM_EMBEDDINGS.name, "item_id", "the id of an item in every row", "null")
        vectors = require_unit(ITEM_EMBEDDINGS.name, "embedding", batch.column("embedding"))
        yield pa.Table.from_batches([batch]).drop_columns(["embedding", "model_id"]), vectors


def require_model(table: str, batch: pa.RecordBatch, model_id: str) -> None:
    """Refuse rows of another model.

    Raises:
        TableError: there is one.
    """
    others = pc.unique(batch.column("model_id")).to_pylist()
    if others != [model_id]:
        found = ", ".join(sorted(str(other) for other in others))
        raise _refusal(table, "model_id", f"{model_id} alone, which its commit names", found)


def require_unit(table: str, column: str, cells: pa.Array) -> Scores:
    """The vectors of a column, float32 [row, 256].

    Raises:
        TableError: one is null, has another length, NaN, or not the length 1.
    """
    lengths = pc.unique(pc.list_value_length(cells)).to_pylist()
    if lengths != [EMBEDDING_DIM]:
        found = ", ".join("null" if length is None else str(length) for length in lengths)
        raise _refusal(table, column, f"{EMBEDDING_DIM} numbers in every row", f"lists of {found}")
    vectors = to_matrix(cells)
    norms = np.linalg.norm(vectors, axis=1)
    if not (np.abs(norms - 1) <= _UNIT).all():  # NaN is no number's equal
        raise _refusal(
            table, column, "vectors of the length 1", f"one of the length {norms[np.abs(norms - 1).argmax()]}"
        )
    return vectors


def published_queries(found: Published) -> Iterator[tuple[pa.Array, pa.Array, Scores]]:
    """The rows of query_vectors that belong to a version: query_id, query_kind, and vectors, float32 [row, dim].

    Raises:
        TableError: a row of another model, or with a vector that is no unit vector of 256 numbers.
    """
    for batch in found.queries():
        if len(batch):
            require_model(QUERY_VECTORS.name, batch, found.model_id)
            vectors = require_unit(QUERY_VECTORS.name, "query_vector", batch.column("query_vector"))
            yield batch.column("query_id"), batch.column("query_kind"), vectors


def adapter_of(found: Published) -> str:
    """The model whose query adapter its queries have been through; empty = they are compared as they are frozen.

    Raises:
        InputError: the files of its model are gone or damaged.
    """
    if found.metrics.fallback == FROZEN_ALL:
        return ""
    place = f"{found.warehouse.models}/{found.metrics.model_id}/model.json"
    try:
        has_adapter = json.loads(read_bytes(place))["model"]["query_adapter"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"model {found.metrics.model_id}",
            place,
            expected="the file that says whether it adapts queries",
            found=f"none that can be read: {error}",
            cure="Restore the model's files, or publish a version of a model that is there.",
        ) from error
    return found.metrics.model_id if has_adapter else ""


def _refusal(table: str, column: str, expected: str, found: str) -> TableError:
    cure = "Publish a sound version: score the catalog again, or name another by index.version."
    return TableError(table, column, expected=expected, found=found, cure=cure)
