"""How sure a weighted mean over pairs is: bootstrap intervals over queries, the same resamples for every figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

Floats = npt.NDArray[np.float64]

RESAMPLES = 1_000
CONFIDENCE = 0.95
FEW_QUERIES = 10
"""Below so many queries no interval is given: resamples of a handful differ too little to be believed."""

_AT_ONCE = 50
_SEED = 0
_UNITS = float(1 << 20)


Interval = tuple[float | None, float | None]
"""Where a figure lies with a probability of `CONFIDENCE`; None where queries are too few to say."""


@dataclass(frozen=True)
class Estimates:
    """Weighted means of some figures over the pairs of one slice.

    Attributes:
        values: The means [figure].
        resampled: The same of each resample of the queries [resample, figure]; empty where queries are few.
    """

    values: Floats
    resampled: npt.NDArray[np.float32]

    def intervals(self) -> list[Interval]:
        """The percentile interval of each figure."""
        return _percentiles(self.resampled, len(self.values))

    def differences(self, of: npt.NDArray[np.int64], minus: npt.NDArray[np.int64]) -> list[Interval]:
        """The percentile interval of each difference of two figures, over the same resamples: paired by query.

        Args:
            of: Positions of figures [difference].
            minus: Positions of what is taken from them [difference].
        """
        return _percentiles(self.resampled[:, of] - self.resampled[:, minus], len(of))


def bootstrap(
    query: npt.NDArray[np.int64], weights: Floats, values: Floats, slices: dict[str, npt.NDArray[np.bool_]]
) -> dict[str, Estimates]:
    """Weighted means over each slice, and those of `RESAMPLES` resamples of all queries, drawn with replacement.

    A query comes with all of its pairs: they share what is easy or hard about it, so pairs are no independent draws.
    A mean is `sum(weight x value) / sum(weight)`, of which each query adds to both sums; so a resample is a product of
    how often it drew each query and these sums.

    Source: the percentile bootstrap over clusters (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
    Assumed: recall of rare hits has no better interval here; where no query hits, it is 0 to 0.

    Args:
        query: Each pair's query, any numbers [pair].
        weights: Weight of each pair [pair].
        values: What each pair is worth by each figure [pair, figure].
        slices: Name -> which pairs belong to it [pair].
    """
    distinct, position = np.unique(query, return_inverse=True)
    sums = {name: _sums_by_query(position[chosen], weights[chosen], values[chosen]) for name, chosen in slices.items()}
    means = {name: _mean(of_queries.sum(axis=0, dtype=np.float64)) for name, (_, of_queries) in sums.items()}
    enough = {name: found for name, found in sums.items() if len(found[0]) >= FEW_QUERIES}
    resampled = {name: np.empty((RESAMPLES if name in enough else 0, values.shape[1]), np.float32) for name in slices}
    generator = np.random.default_rng(_SEED)
    for first in range(0, RESAMPLES, _AT_ONCE):
        drawn = _draws(generator, len(distinct))
        for name, (queries, of_queries) in enough.items():
            totals = drawn[:, queries] @ of_queries
            with np.errstate(invalid="ignore"):  # a resample without a query of the slice is no number
                resampled[name][first : first + _AT_ONCE] = totals[:, 1:] / totals[:, :1]
    return {name: Estimates(means[name], resampled[name]) for name in slices}


def _sums_by_query(
    query: npt.NDArray[np.int64], weights: Floats, values: Floats
) -> tuple[npt.NDArray[np.int64], Floats]:
    """The distinct queries, and of each the sum of weights and of weighted values [query, 1 + figure].

    As multiples of a millionth, of which any sum is exact: the figures then do not depend on the order in which several
    threads add, and so not on their number.
    """
    queries, row = np.unique(query, return_inverse=True)
    by_query = csr_matrix((weights, (row, np.arange(len(row)))), shape=(len(queries), len(row)))
    sums: Floats = np.round((by_query @ np.hstack([np.ones((len(row), 1)), values])) * _UNITS) / _UNITS
    return queries, sums


def _draws(generator: np.random.Generator, queries: int) -> Floats:
    """How often each query is drawn in each of some resamples [resample, query]."""
    drawn = np.empty((_AT_ONCE, queries))
    for row in drawn:
        row[:] = np.bincount(generator.integers(0, queries, queries), minlength=queries)
    return drawn


def _mean(sums: Floats) -> Floats:
    mean: Floats = sums[1:] / sums[0] if sums[0] > 0 else np.zeros(len(sums) - 1)
    return mean


def _percentiles(resampled: npt.NDArray[np.float32], count: int) -> list[Interval]:
    if not len(resampled):
        return [(None, None)] * count
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(resampled, [tail, 100 - tail], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
