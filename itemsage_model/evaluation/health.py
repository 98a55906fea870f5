"""Figures by which a catalog's vectors show that they are sick before anybody searches them. Knows arrays alone.

Of a sample of the items, the same ones of the version before: how many directions they use, how many lie on each other,
and how much of each item's neighbourhood is still there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.metrics import Health

NEIGHBOURS = 10
_DUPLICATE = 0.001
"""Share of the squared distance of any two items, in the mean, below which two cannot be told apart by a search."""
_ROWS_AT_ONCE = 1_024
_ASKED = 2_000
"""Items of a sample, at most, whose neighbours are looked for among all of it: a share of them is right to .01."""


@dataclass(frozen=True)
class VectorSample:
    """Some items of a version, sorted by id.

    Attributes:
        ids: Their ids [item].
        features: features_hash [item].
        vectors: Unit length [item, dim].
    """

    ids: npt.NDArray[np.str_]
    features: npt.NDArray[np.str_]
    vectors: npt.NDArray[np.float32]

    def taken(self, rows: npt.NDArray[np.int64]) -> VectorSample:
        """Some of its rows."""
        return VectorSample(self.ids[rows], self.features[rows], self.vectors[rows])

    def replaced(self, ids: npt.NDArray[np.str_], new: VectorSample) -> VectorSample:
        """The sample without the items of these ids, and with those of another one."""
        kept = self.taken(np.flatnonzero(~np.isin(self.ids, ids)))
        both = VectorSample(
            np.concatenate([kept.ids, new.ids]),
            np.concatenate([kept.features, new.features]),
            np.concatenate([kept.vectors, new.vectors]) if len(new.ids) else kept.vectors,
        )
        return both.taken(np.argsort(both.ids, kind="stable"))


def health_of(new: VectorSample, previous: VectorSample | None, *, is_same_model: bool) -> Health:
    """The figures of a sample beside the same items of the version before.

    Args:
        new: What is to be published.
        previous: What is published; None = nothing, or nothing that can be read.
        is_same_model: Whether both are of one model.
    """
    spread, dimensions = spread_of(new.vectors)
    figures = (len(new.ids), spread, dimensions, _near_duplicates(new, spread))
    if previous is None:
        return Health(*figures)
    _, rows, rows_before = np.intersect1d(new.ids, previous.ids, assume_unique=True, return_indices=True)
    now, before = new.taken(rows), previous.taken(rows_before)
    is_same = now.features == before.features
    drift = None
    if is_same_model and is_same.any():
        cosines = np.einsum("rd,rd->r", now.vectors[is_same], before.vectors[is_same])
        drift = round(max(0.0, float(1 - cosines.mean())), 6)
    overlap = None
    if len(rows) > NEIGHBOURS:
        asked = _asked(len(rows))
        found, found_before = _nearest(now.vectors, asked), _nearest(before.vectors, asked)
        kept = [len(np.intersect1d(*pair, assume_unique=True)) for pair in zip(found, found_before, strict=True)]
        overlap = round(float(np.mean(kept)) / NEIGHBOURS, 4)
    return Health(*figures, overlap, drift)


def spread_of(vectors: npt.NDArray[np.float32]) -> tuple[float, float]:
    """How far vectors lie from their mean, and how many directions they use there.

    What all have in common ranks nothing, so a young model whose vectors lie in a narrow cone may be well.

    Returns:
        The trace of their covariance, 0 where all are equal and at most 1 for unit vectors; and the participation ratio
        of its eigenvalues, tr(C)^2 / tr(C^2): 1 on a line, their length where they are spread evenly.
    """
    if not len(vectors):
        return 0.0, 0.0
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    covariance = centred.T @ centred / len(vectors)
    spread = float(np.trace(covariance))
    return round(spread, 6), round(spread**2 / max(float((covariance**2).sum()), 1e-300), 2)


def _asked(count: int) -> npt.NDArray[np.int64]:
    """At most _ASKED of so many rows, evenly dealt."""
    return np.arange(0, count, max(1, -(-count // _ASKED)))


def _near_duplicates(sample: VectorSample, spread: float) -> float:
    """Share of the items that lie on an item of other features, by how far items lie from each other at all."""
    count, asked = 0, _asked(len(sample.ids))
    _, features = np.unique(sample.features, return_inverse=True)
    for first in range(0, len(asked), _ROWS_AT_ONCE):
        rows = asked[first : first + _ROWS_AT_ONCE]
        is_on = sample.vectors[rows] @ sample.vectors.T > 1 - _DUPLICATE * spread
        count += int((is_on & (features[rows, None] != features[None, :])).any(axis=1).sum())
    return round(count / max(len(asked), 1), 4)


def _nearest(vectors: npt.NDArray[np.float32], asked: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The nearest others of some vectors, in no order [asked, NEIGHBOURS]."""
    parts = []
    for first in range(0, len(asked), _ROWS_AT_ONCE):
        rows = asked[first : first + _ROWS_AT_ONCE]
        scores = vectors[rows] @ vectors.T
        scores[np.arange(len(rows)), rows] = -np.inf
        parts.append(np.argpartition(-scores, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS])
    return np.concatenate(parts)
