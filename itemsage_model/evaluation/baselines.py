"""The systems that a model is compared with, each as a function from queries to scores of all candidates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix
from torch import Tensor

from itemsage_model.evaluation.recall import ScoreQueries

ItemPairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Key of the item that a query shows, key of the item engaged with, engagements; [pair] each."""

_OF_REAL_NUMBERS = 1e-5
"""What counts as a tie of scores that are no whole numbers; single precision tells them apart up to 100."""


def dot_product(query_vectors: npt.NDArray[np.float32], item_vectors: npt.NDArray[np.float32]) -> ScoreQueries:
    """Score = dot product.

    Args:
        query_vectors: [query, dim].
        item_vectors: [candidate, dim].
    """
    queries, items = torch.from_numpy(query_vectors), torch.from_numpy(item_vectors)
    return lambda block: queries[block] @ items.T


def sparse_dot_product(
    query_weights: csr_matrix, item_weights: csr_matrix, popularity: npt.NDArray[np.int64]
) -> ScoreQueries:
    """Score = dot product; ties by popularity, as texts of a few words have many.

    Args:
        query_weights: [query, word].
        item_weights: [candidate, word].
        popularity: Engagements of each candidate; [candidate].
    """
    by_word = item_weights.T.tocsr()
    tie_break = _tie_break(popularity, smallest_difference=_OF_REAL_NUMBERS).float()
    return lambda block: torch.from_numpy((query_weights[block.numpy()] @ by_word).toarray()).add_(tie_break)


def popularity(counts: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> ScoreQueries:
    """Score = engagements of the candidate in the training window, whatever the query; [candidate]."""
    scores = torch.from_numpy(counts).float()
    return lambda block: scores.expand(len(block), -1).clone()


def random(candidates: int, seed: int) -> ScoreQueries:
    """Score = a random number for each query and candidate."""
    generator = torch.Generator().manual_seed(seed)
    return lambda block: torch.rand(len(block), candidates, generator=generator)


def co_occurrence(
    query_items: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    pairs: ItemPairs,
    popularity: npt.NDArray[np.int64] | npt.NDArray[np.float64],
) -> ScoreQueries:
    """Score = training engagements of the candidate after queries that show the same item; ties by popularity.

    Counts are small numbers with many ties, and ties count against a system, so without an order among them this
    baseline would look weaker than it is. Engagements and popularity are counts, or both are counts by age.

    Args:
        query_items: Key of the item each query shows, 0 = none; [query].
        candidates: Sorted item keys; [candidate].
        pairs: Query item keys, item keys and counts of the training pairs.
        popularity: Engagements of each candidate; [candidate].
    """
    shown, items, counts = pairs
    known = np.unique(query_items[query_items != 0])
    column = np.searchsorted(candidates, items)
    is_candidate = (column < len(candidates)) & (candidates[np.minimum(column, len(candidates) - 1)] == items)
    row = np.searchsorted(known, shown)
    is_query = (row < len(known)) & (known[np.minimum(row, max(len(known) - 1, 0))] == shown) if len(known) else row < 0
    kept = is_candidate & is_query
    # A last, empty row serves the queries that show no item: every candidate ties at zero.
    matrix = csr_matrix((counts[kept], (row[kept], column[kept])), shape=(len(known) + 1, len(candidates)))
    row_of_query = np.where(query_items == 0, len(known), np.searchsorted(known, query_items))

    is_counted = np.issubdtype(popularity.dtype, np.integer)
    tie_break = _tie_break(popularity, smallest_difference=1 if is_counted else _OF_REAL_NUMBERS)

    def score(block: Tensor) -> Tensor:
        return torch.from_numpy(matrix[row_of_query[block.numpy()]].toarray()) + tie_break

    return score


def sum_of_images(
    image_embeddings: npt.NDArray[np.float16], image_counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Unit-length sum of each item's image vectors [item, length]; zero without images.

    Source: the baseline `Sum` of ItemSage, table 2.

    Args:
        image_embeddings: The images of all items, end to end; [image, length].
        image_counts: How many of them each item has; [item].
    """
    sums = np.zeros((len(image_counts), image_embeddings.shape[1]), np.float32)
    starts = np.cumsum(image_counts) - image_counts
    has_images = image_counts > 0
    if has_images.any():
        sums[has_images] = np.add.reduceat(image_embeddings.astype(np.float32), starts[has_images])
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = (sums / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def _tie_break(
    popularity: npt.NDArray[np.int64] | npt.NDArray[np.float64], *, smallest_difference: float
) -> Float[Tensor, "candidate"]:
    """What to add to scores that orders equal ones by popularity and others hardly ever: below half a difference."""
    return torch.from_numpy(popularity / (2 * (popularity.max(initial=0) or 1)) * smallest_difference)
