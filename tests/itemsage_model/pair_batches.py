"""A batch of pairs made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from itemsage_model.data.batch import ItemBatch, PairBatch, RaggedTensor


def pair_batch(query_embedding: Tensor, task: Tensor) -> PairBatch:
    """Pairs of one and the same item, with these queries and tasks."""
    pairs = len(query_embedding)
    zeros = torch.zeros(pairs, dtype=torch.long)
    one = ItemBatch({"frozen": RaggedTensor(torch.zeros(1, 256).half(), torch.ones(1, dtype=torch.long))})
    return PairBatch(
        one, torch.ones(1, dtype=torch.long), zeros, zeros[:0], query_embedding, torch.arange(pairs), zeros,
        torch.ones(pairs), task,
    )  # fmt: skip
