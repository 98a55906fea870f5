"""Where a scoring system ranks a pair's item among all candidates of its query, and what such a rank is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ScoreQueries = Callable[[Int[Tensor, "query"]], Float[Tensor, "query candidate"]]
"""Scores of all candidates for some queries, given as positions in the evaluation's list of queries."""

BLOCK_NUMBERS = 1 << 22
"""Scores held at once: few enough to stay in the cache between the passes over them."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs against one set of candidates.

    Attributes:
        query: Position of each pair's query in the list of distinct queries.
        positive: Position of each pair's item among the candidates.
        query_item: For each query, the candidate that it shows; -1 = none.
        weights: Engagement count of each pair.
        distractors: Candidates that compete; the others are here only as some pair's positive.
    """

    query: Int[Tensor, "pair"]
    positive: Int[Tensor, "pair"]
    query_item: Int[Tensor, "query"]
    weights: Float[Tensor, "pair"]
    distractors: Bool[Tensor, "candidate"]


def ranks(held_out: HeldOut, score: ScoreQueries) -> Float[Tensor, "pair"]:
    """The rank of each pair's item among the candidates of its query, from 1; infinite where its score is no number.

    `rank = 1 + #{y in distractors, y not the item nor the query's own item: score(y) >= score(item)}`: ties count
    against the system.

    Source: ItemSage section 4.1 (recall@k with random distractors).
    Assumed: the formula; ties and how pairs are weighted are not stated. The other held-out items of a query compete.
    Differs from the paper: the item that the query shows is no candidate.

    Args:
        held_out: The pairs.
        score: The system.
    """
    result = torch.full((len(held_out.query),), torch.inf)
    order = torch.argsort(held_out.query, stable=True)
    queries = torch.unique(held_out.query)
    ends = torch.searchsorted(held_out.query[order], queries, right=True)
    starts = torch.searchsorted(held_out.query[order], queries)
    block = max(16, BLOCK_NUMBERS // len(held_out.distractors))
    for first in range(0, len(queries), block):
        chosen = queries[first : first + block]
        scores = score(chosen).float()
        rows = order[starts[first] : ends[min(first + block, len(queries)) - 1]]
        index = torch.searchsorted(chosen, held_out.query[rows])
        result[rows] = _ranks_of_block(held_out, scores, chosen, rows, index)
    return result


def gains(rank: Float[Tensor, "pair"], k: int) -> dict[str, Float[Tensor, "pair"]]:
    """What each pair's rank is worth by each metric, 0 to 1; a metric is the weighted mean over pairs.

    recall@n: 1 where rank <= n, for n of 1, k and 100. mrr: 1 / rank. ndcg@k: 1 / log2(1 + rank) where rank <= k.

    Assumed: every pair stands for itself, with one relevant item, so that the best DCG is 1; a query with several
    held-out items has as many figures.

    Args:
        rank: From `ranks`.
        k: How many ranks recall@k and ndcg@k count.
    """
    rank = rank.double()
    found = {f"recall@{n}": (rank <= n).double() for n in sorted({1, k, 100})}
    discounted = torch.where(rank <= k, 1 / torch.log2(1 + rank), 0.0)
    return found | {"mrr": 1 / rank, f"ndcg@{k}": discounted}


def _ranks_of_block(
    held_out: HeldOut, scores: Tensor, block: Tensor, rows: Tensor, index: Tensor
) -> Float[Tensor, "pair"]:
    """Ranks of the items of the pairs `rows`.

    Args:
        held_out: All pairs.
        scores: Of the queries `block` for every candidate [query, candidate]; overwritten.
        block: Some queries.
        rows: The pairs of these queries.
        index: Of each pair, its query's row in `scores`.
    """
    positive = held_out.positive[rows]
    own_score = scores[index, positive]
    competing = scores if held_out.distractors.all() else scores.masked_fill_(~held_out.distractors, -torch.inf)
    shown = held_out.query_item[block]
    has_item = torch.nonzero(shown >= 0).squeeze(1)
    competing[has_item, shown[has_item]] = -torch.inf
    # What is no number is not at least as large as any score, so it never competes.
    # Counting one row at a time stays in the cache: four times as fast as finding the k best.
    competitors = competing.numpy()
    pairs = zip(index.tolist(), own_score.tolist(), strict=True)
    at_least = torch.tensor([np.count_nonzero(competitors[row] >= score) for row, score in pairs])
    # The positive does not compete with itself, if it is a distractor at all.
    better = at_least - (competing[index, positive] >= own_score).long()
    return torch.where(own_score > -torch.inf, 1.0 + better, torch.inf)
