"""Hash embedding of token bags: a small table shared by a large vocabulary (Svenstrup et al. 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional as F

_DOTS_AT_ONCE = 4_096


def hash_slots(vocabulary_size: int, rows: int, functions: int) -> Int[Tensor, "vocabulary function"]:
    """Table row of each token id under each hash function: `mmh3(id as 4 little-endian bytes, seed=function) mod rows`.

    Assumed: murmur3 with seeds 0, 1, ...; the paper names neither the function nor its seeds.
    """
    # What mmh3 does to a key of 4 bytes, to all ids at once: calls of it took half of the time to load a model of the
    # paper's sizes. Products of 32-bit arrays wrap, as C's do.
    ids = np.arange(vocabulary_size, dtype=np.uint32)
    block = _rotated(ids * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    slots = np.empty((vocabulary_size, functions), np.int64)
    for function in range(functions):
        mixed = _rotated(block ^ np.uint32(function), 13) * np.uint32(5) + np.uint32(0xE6546B64)
        mixed ^= np.uint32(4)  # the length of the key
        mixed = (mixed ^ mixed >> np.uint32(16)) * np.uint32(0x85EBCA6B)
        mixed = (mixed ^ mixed >> np.uint32(13)) * np.uint32(0xC2B2AE35)
        slots[:, function] = (mixed ^ mixed >> np.uint32(16)) % np.uint32(rows)
    return torch.from_numpy(slots)


def _rotated(numbers: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
    rotated: npt.NDArray[np.uint32] = numbers << np.uint32(bits) | numbers >> np.uint32(32 - bits)
    return rotated


class HashEmbedding(nn.Module):
    """Vector of a text = sum over its tokens i of `sum_k W[i, k] E[h_k(i)]`.

    Source: ItemSage section 3.1 (E is 100,000 x 256, two hash functions, sum over tokens).
    Assumed: E starts Xavier-normal and W standard normal, as in the team's released code.

    Args:
        vocabulary_size: Number of token ids.
        rows: Rows of the shared table E.
        dim: Length of a vector.
        functions: Number of hash functions.
    """

    slots: Tensor

    def __init__(self, vocabulary_size: int, rows: int, dim: int, functions: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(rows, dim))
        self.importance = nn.Parameter(torch.empty(vocabulary_size, functions))
        # Derived from the sizes alone, so it is not stored with the weights.
        self.register_buffer("slots", hash_slots(vocabulary_size, rows, functions), persistent=False)
        nn.init.xavier_normal_(self.table)
        nn.init.normal_(self.importance)

    def forward(self, token_ids: Int[Tensor, "token"], token_counts: Int[Tensor, "text"]) -> Float[Tensor, "text dim"]:
        """Embed texts.

        Args:
            token_ids: Token ids, text after text.
            token_counts: Number of tokens of each text.

        Returns:
            One vector a text; zero where it has no token.
        """
        offsets = torch.zeros(len(token_counts) + 1, dtype=torch.long, device=token_ids.device)
        torch.cumsum(token_counts, 0, out=offsets[1:])
        bags: Tensor = _HashBags.apply(self.table, self.importance, self.slots, token_ids.long(), offsets)  # type: ignore[no-untyped-call]
        return bags


class _HashBags(torch.autograd.Function):
    """The bags, with a backward that first sums the gradient of each distinct token.

    A batch repeats its tokens, so what follows runs over some ten thousand distinct tokens, not over hundreds of
    thousands. Every sum is a bag again, over transposed lists: torch's own backward of a weighted embedding_bag, which
    goes through all repeats twice, takes three to five times as long on CPUs (docs/lab-log.md). On GPUs forward goes
    by distinct tokens, too; CPUs are faster without.
    """

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, importance: Tensor, slots: Tensor, token_ids: Tensor, offsets: Tensor
    ) -> Tensor:
        ctx.save_for_backward(table, importance, slots, token_ids, offsets)
        functions = slots.shape[1]
        if not token_ids.is_cuda:
            weights = importance[token_ids].flatten()
            return _sum_bags(slots[token_ids].flatten(), table, offsets * functions, weights)
        distinct, place = ctx.merged = _merged(token_ids, len(slots))
        ends = functions * torch.arange(len(distinct) + 1, device=distinct.device)
        # [distinct, dim]
        of_token = _sum_bags(slots[distinct].flatten(), table, ends, importance[distinct].flatten())
        return _sum_bags(place, of_token, offsets)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        table, importance, slots, token_ids, offsets = ctx.saved_tensors
        distinct, place = ctx.merged if token_ids.is_cuda else _merged(token_ids, len(slots))
        owners, ends = _transposed(place, offsets, len(distinct))
        # [distinct, dim]
        of_token = _sum_bags(owners, gradient.contiguous(), ends)
        rows, weights = slots[distinct], importance[distinct]
        of_importance = torch.zeros_like(importance)
        of_importance[distinct] = _dots(table, rows, of_token)
        # Row -> the (token, function) that hash to it, counted as token * functions + function.
        by_row, row_ends = _transposed(rows.flatten(), torch.arange(rows.numel() + 1, device=rows.device), len(table))
        of_table = _sum_bags(by_row // rows.shape[1], of_token, row_ends, weights.flatten()[by_row])
        return of_table, of_importance, None, None, None


def _sum_bags(
    places: Int[Tensor, "place"],
    vectors: Float[Tensor, "row dim"],
    ends: Int[Tensor, "bag_ends"],
    weights: Float[Tensor, "place"] | None = None,
) -> Float[Tensor, "bag dim"]:
    """Sum, weighted, of `vectors[places]` over the bags that `ends` (0 first) delimit."""
    if not places.is_cuda:
        return F.embedding_bag(places, vectors, ends, mode="sum", include_last_offset=True, per_sample_weights=weights)
    # On GPUs embedding_bag walks through a bag one place after another, and in backward the commonest token's bag has
    # hundreds of thousands; a sparse product deals out the work evenly.
    values = vectors.new_ones(len(places)) if weights is None else weights
    size = (len(ends) - 1, len(vectors))
    with torch.autocast("cuda", enabled=False):
        bags: Tensor = torch.sparse_csr_tensor(ends, places, values, size, check_invariants=False) @ vectors
    return bags


def _dots(
    table: Float[Tensor, "row dim"], rows: Int[Tensor, "distinct function"], vectors: Float[Tensor, "distinct dim"]
) -> Float[Tensor, "distinct function"]:
    """Dot products of `table[rows]` and `vectors`; on a CPU some at a time, so that what is gathered stays cached."""
    dots = vectors.new_empty(rows.shape)
    at_once = max(len(rows), 1) if rows.is_cuda else _DOTS_AT_ONCE
    for first in range(0, len(rows), at_once):
        some = slice(first, first + at_once)
        for function in range(rows.shape[1]):
            dots[some, function] = (table.index_select(0, rows[some, function]) * vectors[some]).sum(dim=1)
    return dots


def _merged(
    token_ids: Int[Tensor, "token"], vocabulary_size: int
) -> tuple[Int[Tensor, "distinct"], Int[Tensor, "token"]]:
    """The distinct ids, and where among them each token is; by marking, which beats sorting here."""
    is_there = torch.zeros(vocabulary_size, dtype=torch.bool, device=token_ids.device)
    is_there[token_ids] = True
    distinct = is_there.nonzero().squeeze(1)
    place = torch.empty(vocabulary_size, dtype=torch.long, device=token_ids.device)
    place[distinct] = torch.arange(len(distinct), device=token_ids.device)
    return distinct, place[token_ids]


def _transposed(
    places: Int[Tensor, "place"], ends: Int[Tensor, "bag_ends"], rows: int
) -> tuple[Int[Tensor, "place"], Int[Tensor, "row_ends"]]:
    """For each row, the bags that hold it: flat, and where each row's end (0 first)."""
    if not places.is_cuda:
        # scipy transposes by counting, several times faster than a sort.
        ones = np.ones(len(places), np.int8)
        held = csr_matrix((ones, places.numpy(), ends.numpy()), shape=(len(ends) - 1, rows)).tocsc()
        return torch.from_numpy(held.indices).long(), torch.from_numpy(held.indptr).long()
    ordered, order = places.int().sort(stable=True)
    row_ends = torch.searchsorted(ordered, torch.arange(rows + 1, dtype=torch.int32, device=places.device))
    owners = torch.repeat_interleave(torch.arange(len(ends) - 1, device=places.device), ends.diff())
    return owners[order], row_ends
