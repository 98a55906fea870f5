"""Short forms of embeddings: fewer numbers, fewer bytes a number. Arrays in, arrays out.

The first numbers of an embedding are no better than any others, so a prefix is one of the rotated embedding: its first
numbers are those that tell most of what a query asks. A rotation of both sides changes no dot product, so what a prefix
of n numbers loses is exactly what the others held. Forms of 256 numbers are not rotated.

    query = short_queries(query_vector, rotation, 64)     # compare it by dot product with int8:64 or float32:64
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]
Exact = npt.NDArray[np.float64]

LARGEST_CODE = 127
"""The codes -127 to 127 stand for equal steps on both sides of zero; -128 is none."""
_NEAREST = 100
_FLOOR = 1e-9
_TINY = float(np.finfo(np.float32).tiny)


def rotations(items: Floats, queries: Floats) -> dict[str, Floats]:
    """The rotations that a prefix may be taken after, of which the recall on validation pairs chooses.

    both: the axes along which queries are long and the nearest items of a query differ: those of the geometric mean of
        the two second moments, C # D (Bhatia 2007), for what a prefix must keep is <q, v - w> of two near items.
    items: the principal axes of the items, not centred (Eckart and Young 1936): best where nothing is known of queries.
    last_first: the numbers as they are, backwards. Singular vectors that training starts from lie there, the leading
        ones last (itemsage_model/training/spectral.py).

    Args:
        items: Embeddings of a catalog, or of a sample of it [item, dim], at least one.
        queries: Vectors of some queries, of which a thousand or two are enough [query, dim]; where there are none,
            `both` is left out.

    Returns:
        Orthogonal matrices [dim, dim], by name; `items @ rotation` are the rotated ones. The same to the last bit for
        the same rows in the same order.
    """
    # One thread: the order of a threaded sum, and with it the last bits, may change from run to run.
    with threadpool_limits(limits=1):
        of_items = _moment(items)
        found = {"items": _axes(of_items), "last_first": np.eye(items.shape[1], dtype=np.float32)[:, ::-1].copy()}
        if len(queries) and len(items) > 1:
            found = {"both": _axes(_geometric_mean(_moment(queries), _spread(items, queries)))} | found
    return found


def _moment(vectors: Floats) -> Exact:
    """Second moment, not centred [dim, dim]."""
    exact = vectors.astype(np.float64)
    moment: Exact = exact.T @ exact / len(exact)
    return moment


def _spread(items: Floats, queries: Floats) -> Exact:
    """Second moment of what parts the nearest items of a query from their mean [dim, dim]."""
    nearest = min(_NEAREST, len(items))
    total = np.zeros((items.shape[1], items.shape[1]))
    for query in queries:
        near = items[np.argpartition(-(items @ query), nearest - 1)[:nearest]].astype(np.float64)
        near -= near.mean(axis=0)
        total += near.T @ near
    return total / (nearest * len(queries))


def _geometric_mean(left: Exact, right: Exact) -> Exact:
    """The matrix left # right = left^(1/2) (left^(-1/2) right left^(-1/2))^(1/2) left^(1/2)."""
    half, inverse = _power(left, 0.5), _power(left, -0.5)
    mean: Exact = half @ _power(inverse @ right @ inverse, 0.5) @ half
    return mean


def _power(matrix: Exact, exponent: float) -> Exact:
    """Of a symmetric matrix without negative eigenvalues; the least ones are taken for a billionth of the largest."""
    values, axes = np.linalg.eigh(matrix)
    power: Exact = (axes * np.maximum(values, max(_FLOOR * values[-1], _TINY)) ** exponent) @ axes.T
    return power


def _axes(matrix: Exact) -> Floats:
    """Eigenvectors, that of the largest value first; their signs are arbitrary: the largest entry is positive."""
    axes = np.linalg.eigh(matrix)[1][:, ::-1]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return np.ascontiguousarray(axes * np.sign(largest), np.float32)


def shortened(vectors: Floats, rotation: Floats | None, length: int) -> Floats:
    """The first numbers of rotated vectors, as they are: their dot products are those of 256 but for the others' part.

    Items are published so, as how much of an item lies in these directions is part of its score: compare by the dot
    product, not the cosine. Of queries the length changes no ranking; see `short_queries`.

    Args:
        vectors: [row, dim].
        rotation: The catalog's [dim, at least length]; None = the vectors stay as they are, but for their length.
        length: How many numbers to keep.

    Returns:
        float32 [row, length].
    """
    kept: Floats = vectors[:, :length] if rotation is None else vectors @ rotation[:, :length]
    return kept.astype(np.float32, copy=False)


def short_queries(vectors: Floats, rotation: Floats | None, length: int) -> Floats:
    """Query vectors as short items want them: the first numbers after the rotation, brought to unit length.

    Args:
        vectors: [query, dim].
        rotation: As of the items.
        length: As of the items.

    Returns:
        float32 [query, length]; zero where a query has nothing in these directions.
    """
    kept = shortened(vectors, rotation, length)
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    unit: Floats = kept / np.maximum(lengths, np.float32(_TINY))
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
