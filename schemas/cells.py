"""Cells: numbers as binary cells and vectors as lists, in Arrow columns and back; the one packing of jobs and model."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.tables import EMBEDDING_DIM

Cells: TypeAlias = "pa.Array | pa.ChunkedArray"
"""A column of cells."""


def pack_cells(numbers: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> pa.BinaryArray:
    """Cut a flat array into one binary cell per entry of `counts`, which says how many numbers it holds.

    Args:
        numbers: Contiguous, of any shape; at most 2 GB.
        counts: int64 [row].
    """
    offsets = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts * numbers.itemsize, out=offsets[1:])
    return pa.Array.from_buffers(pa.binary(), len(counts), [None, pa.py_buffer(offsets), pa.py_buffer(numbers)])


def unpack_cells(column: Cells, dtype: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The numbers of all cells, end to end, and how many each cell holds; int64 [row].

    Args:
        column: Binary cells.
        dtype: numpy's name of the numbers, such as `<f2`.

    Raises:
        ValueError: a cell is null, or holds no whole number of numbers, or the column is not binary.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_unpack_chunk(chunk, np.dtype(dtype)) for chunk in chunks]
    if len(parts) == 1:
        return parts[0]
    numbers = np.concatenate([np.empty(0, dtype), *(numbers for numbers, _ in parts)])
    return numbers, np.concatenate([np.empty(0, np.int64), *(counts for _, counts in parts)])


def _unpack_chunk(chunk: pa.Array, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    widths = {pa.binary(): np.int32, pa.large_binary(): np.int64}
    if chunk.type not in widths or chunk.null_count:
        raise ValueError("a null" if chunk.null_count else f"{chunk.type} cells")
    if not len(chunk):
        return np.empty(0, dtype), np.empty(0, np.int64)
    width = np.dtype(widths[chunk.type])
    _, ends, data = chunk.buffers()
    offsets = np.frombuffer(ends, width, len(chunk) + 1, chunk.offset * width.itemsize)
    lengths = np.diff(offsets.astype(np.int64, copy=False))
    if (lengths % dtype.itemsize).any():
        raise ValueError(f"a cell whose length is no multiple of {dtype.itemsize} bytes")
    count = int(offsets[-1] - offsets[0]) // dtype.itemsize
    numbers = np.frombuffer(data, dtype, count, int(offsets[0])) if count else np.empty(0, dtype)
    return numbers, lengths // dtype.itemsize


def bytes_of(cells: pa.Array) -> tuple[memoryview, list[int]]:
    """The bytes in which all binary cells lie, and where each cell begins, with the end of the last one."""
    width = np.dtype(np.int64 if pa.types.is_large_binary(cells.type) else np.int32)
    _, ends, data = cells.buffers()
    offsets = np.frombuffer(ends, width, len(cells) + 1, cells.offset * width.itemsize) if len(cells) else np.zeros(1)
    return memoryview(data or b""), offsets.tolist()


def pack_vectors(vectors: pa.ListArray, length: int) -> pa.BinaryArray:
    """Lists of numbers as cells of little-endian float16, null where a list is no usable vector.

    A list that is null, has another length, holds a null, NaN, infinity or a number beyond float16's range, or is all
    zero in float16 becomes null.
    """
    is_whole = pc.equal(pc.list_value_length(vectors), length).fill_null(False)
    numbers = vectors.filter(is_whole).flatten().to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        halves = numbers.reshape(-1, length).astype("<f2")
    is_usable = np.isfinite(halves).all(axis=1) & (halves != 0).any(axis=1)
    is_valid = is_whole.to_numpy(zero_copy_only=False).copy()
    is_valid[is_valid] = is_usable
    ends = np.cumsum(is_valid * halves.itemsize * length)
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    validity = np.packbits(is_valid, bitorder="little")
    buffers = [pa.py_buffer(part) for part in (validity, offsets, np.ascontiguousarray(halves[is_usable]))]
    return pa.Array.from_buffers(pa.binary(), len(is_valid), buffers)


def to_list_column(vectors: npt.NDArray[np.float32]) -> pa.ListArray:
    """A [row, dim] matrix as an Arrow list<float> column."""
    offsets = np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.ravel()))


def to_matrix(column: Any) -> npt.NDArray[np.float32]:
    """A list<float> column of equal lengths as a [row, dim] float32 matrix, a copy that may be written to."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = whole.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    matrix: npt.NDArray[np.float32] = flat.reshape(len(whole), -1) if len(whole) else flat.reshape(0, EMBEDDING_DIM)
    return matrix
