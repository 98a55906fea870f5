"""Scoring Arrow batches of item_features: what a Spark worker, or any other Arrow program, runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from itemsage_model.data.batch import to_item_batch
from itemsage_model.data.feature_cells import unpack_items
from itemsage_model.data.ragged import PackedItems
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import build_tower
from itemsage_model.encoders.precision import Precision
from itemsage_model.serving.in_parts import LEAST_ROWS, built_once
from schemas.cells import to_list_column
from schemas.elements import FEATURE_CELLS
from schemas.errors import InputError, TableError, leaving_a_worker
from schemas.settings import ScoreSettings
from schemas.tables import EMBEDDING_DIM, ITEM_EMBEDDINGS, ITEM_FEATURES

_LENGTH_TOLERANCE = 1e-3

ROWS_AT_ONCE = ScoreSettings().rows_per_batch


class Scorer:
    """A tower with frozen weights and its folded constants.

    Args:
        weights: The weights as safetensors.
        spec: What they are.
        rows_at_once: Items encoded together; what few need stays in a core's cache.
        precision: dtype of weights, folded constants and features; the constants are folded, and the embeddings
            returned, in float32.
    """

    def __init__(
        self, weights: bytes, spec: ItemTowerSpec, rows_at_once: int = ROWS_AT_ONCE, precision: Precision = "float32"
    ) -> None:
        self.spec, self.rows_at_once = spec, rows_at_once
        dtype = getattr(torch, precision)
        tower = build_tower(weights, spec)
        fold = tower.fold()
        self.fold = fold.to(dtype) if fold else None
        self.tower = tower.in_precision(dtype)

    def score(self, items: PackedItems, item_key: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float32]:
        """Embeddings [item, dim] of packed items, unit length; the keys only where the model's sequence has item_id."""
        keys = None if item_key is None else torch.tensor(item_key)
        with torch.inference_mode():
            batch = to_item_batch(items, self.spec.elements, keys)
            embeddings: npt.NDArray[np.float32] = self.tower(batch, self.fold).numpy()
        return embeddings

    def score_batch(self, batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Embeddings [row, dim] of the rows of an item_features batch, `rows_at_once` at a time.

        Raises:
            TableError: a feature cell is not what the model was trained on, or an embedding is not of unit length.
        """
        embeddings = np.empty((len(batch), EMBEDDING_DIM), np.float32)
        for first in range(0, len(batch), self.rows_at_once):
            rows = batch.slice(first, self.rows_at_once)
            count = len(rows)
            if count < LEAST_ROWS:
                rows = rows.take(pa.array(np.arange(LEAST_ROWS) % count))
            keys = rows.column("item_key").to_numpy() if self.spec.model.knows_items else None
            embeddings[first : first + count] = self.score(unpack_rows(rows, self.spec), keys)[:count]
        _require_unit_length(embeddings)
        return embeddings


def load_once(
    weights: bytes,
    spec: ItemTowerSpec,
    rows_at_once: int = ROWS_AT_ONCE,
    precision: Precision = "float32",
    sha256: str = "",
) -> Scorer:
    """The scorer of these weights, built once per process.

    Raises:
        InputError: the weights that arrived do not have the `sha256` that was sent with them.
    """
    found = hashlib.sha256(weights).hexdigest()
    if sha256 and found != sha256:
        cure = "They were damaged on their way to the worker: run the stage again."
        raise InputError("model", "weights", expected=f"sha256 {sha256}", found=found, cure=cure)
    return built_once((found, rows_at_once, precision), lambda: Scorer(weights, spec, rows_at_once, precision))


def _require_unit_length(embeddings: npt.NDArray[np.float32]) -> None:
    lengths = np.sqrt(np.einsum("rd,rd->r", embeddings, embeddings))
    is_unit = np.abs(lengths - 1) < _LENGTH_TOLERANCE  # false for what is not a number
    if not is_unit.all():
        raise TableError(
            ITEM_EMBEDDINGS.name,
            "embedding",
            expected="vectors of length 1",
            found=f"one of length {lengths[np.argmin(is_unit)]:.4g}",
            cure="The model's weights are not finite: train again, with a lower train.learning_rate.",
        )


def unpack_rows(batch: pa.RecordBatch, spec: ItemTowerSpec) -> PackedItems:
    """The items of an item_features batch.

    Raises:
        TableError: a feature cell is not what the model was trained on.
    """
    cells = {name: batch.column(name) for name in FEATURE_CELLS}
    return unpack_items(ITEM_FEATURES.name, cells, spec.elements)


def batch_function(
    kept: tuple[str, ...], scores: dict[str, Callable[[pa.RecordBatch], npt.NDArray[np.float32]]]
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """A function for `mapInArrow`: keeps some columns and adds the named cells."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            columns = [batch.column(name) for name in kept]
            with leaving_a_worker():
                columns += [to_list_column(score(batch)) for score in scores.values()]
            yield pa.RecordBatch.from_arrays(columns, [*kept, *scores])

    return run
