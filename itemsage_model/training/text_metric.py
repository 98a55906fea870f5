"""A start for the maps of frozen vectors: what of two texts, being alike, says that they are engaged with together.

Frozen vectors of texts weigh all that they hold alike: a colour or a pattern as much as what a thing is. Which of it
the people who bought one thing looked for in the next one, the pairs say, also for items that are in no pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from itemsage_model.data.parquet_files import file_batches
from itemsage_model.data.pinned_files import TableFiles, some_files
from itemsage_model.data.reader import Weight, pair_format
from schemas.elements import FROZEN_TEXT
from schemas.tables import EMBEDDING_DIM, TRAINING_PAIRS

_TEXT = FROZEN_TEXT.sized(slots=1, length=EMBEDDING_DIM)
_ROWS_AT_ONCE = 1 << 14
_MOST_ROWS = 400_000
"""Pairs of a task that are read, at most a batch more: a matrix of 256 x 256 needs no more."""
_RIDGE = 3.0
"""Added to the variances, in their mean: directions in which texts hardly differ say little."""

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TextMetric:
    """Directions of the frozen vectors, and how much being alike in each says.

    Attributes:
        directions: float64 [dim, direction], orthonormal.
        gains: float64 [direction], 0 to 1: of the most telling one 1.
        energies: float64 [direction], mean square of the texts' vectors along it.
    """

    directions: Matrix
    gains: Matrix
    energies: Matrix

    def change(self, strength: float) -> npt.NDArray[np.float32]:
        """What a symmetric map adds to each vector, the same for queries and items; float32 [dim, dim].

        Along each direction the dot product of two mapped vectors has 1 + strength x gain times its weight; their
        length stays the same on average.
        """
        weights = 1 + strength * self.gains
        if self.energies.any():
            weights *= self.energies.sum() / (weights @ self.energies)
        change: npt.NDArray[np.float32] = ((self.directions * (np.sqrt(weights) - 1)) @ self.directions.T).astype("<f4")
        return change


def text_metric(tasks: Sequence[TableFiles], shares: Sequence[float], weight: Weight, seed: int) -> TextMetric:
    """Learn the metric from the pairs of the training tables; see `metric_of`.

    Args:
        tasks: Files of the training tables; of a large one some are drawn.
        shares: The tasks' shares of a batch.
        weight: The column that says how much a pair counts; pairs with 0 are left out.
        seed: For the draw.

    Raises:
        TableError: a file is damaged, gone or lacks a column.
    """
    moments = np.zeros((2 * EMBEDDING_DIM + 1, 2 * EMBEDDING_DIM + 1))
    for files, share in zip(tasks, shares, strict=True):
        of_task = np.zeros_like(moments)
        # One thread: the order of a threaded sum may change from run to run.
        with threadpool_limits(limits=1):
            for both, weights in _pairs(some_files(files, _MOST_ROWS, seed), weight):
                of_task += both.T @ (both * weights[:, None])
        moments += share * of_task / max(of_task[-1, -1], 1e-30)
    return metric_of(moments / max(moments[-1, -1], 1e-30))


def metric_of(moments: Matrix) -> TextMetric:
    """The symmetric part of the whitened cross-covariance of queries and items that are pairs, what is positive of it.

    Source: canonical correlations (Hotelling 1936), with a ridge; one map for both sides, so that two texts that are
    alike stay alike. Differs from the paper: its frozen vectors are used as they are.

    Args:
        moments: float64 [2 dim + 1, 2 dim + 1], mean over the pairs of the outer product of (query, item, 1).
    """
    dim = len(moments) // 2
    queries, items = slice(0, dim), slice(dim, 2 * dim)
    mean = moments[-1, :-1]
    covariance = moments[:-1, :-1] - np.outer(mean, mean)
    with threadpool_limits(limits=1):
        whitened = (
            _inverse_root(covariance[queries, queries])
            @ covariance[queries, items]
            @ _inverse_root(covariance[items, items])
        )
        gains, directions = np.linalg.eigh((whitened + whitened.T) / 2)
    gains = np.maximum(gains, 0)
    both = (moments[queries, queries] + moments[items, items]) / 2
    energies = np.einsum("id,ij,jd->d", directions, both, directions)
    return TextMetric(directions, gains / max(gains.max(), 1e-12), np.maximum(energies, 0))


def _inverse_root(covariance: Matrix) -> Matrix:
    values, axes = np.linalg.eigh(covariance)
    values = np.maximum(values, 0)
    root: Matrix = (axes / np.sqrt(values + _RIDGE * values.mean() + 1e-12)) @ axes.T
    return root


def _pairs(files: TableFiles, weight: Weight) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Query vector, item vector and a 1 of the pairs that count and whose item has a text; and their weights."""
    rows, left = pair_format([_TEXT], weight), _MOST_ROWS
    declared = replace(TRAINING_PAIRS, name=files.table)
    for uri in files.uris:
        for batch in file_batches(uri, list(rows.columns), _ROWS_AT_ONCE, declared):
            pairs = rows.unpack(files.table, pa.Table.from_batches([batch]))
            assert pairs.items is not None
            texts = pairs.items.gather()[_TEXT.key]
            counts = pairs.pair_weight > 0
            kept = counts & (texts.counts > 0)
            vectors = pairs.query_embedding[kept], texts.values[counts[texts.counts > 0]]
            ones = np.ones((len(vectors[0]), 1), np.float16)
            yield np.concatenate([*vectors, ones], axis=1).astype(np.float32), pairs.pair_weight[kept]
            left -= len(batch)
            if left <= 0:
                return
