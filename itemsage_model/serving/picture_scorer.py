"""The head over frozen picture vectors on Arrow batches: what a Spark worker runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa

from itemsage_model.encoders.picture_tower import PictureHead, PictureTowerSpec
from itemsage_model.serving.in_parts import Floats, in_parts, load_tower_once
from schemas.cells import to_list_column, to_matrix
from schemas.errors import leaving_a_worker

_VECTORS = "image_embedding"


class PictureScorer:
    """What a head makes of frozen vectors, as a function for `mapInArrow`.

    Args:
        weights: Returns the weights as safetensors, in the worker.
        spec: What they are.
    """

    def __init__(self, weights: Callable[[], bytes], spec: PictureTowerSpec) -> None:
        self.weights, self.spec = weights, spec

    def scored(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same rows, their image_embedding by the head."""
        head = load_tower_once(self.weights(), self.spec).head
        for batch in batches:
            with leaving_a_worker():
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                if len(batch):
                    made = head_vectors(head, to_matrix(batch.column(_VECTORS)))
                    columns[_VECTORS] = to_list_column(made)
                yield pa.RecordBatch.from_pydict(columns)


def head_vectors(head: PictureHead, vectors: Floats) -> Floats:
    """What a head makes of frozen vectors [picture, length], some at a time; the same numbers for a picture alone."""
    return in_parts(head, vectors.astype(np.float32)) if len(vectors) else vectors.astype(np.float32)
