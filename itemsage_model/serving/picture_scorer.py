"""The head over frozen picture vectors on Arrow batches: what a Spark worker runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from itemsage_model.encoders.model_files import build_tower
from itemsage_model.encoders.picture_tower import PictureHead, PictureTower, PictureTowerSpec
from schemas.cells import to_list_column, to_matrix
from schemas.errors import leaving_a_worker

Floats = npt.NDArray[np.float32]

_ROWS_AT_ONCE, _LEAST_ROWS = 256, 16
"""As in scorer.py: from 16 rows on, a row's numbers are the same to the last bit whatever else is in its batch."""

_VECTORS = "image_embedding"

_LOADED: dict[bytes, PictureTower] = {}


def _load_once(weights: bytes, spec: PictureTowerSpec) -> PictureTower:
    if weights not in _LOADED:
        torch.set_num_threads(1)
        _LOADED.clear()
        _LOADED[weights] = build_tower(weights, spec)
    return _LOADED[weights]


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
        head = _load_once(self.weights(), self.spec).head
        for batch in batches:
            with leaving_a_worker():
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                if len(batch):
                    made = head_vectors(head, to_matrix(batch.column(_VECTORS)))
                    columns[_VECTORS] = to_list_column(made)
                yield pa.RecordBatch.from_pydict(columns)


def head_vectors(head: PictureHead, vectors: Floats) -> Floats:
    """What a head makes of frozen vectors [picture, length], some at a time; few rows are repeated."""
    parts = [np.empty((0, vectors.shape[1]), np.float32)]
    with torch.inference_mode():
        for first in range(0, len(vectors), _ROWS_AT_ONCE):
            rows = vectors[first : first + _ROWS_AT_ONCE].astype(np.float32)
            count = len(rows)
            if count < _LEAST_ROWS:
                rows = rows[np.arange(_LEAST_ROWS) % count]
            parts.append(head(torch.from_numpy(rows)).numpy()[:count])
    return np.concatenate(parts)
