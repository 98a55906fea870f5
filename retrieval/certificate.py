"""The recall certificate of an index: what its answers are worth, by figure, and the refusal to publish below a bar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from retrieval.manifest import Certificate, Figure
from retrieval.measure import Filter, K, Measured, Questions
from schemas.errors import GateError

_TIE = 1e-5
"""Scores that differ by less are equal: a graph and a product of matrices add in different orders."""


def recalls(found: Measured) -> npt.NDArray[np.float64]:
    """Recall of each query, float64 [query]; NaN where no row passes."""
    possible = np.isfinite(found.exact).sum(axis=1)
    last = np.take_along_axis(found.exact, np.maximum(possible - 1, 0)[:, None], 1)
    hits = (np.isfinite(found.true) & (found.true >= last - _TIE)).sum(axis=1)
    of_each: npt.NDArray[np.float64] = np.minimum(hits / np.where(possible, possible, np.nan), 1.0)
    return of_each


def certificate(
    measured: Sequence[Measured], questions: Questions, filters: Sequence[Filter], min_recall: float
) -> Certificate:
    """The figures: of all items for every slice, under each filter for all queries.

    Args:
        measured: One for each filter, of the whole index.
        questions: What was asked; of a slice without a query there is no figure.
        filters: The filters, the first without one; of those that no item passes there is no figure.
        min_recall: What every figure has to reach.
    """
    everything = np.ones(len(questions.vectors), bool)
    figures = []
    for one, found in zip(filters, measured, strict=True):
        parts = {"all queries": everything, **questions.parts} if one is filters[0] else {"all queries": everything}
        of_queries = recalls(found)
        for part, chosen in parts.items():
            values = np.sort(of_queries[chosen & ~np.isnan(of_queries)])
            if not len(values):
                continue
            name = part if one is filters[0] else one.name
            lowest = float(values[: max(1, len(values) // 10)].mean())
            figures.append(
                Figure(
                    name,
                    len(values),
                    float(values.mean()),
                    lowest,
                    float(np.median(found.milliseconds)),
                    found.passing / max(found.rows, 1),
                )
            )
    return Certificate(K, questions.asked, min_recall, tuple(figures))


def require_certified(found: Certificate, name: str) -> None:
    """Refuse to publish an index below the recall that is asked for.

    Raises:
        GateError: a figure is below it; the index that is in use stays.
    """
    low = [figure for figure in found.figures if figure.recall < found.min_recall]
    if low or not found.figures:
        said = "; ".join(f"{figure.recall:.4f} of {figure.name}" for figure in low) or "no query to measure it with"
        raise GateError(
            name,
            f"recall@{found.k}",
            expected=f"at least {found.min_recall} (index.min_recall)",
            found=said,
            cure="Raise index.ef_search or index.ef_construction, or lower the bar. The index in use stays as it is.",
        )


def lines(found: Certificate) -> list[str]:
    """The certificate as lines of a table."""
    head = f"{'recall@' + str(found.k):>9} {'lowest tenth':>12} {'ms':>8} {'passing':>8} {'queries':>8}  of"
    rows = [
        f"{one.recall:>9.4f} {one.lowest_tenth:>12.4f} {one.milliseconds:>8.3f} {one.selectivity:>8.2%} "
        f"{one.queries:>8,}  {one.name}"
        for one in found.figures
    ]
    return [head, *rows]
