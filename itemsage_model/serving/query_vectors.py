"""The query vectors that a model's items are compared with: frozen embeddings through its query adapter, if it has one.

Every reader of frozen query embeddings goes through here or reads the table that score_catalog makes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load as load_tensors

from itemsage_model.encoders.item_tower import ItemTowerSpec, make_query_adapter
from itemsage_model.encoders.model_files import SavedModel
from itemsage_model.encoders.query_adapter import QueryAdapter
from schemas.cells import to_list_column, to_matrix
from schemas.errors import leaving_a_worker

_PREFIX = "query_adapter."


def saved_adapter(model: SavedModel[ItemTowerSpec]) -> QueryAdapter | None:
    """A model's query adapter without the rest of it; None where it compares with the frozen vectors themselves."""
    adapter = make_query_adapter(model.spec.model, model.spec.task_kinds, model.spec.trained_queries)
    if adapter is None:
        return None
    tensors = load_tensors(model.weights)
    own = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    adapter.load_state_dict(own)
    return adapter.eval().requires_grad_(False)


def adapt_queries(
    model: SavedModel[ItemTowerSpec], kind: str, queries: npt.NDArray[np.float32], query_key: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Vectors to compare a model's items with, of unit length.

    Args:
        model: The trained model.
        kind: Kind of the queries.
        queries: Their frozen embeddings [query, dim], of unit length.
        query_key: Their keys [query], as the tables have them: xxHash64 of query_id.

    Raises:
        InputError: the model adapts queries, and was trained on none of this kind.
    """
    return _adapted(saved_adapter(model), kind, queries, query_key)


def query_batches(
    adapter: QueryAdapter | None, model_id: str
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """A function from batches of query_embeddings, with their query_key, to query_vectors, for a worker to run."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            kinds = batch.column("query_kind")
            for kind in kinds.unique().to_pylist():
                rows = batch.filter(pc.equal(kinds, kind))
                with leaving_a_worker():
                    queries, keys = to_matrix(rows.column("query_embedding")), rows.column("query_key").to_numpy()
                    vectors = _adapted(adapter, kind, queries, keys)
                columns = [rows.column("query_id"), rows.column("query_kind"), to_list_column(vectors)]
                columns.append(pa.array([model_id] * len(rows)))
                yield pa.RecordBatch.from_arrays(columns, ["query_id", "query_kind", "query_vector", "model_id"])

    return run


def _adapted(
    adapter: QueryAdapter | None, kind: str, queries: npt.NDArray[np.float32], query_key: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    if adapter is None:
        return queries
    number = adapter.number_of(kind)
    with torch.inference_mode():
        kinds = torch.full((len(queries),), number)
        adapted: npt.NDArray[np.float32] = adapter(torch.tensor(queries), kinds, torch.tensor(query_key)).numpy()
    return adapted
