"""Hash embedding of token bags: a small table shared by a large vocabulary (Svenstrup et al. 2017)."""

from __future__ import annotations

import mmh3
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def hash_slots(vocabulary_size: int, rows: int, functions: int) -> Int[Tensor, "vocabulary function"]:
    """Table row of each token id under each hash function: `mmh3(id as 4 little-endian bytes, seed=function) mod rows`.

    Assumed: murmur3 with seeds 0, 1, ...; the paper names neither the function nor its seeds.
    """
    ids = np.arange(vocabulary_size, dtype="<u4").tobytes()
    slots = np.empty((vocabulary_size, functions), np.int64)
    for function in range(functions):
        hashes = (mmh3.hash(ids[i : i + 4], function, signed=False) for i in range(0, len(ids), 4))
        slots[:, function] = np.fromiter(hashes, np.int64, vocabulary_size) % rows
    return torch.from_numpy(slots)


class HashEmbedding(nn.Module):
    """Vector of a text = sum over its tokens i of `sum_k W[i, k] E[h_k(i)]`.

    Source: ItemSage section 3.1 (E is 100,000 x 256, two hash functions, sum over tokens).
    Assumed: E starts Xavier-normal and W standard normal, as in the team's released code.

    Args:
        vocabulary_size: Number of token ids.
        rows: Rows of the shared table E.
        dim: Length of a vector.
        functions: Number of hash functions.
        is_sparse: Whether the tables get sparse gradients (only the rows of the batch).
    """

    slots: Tensor

    def __init__(self, vocabulary_size: int, rows: int, dim: int, functions: int, *, is_sparse: bool) -> None:
        super().__init__()
        self.functions = functions
        # Modules, not bare parameters: DDP learns from them that a gradient is sparse.
        self.table = nn.EmbeddingBag(rows, dim, mode="sum", include_last_offset=True, sparse=is_sparse)
        self.importance = nn.Embedding(vocabulary_size, functions, sparse=is_sparse)
        # Derived from the sizes alone, so it is not stored with the weights.
        self.register_buffer("slots", hash_slots(vocabulary_size, rows, functions), persistent=False)
        nn.init.xavier_normal_(self.table.weight)
        nn.init.normal_(self.importance.weight)

    def forward(
        self, token_ids: Int[Tensor, "token"], token_counts: Int[Tensor, "item text"]
    ) -> Float[Tensor, "item text dim"]:
        """Embed every text of every item.

        Args:
            token_ids: Token ids, flat, in item and text order.
            token_counts: Number of tokens of each text.

        Returns:
            One vector a text; zero where it has no token.
        """
        offsets = torch.zeros(token_counts.numel() + 1, dtype=torch.long, device=token_ids.device)
        torch.cumsum(token_counts.flatten(), 0, out=offsets[1:])
        weights = self.importance(token_ids)
        bags: Tensor = self.table(self.slots[token_ids].flatten(), offsets * self.functions, weights.flatten())
        return bags.view(*token_counts.shape, -1)
