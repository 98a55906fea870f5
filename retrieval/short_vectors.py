"""Short forms of embeddings: fewer numbers, fewer bytes a number. Arrays in, arrays out.

The first numbers of an embedding are no better than any others, so a prefix is one of the rotated embedding: its first
numbers are those along which a catalog's items differ most. A rotation changes no dot product, so what a prefix of n
numbers loses is exactly what the others held; queries take the same rotation. Prefixes of 256 are not rotated.

    query = shortened(query_vector, rotation, 64)     # unit length: compare it with int8:64 or float32:64
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

LARGEST_CODE = 127
"""The codes -127 to 127 stand for equal steps on both sides of zero; -128 is none."""
_TINY = float(np.finfo(np.float32).tiny)


def leading_rotation(items: Floats) -> Floats:
    """The rotation after which a prefix keeps most of the items' squared length: their principal axes, not centred.

    Source: Eckart and Young 1936. Of rotations made of the queries, or of both sides, none was better
    (docs/lab-log.md).

    Args:
        items: Embeddings of a catalog, or of a sample of it [item, dim], at least one.

    Returns:
        An orthogonal matrix [dim, dim]; `items @ rotation` are the rotated ones. The same to the last bit for the same
        rows in the same order; the largest entry of each axis is positive.
    """
    exact = items.astype(np.float64)
    # One thread: the order of a threaded sum, and with it the last bits, may change from run to run.
    with threadpool_limits(limits=1):
        _, axes = np.linalg.eigh(exact.T @ exact)
    leading = axes[:, ::-1]
    largest = np.take_along_axis(leading, np.abs(leading).argmax(axis=0)[None], axis=0)
    rotation: Floats = np.ascontiguousarray(leading * np.sign(largest), np.float32)
    return rotation


def shortened(vectors: Floats, rotation: Floats | None, length: int) -> Floats:
    """The first numbers of rotated vectors, brought to unit length; of items and of queries alike.

    Args:
        vectors: Of any length above zero [row, dim].
        rotation: The catalog's [dim, at least length]; None = the vectors stay as they are, but for their length.
        length: How many numbers to keep.

    Returns:
        float32 [row, length]; zero where a vector has nothing in these directions.
    """
    kept = vectors[:, :length] if rotation is None else vectors @ rotation[:, :length]
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    unit: Floats = (kept / np.maximum(lengths, _TINY)).astype(np.float32)
    return unit


def to_int8(vectors: Floats) -> tuple[Codes, Floats]:
    """Vectors as whole numbers from -127 to 127, and what each vector's are to be multiplied by.

    A vector's largest number in absolute value becomes 127, so that no number is off by more than half of its scale
    (and float32's own rounding): for unit vectors of n numbers a cosine by 0.5 / 127 sqrt(n) at the very most, and
    mostly by a hundredth of that.

    Args:
        vectors: Finite [row, length].

    Returns:
        Codes int8 [row, length], and scales float32 [row], above zero also for a vector of zeros.
    """
    scales = (np.abs(vectors).max(axis=1) / LARGEST_CODE).astype(np.float32)
    scales = np.where(scales > 0, scales, np.float32(1))
    codes: Codes = np.clip(np.rint(vectors / scales[:, None]), -LARGEST_CODE, LARGEST_CODE).astype(np.int8)
    return codes, scales


def from_int8(codes: Codes, scales: Floats) -> Floats:
    """The inverse of `to_int8`, up to half a scale a number: float32 [row, length]."""
    vectors: Floats = codes.astype(np.float32) * scales[:, None]
    return vectors


def to_float16(vectors: Floats) -> npt.NDArray[np.float16]:
    """Numbers from -1 to 1 as float16, each off by at most 2^-11 of itself, or by 2^-25 below 2^-14 [row, length]."""
    halves: npt.NDArray[np.float16] = vectors.astype("<f2")
    return halves
