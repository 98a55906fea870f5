"""Matrices as Arrow columns of lists, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.tables import EMBEDDING_DIM


def to_column(vectors: npt.NDArray[np.float32]) -> pa.ListArray:
    """A [row, dim] matrix as an Arrow list<float> column."""
    offsets = np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.ravel()))


def to_matrix(column: Any) -> npt.NDArray[np.float32]:
    """A list<float> column of equal lengths as a [row, dim] float32 matrix, a copy that may be written to."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = whole.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    matrix: npt.NDArray[np.float32] = flat.reshape(len(whole), -1) if len(whole) else flat.reshape(0, EMBEDDING_DIM)
    return matrix
