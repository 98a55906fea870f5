"""A start for the identities of items and queries: the singular vectors of how often they are engaged together.

Training would find much of this by itself, in thousands of steps. A singular value decomposition finds it in seconds,
and in a shop of one purchase after the other it comes near to a count of all pairs with 256 numbers an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from itemsage_model.data.pinned_files import TableFiles
from itemsage_model.data.query_keys import weighing_rows
from schemas.tables import EMBEDDING_DIM

_ITERATIONS = 3
_OF_QUERY, _OF_ITEM = 0.4, 0.2
"""Powers of a query's and an item's summed weight by which a pair's weight is divided before it is factorised."""
_TINY = 1e-30

Keys = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SpectralStart:
    """Vectors whose dot products are proportional to the share, or nearly so, that an item has of a query's weight.

    Attributes:
        item_keys: Sorted.
        items: Unit length, float32 [item, 256].
        query_keys: Sorted.
        queries: float32 [query, 256].
        popularity: float32 [256]; its dot products are to the items' shares of the whole weight as the queries' are.
    """

    item_keys: Keys
    items: Vectors
    query_keys: Keys
    queries: Vectors
    popularity: Vectors

    def query_vectors(self, smoothing: float) -> Vectors:
        """Unit vectors of the queries, whose shares are mixed with so much of everybody's.

        What few engagements say of a query is little, and what all of a shop's say of it is much: the prior of a
        Dirichlet distribution, but of one weight for all queries.
        """
        return _unit(self.queries + smoothing * self.popularity)


Measure = Literal["pair_weight", "engagement_count", "fit_weight", "fit_engagement_count"]
"""The column of the training tables that says how much a pair counts."""


def spectral_start(tasks: Sequence[TableFiles], shares: Sequence[float], weight: Measure) -> SpectralStart:
    """Factorise the pairs of the training tables; see `factorised`.

    Args:
        tasks: Files of the training tables.
        shares: The tasks' shares of a batch.
        weight: The column that says how much a pair counts; pairs with 0 are left out.

    Raises:
        TableError: a file is damaged, gone or lacks a column.
    """
    parts = [_pairs(files, weight) for files in tasks]
    scaled = [part[2] * (share / max(part[2].sum(), _TINY)) for part, share in zip(parts, shares, strict=True)]
    query, item = (np.concatenate([part[column] for part in parts]) for column in (0, 1))
    return factorised(query, item, np.concatenate(scaled))


def factorised(query_key: Keys, item_key: Keys, weight: npt.NDArray[np.float64]) -> SpectralStart:
    """The leading singular vectors of a matrix of pairs.

    With w_q and w_i the summed weights of a query's and an item's pairs, the matrix is w_qi / (w_q^a w_i^b), and U S V'
    what is left of it in 255 dimensions: a query has U S w_q^(a-1), popularity is what a query with everybody's shares
    would have. An item has w_i^b V, its length relative to the longest one, and in the last dimension, which is 0 for
    queries, what is missing to unit length: the cosine then ranks as the dot product does (Bachrach et al. 2014).
    Leading vectors come last, where frozen text vectors, which are ordered by what they explain, hold least.

    Differs from the paper: it has no identities. Assumed: the powers a and b, by which few popular items and queries do
    not take all dimensions; chosen on the validation windows of two shops (docs/lab-log.md).

    Args:
        query_key: Of each pair; pairs may repeat.
        item_key: Of each pair.
        weight: Of each pair, above 0.
    """
    query_keys, query = np.unique(query_key, return_inverse=True)
    item_keys, item = np.unique(item_key, return_inverse=True)
    pairs = csr_matrix((weight, (query, item)), (len(query_keys), len(item_keys)))
    of_query = np.asarray(pairs.sum(axis=1)).ravel()
    of_item = np.asarray(pairs.sum(axis=0)).ravel()
    popularity = of_item ** (1 - _OF_ITEM) / max(of_item.sum(), _TINY)
    pairs.data /= np.repeat(of_query, np.diff(pairs.indptr)) ** _OF_QUERY * of_item[pairs.indices] ** _OF_ITEM
    # Of numbers near 1, none comes near the smallest float32.
    scale = max(pairs.data.max(initial=0), _TINY)
    pairs = (pairs / scale).astype(np.float32)
    towards = np.zeros(EMBEDDING_DIM, np.float32)
    queries = np.zeros((len(query_keys), EMBEDDING_DIM), np.float32)
    items = np.zeros((len(item_keys), EMBEDDING_DIM), np.float32)
    if pairs.nnz:
        rank = min(EMBEDDING_DIM - 1, *pairs.shape)
        with threadpool_limits(limits=1):  # the order of a threaded sum may change from run to run
            left, values, right = randomized_svd(pairs, rank, n_iter=_ITERATIONS, random_state=0)
        order = EMBEDDING_DIM - 2 - np.arange(rank)
        queries[:, order] = left * values * (scale * of_query ** (_OF_QUERY - 1))[:, None]
        towards[order] = right @ popularity
        vectors = right.T * of_item[:, None] ** _OF_ITEM
        items[:, order] = vectors / np.linalg.norm(vectors, axis=1).max()
        items[:, -1] = np.sqrt(np.maximum(1 - np.square(items).sum(axis=1), 0))
    return SpectralStart(item_keys, items, query_keys, queries, towards)


def _pairs(files: TableFiles, weight: Measure) -> tuple[Keys, Keys, npt.NDArray[np.float64]]:
    """query_key, item_key and weight of the rows with a weight above 0."""
    columns = ["query_key", "item_key"]
    parts = [[batch[name].to_numpy() for name in (*columns, weight)] for batch in weighing_rows(files, columns, weight)]
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    query, item, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    return query, item, weights.astype(np.float64)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
