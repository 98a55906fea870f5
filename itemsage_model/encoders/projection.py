"""Vectors of another length, projected to the length of all query embeddings.

A projection is fitted once for an embedding space and kept with its name: vectors may only be compared with others
that came through the same one. It is linear and has orthonormal columns, so it keeps dot products as nearly as 256
dimensions can; narrower vectors are padded with zeros, which keeps them exactly. Of a space whose vectors all lie
around one direction, as pictures' do, that direction can be left out, as it tells none from another: dot products are
then those of what is left.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from schemas.errors import InputError
from schemas.storage import read_bytes, write_bytes
from schemas.tables import EMBEDDING_DIM

_NOTHING = 1e-4
"""Of a vector's length, what is no more than rounding."""


def leading_directions(vectors: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], float]:
    """The directions that keep most of some vectors' squared length; a PCA without centring.

    Args:
        vectors: [row, length], at least one row that is not zero.

    Returns:
        A matrix [length, 256] with orthonormal columns, or the first columns of the identity where the vectors are no
        longer than that; and the share of the squared length that it keeps, 0 to 1.
    """
    length = vectors.shape[1]
    if length <= EMBEDDING_DIM:
        return np.eye(length, EMBEDDING_DIM, dtype=np.float32), 1.0
    exact = vectors.astype(np.float64)
    # One thread: the order of a threaded sum, and with it the last bits, may change from run to run.
    with threadpool_limits(limits=1):
        moments, axes = np.linalg.eigh(exact.T @ exact)
    leading = axes[:, ::-1][:, :EMBEDDING_DIM]
    # An eigenvector's sign is arbitrary: make its largest entry positive.
    largest = np.take_along_axis(leading, np.abs(leading).argmax(axis=0)[None], axis=0)
    kept = float(moments[::-1][:EMBEDDING_DIM].sum() / moments.sum())
    return (leading * np.sign(largest)).astype(np.float32), min(kept, 1.0)


@dataclass(frozen=True, eq=False)
class Projection:
    """The projection of one embedding space.

    Attributes:
        source_space: The space of the vectors that it takes.
        matrix: float32 [length, 256].
        explained_variance: Share of the fitted vectors' squared length that it keeps, 0 to 1; that along `common` does
            not count.
        common: float32 [length], at unit length: the direction of the vectors' mean, which is left out; None = none is.
    """

    source_space: str
    matrix: npt.NDArray[np.float32]
    explained_variance: float
    common: npt.NDArray[np.float32] | None = None

    @property
    def length(self) -> int:
        """Numbers of a vector that it takes."""
        return len(self.matrix)

    @cached_property
    def name(self) -> str:
        """The space of the projected vectors: the source's name and a hash of the matrix."""
        return f"{self.source_space}-to-{EMBEDDING_DIM}-{sha256(self.matrix.tobytes()).hexdigest()[:8]}"

    def apply(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Project vectors [row, length] to float64 [row, 256]; zeros where nothing is left of one.

        One row at a time: the last bits of a product of matrices depend on how many rows it has, and a query must have
        the same embedding whichever others lie beside it.
        """
        matrix = self.matrix.astype(np.float64)
        projected = np.zeros((len(vectors), EMBEDDING_DIM))
        for row, vector in enumerate(vectors.astype(np.float64)):
            projected[row] = vector @ matrix
        if self.common is not None:
            # What a float32 matrix leaves of a vector that is nothing but the common direction says nothing.
            lengths, given = (np.linalg.norm(some, axis=1) for some in (projected, vectors))
            projected[lengths < _NOTHING * given] = 0
        return projected

    def kept_share(self, vectors: npt.NDArray[np.float32]) -> float:
        """What is kept of the squared length of vectors [row, length], each scaled to length 1; 0 to 1.

        What they have along `common` does not count.
        """
        unit = _without(_scaled(vectors), self.common)
        return float((self.apply(unit) ** 2).sum() / max(float((unit.astype(np.float64) ** 2).sum()), 1e-12))


def _scaled(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def _without(vectors: npt.NDArray[np.float32], common: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
    return vectors if common is None else vectors - np.outer(vectors @ common, common)


def fit_projection(
    source_space: str, vectors: npt.NDArray[np.float32], *, has_common_direction: bool = False
) -> Projection:
    """Fit the projection of a space on some of its vectors, each weighing as much as any other.

    Args:
        source_space: The space.
        vectors: [row, length].
        has_common_direction: Leave out the direction of their mean (Mu and Viswanath, arXiv 1702.01417). Vectors of an
            image network are sums of what it has found, none of them negative: most of each is what all share (two
            thirds of the squared length, EfficientNet-Lite0 on the demo), from which a softmax learns slowly.
    """
    unit, common = _scaled(vectors), None
    # Of one vector alone, nothing else would be left.
    if has_common_direction and (unit != unit[0]).any():
        mean = unit.mean(axis=0, dtype=np.float64)
        common = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    matrix, explained = leading_directions(_without(unit, common))
    # Where there are fewer vectors than directions, those that are left over may hold the common one; and the last bits
    # of a product depend on the order in which the matrix lies, which is that of its file.
    matrix = np.ascontiguousarray(_without(matrix.T, common).T)
    return Projection(source_space, matrix, explained, common)


def save_projection(projection: Projection, uri: str) -> None:
    """Write `<uri>/projection.safetensors` and, last, `<uri>/projection.json`."""
    arrays = {"matrix": np.ascontiguousarray(projection.matrix)}
    if projection.common is not None:
        arrays["common"] = projection.common
    described = {
        "source_space": projection.source_space,
        "name": projection.name,
        "explained_variance": projection.explained_variance,
    }
    write_bytes(f"{uri}/projection.safetensors", safetensors.numpy.save(arrays))
    write_bytes(f"{uri}/projection.json", (json.dumps(described, indent=2) + "\n").encode())


def load_projection(uri: str) -> Projection | None:
    """Read what `save_projection` wrote; None where there is nothing.

    Raises:
        InputError: it is damaged, or its two files do not belong together.
    """
    try:
        described = json.loads(read_bytes(f"{uri}/projection.json"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(uri, str(error)) from error
    try:
        arrays = safetensors.numpy.load(read_bytes(f"{uri}/projection.safetensors"))
        matrix, common = arrays["matrix"], arrays.get("common")
        projection = Projection(described["source_space"], matrix, described["explained_variance"], common)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise _damaged(uri, f"{type(error).__name__} {error}") from error
    if projection.name != described["name"]:
        raise _damaged(uri, f"a description of {described['name']} beside the matrix of {projection.name}")
    return projection


def _damaged(uri: str, found: str) -> InputError:
    cure = "Restore the folder; or remove it, run embed_queries and train again."
    return InputError("query projection", uri, expected="what embed_queries saved", found=found, cure=cure)
