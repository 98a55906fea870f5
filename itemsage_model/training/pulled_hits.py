"""Which pairs are hits when some items are pulled towards one direction: many pulls for the price of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from itemsage_model.evaluation.recall import BLOCK_NUMBERS, HeldOut


def pulled_hits(
    held_out: HeldOut,
    queries: Float[Tensor, "query dim"],
    items: Float[Tensor, "item dim"],
    is_pulled: Bool[Tensor, "item"],
    direction: Float[Tensor, "dim"],
    pulls: Sequence[float],
    k: int,
) -> list[Bool[Tensor, "pair"]]:
    """For each pull, `ranks(...) <= k` where the pulled items are unit(item + pull direction).

    What is not pulled is compared once. Of either kind of items the k + 1 best of a query are enough: where fewer than
    k of them, the pair's own item aside, score as high as it, fewer than k of all do.

    Args:
        held_out: The pairs; all items compete.
        queries: Vectors.
        items: Vectors of unit length.
        is_pulled: Which of them move.
        direction: Unit length.
        pulls: How far.
        k: The lowest rank that is a hit.
    """
    hits = [torch.zeros(len(held_out.query), dtype=torch.bool) for _ in pulls]
    place = torch.where(is_pulled, is_pulled.cumsum(0), (~is_pulled).cumsum(0)) - 1
    fixed, moved = items[~is_pulled], items[is_pulled]
    lengths = [(1 + 2 * pull * (moved @ direction) + pull * pull).clamp_min(1e-12).sqrt() for pull in pulls]
    order = torch.argsort(held_out.query, stable=True)
    of_query = held_out.query[order].contiguous()
    block = max(16, BLOCK_NUMBERS // max(len(items), 1))
    for first in range(0, len(queries), block):
        chosen = torch.arange(first, min(first + block, len(queries)))
        bounds = torch.searchsorted(of_query, torch.tensor([first, first + len(chosen)]))
        pairs = order[bounds[0] : bounds[1]]
        row, own, shown = held_out.query[pairs] - first, held_out.positive[pairs], held_out.query_item[chosen]
        is_own_moved = is_pulled[own]
        own_row, own_place = row[is_own_moved], place[own[is_own_moved]]
        competitors = k - 1 + (own != shown[row]).long()  # its own item among them, but where it is no candidate
        fixed_scores, moved_scores = queries[chosen] @ fixed.T, queries[chosen] @ moved.T
        along = (queries[chosen] @ direction)[:, None]
        own_score = torch.empty(len(pairs))
        own_score[~is_own_moved] = fixed_scores[row[~is_own_moved], place[own[~is_own_moved]]]
        best_fixed = _best(_without_shown(fixed_scores, shown, ~is_pulled, place), k + 1)
        for number, pull in enumerate(pulls):
            scores = (moved_scores + pull * along) / lengths[number]
            own_score[is_own_moved] = scores[own_row, own_place]
            best_moved = _best(_without_shown(scores, shown, is_pulled, place), k + 1)
            as_high = sum((best[row] >= own_score[:, None]).sum(dim=1) for best in (best_fixed, best_moved))
            hits[number][pairs] = (as_high <= competitors) & (own_score > -torch.inf)
    return hits


def _best(scores: Float[Tensor, "query item"], most: int) -> Float[Tensor, "query best"]:
    return scores.topk(min(most, scores.shape[1]), dim=1).values


def _without_shown(
    scores: Tensor, shown: Int[Tensor, "query"], is_kind: Bool[Tensor, "item"], place: Int[Tensor, "item"]
) -> Tensor:
    """The scores of one kind of items, but for the item that a query shows, which is no candidate."""
    rows = ((shown >= 0) & is_kind[shown.clamp_min(0)]).nonzero().squeeze(1)
    scores[rows, place[shown[rows]]] = -torch.inf
    return scores
