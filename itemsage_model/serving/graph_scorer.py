"""Scoring the graph tower a layer at a time, on Arrow batches: what a Spark worker runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from itemsage_model.encoders.graph_tower import GraphTower, GraphTowerSpec
from itemsage_model.serving.in_parts import Floats, in_parts, load_tower_once
from schemas.cells import pack_cells, to_list_column, unpack_cells
from schemas.errors import leaving_a_worker
from schemas.tables import SOURCE_HASH

Score = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]


class GraphScorer:
    """The parts of a graph tower that the layers' joins need, as functions for `mapInArrow`.

    Args:
        weights: Returns the weights as safetensors, in the worker.
        spec: What they are.
    """

    def __init__(self, weights: Callable[[], bytes], spec: GraphTowerSpec) -> None:
        self.weights, self.spec = weights, spec

    def _tower(self) -> GraphTower:
        tower: GraphTower = load_tower_once(self.weights(), self.spec)
        return tower

    def first_messages(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """item_key, node_embedding -> item_key, message: what each node's features tell in the first convolution."""
        tower = self._tower()
        for batch in batches:
            with leaving_a_worker():
                told = in_parts(tower.convolution(0).messages, self._features(batch))
                yield pa.RecordBatch.from_arrays([batch.column("item_key"), _cells(told)], ["item_key", "message"])

    def first_layer(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """item_id, item_key, node_embedding, told, SOURCE_HASH -> rows of GRAPH_LAYERS."""
        tower = self._tower()
        for batch in batches:
            with leaving_a_worker():
                pooled = self._pooled(batch)
                hidden = in_parts(tower.convolution(0).combined, self._features(batch), pooled)
                # As it is stored: who reads it back must come to the same message.
                hidden = hidden.astype("<f2").astype(np.float32)
                columns = {
                    "item_id": batch.column("item_id"),
                    "item_key": batch.column("item_key"),
                    "hidden": _cells(hidden),
                    "message": _cells(in_parts(tower.convolution(1).messages, hidden)),
                    SOURCE_HASH: batch.column(SOURCE_HASH),
                }
                yield pa.RecordBatch.from_pydict(columns)

    def second_layer(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """item_id, node_embedding, hidden, told, SOURCE_HASH -> rows of ITEM_GRAPH_IMAGES."""
        tower = self._tower()
        for batch in batches:
            with leaving_a_worker():
                hidden = _rows(batch, "hidden", self.spec.graph.width)
                last = in_parts(tower.convolution(1).combined, hidden, self._pooled(batch))
                vectors = in_parts(tower.finished, last, self._features(batch))
                columns = {
                    "item_id": batch.column("item_id"),
                    "position": pa.array(np.zeros(len(batch), np.int32)),
                    "image_embedding": to_list_column(vectors),
                    SOURCE_HASH: batch.column(SOURCE_HASH),
                }
                yield pa.RecordBatch.from_pydict(columns)

    def _features(self, batch: pa.RecordBatch) -> Floats:
        return _rows(batch, "node_embedding", self.spec.node_length)

    def _pooled(self, batch: pa.RecordBatch) -> Floats:
        """The weighted sum of what the neighbours of each row told, in the order of their ranks."""
        told, width = batch.column("told"), self.spec.graph.width
        counts = pc.list_value_length(told).fill_null(0).to_numpy().astype(np.int64)
        entries = told.flatten()
        weights = pc.struct_field(entries, [1]).to_numpy(zero_copy_only=False)
        numbers, _ = unpack_cells(pc.struct_field(entries, [2]), "<f2")
        messages = numbers.reshape(-1, width).astype(np.float32) * weights[:, None]
        pooled = np.zeros((len(batch), width), np.float32)
        has = np.flatnonzero(counts)
        if len(has):
            pooled[has] = np.add.reduceat(messages, (np.cumsum(counts) - counts)[has], axis=0)
        return pooled


def _rows(batch: pa.RecordBatch, name: str, length: int) -> Floats:
    numbers, _ = unpack_cells(batch.column(name), "<f2")
    return numbers.reshape(-1, length).astype(np.float32)


def _cells(vectors: Floats) -> pa.BinaryArray:
    return pack_cells(np.ascontiguousarray(vectors, "<f2"), np.full(len(vectors), vectors.shape[1]))
