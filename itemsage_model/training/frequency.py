"""How often each item is a positive: the counts behind the loss's sampling correction.

Both classes answer `share(keys)`, the expected share of a batch's rows that have the item, and take `update(keys)`
for every batch, so that the trainer need not know which one it holds. Their counts are buffers: they move with the
module, and checkpoints hold them. Every rank must update with all ranks' keys; the counts then stay equal.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class CountMinSketch(nn.Module):
    """Counts of a stream of keys in a table of fixed size; estimates are never too low.

    A key has one cell in each of `depth` rows of `width` cells, and its estimate is the smallest of them.

    Source: ItemSage, the Q of eq. 2: a streaming count-min sketch, updated with a batch before it is asked about it.
    Assumed: hash = top bits of an odd 64-bit number times the key, scaled to the width; depth 2 as in the team's code.

    Args:
        depth: Rows.
        width: Cells of a row, at most 2^31.
        seed: Seed of the hash functions.
    """

    counts: Tensor
    multipliers: Tensor
    total: Tensor

    def __init__(self, depth: int, width: int, seed: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        multipliers = torch.randint(-(2**63), 2**63 - 1, (depth, 1), generator=generator) | 1
        self.register_buffer("multipliers", multipliers)
        self.register_buffer("counts", torch.zeros(depth, width, dtype=torch.int64))
        self.register_buffer("total", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, keys: Int[Tensor, "row"]) -> None:
        """Count keys; a key that comes n times counts n times."""
        slots = self._slots(keys)
        self.counts.scatter_add_(1, slots, torch.ones_like(slots))
        self.total += len(keys)

    def estimate(self, keys: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """How often each key was counted, or more."""
        return self.counts.gather(1, self._slots(keys)).amin(dim=0)

    def share(self, keys: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Share of all rows so far that had the key."""
        return self.estimate(keys).double() / self.total.clamp(min=1)

    def _slots(self, keys: Tensor) -> Tensor:
        # int64 products wrap. The top 31 bits of a product depend on every bit of the key; scaling them to the width
        # keeps the top ones, where a remainder by a power of two would keep the lowest. [depth, row]
        high_bits = ((self.multipliers * keys) >> 33) & 0x7FFFFFFF
        return (high_bits * self.counts.shape[1]) >> 31


class ExactFrequency(nn.Module):
    """Shares known beforehand, from the tables' own counts.

    Args:
        item_keys: The items, distinct, in any order.
        shares: Expected share of a batch's rows of each, above 0.

    Raises:
        ValueError: there are no items, a key comes twice, or a share is not positive.
    """

    item_keys: Tensor
    shares: Tensor

    def __init__(self, item_keys: Int[Tensor, "item"], shares: Float[Tensor, "item"]) -> None:
        super().__init__()
        ordered, order = item_keys.sort()
        if not len(ordered) or bool((ordered[1:] == ordered[:-1]).any()) or not bool((shares > 0).all()):
            raise ValueError("item_counts: expected distinct items with positive shares; run build_training_tables")
        self.register_buffer("item_keys", ordered)
        self.register_buffer("shares", shares.double()[order])

    def update(self, keys: Int[Tensor, "row"]) -> None:
        """Do nothing: the shares are known."""

    def share(self, keys: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Share of each item; an item that was never counted gets the smallest share there is.

        Assumed: one row is the least evidence there can be, and a zero would make the correction infinite.
        """
        index = torch.searchsorted(self.item_keys, keys).clamp_(max=len(self.item_keys) - 1)
        return torch.where(self.item_keys[index] == keys, self.shares[index], self.shares.min())


def log_inclusion_probability(share: Float[Tensor, "row"], draws: int) -> Float[Tensor, "row"]:
    """Log of the probability 1 - (1 - share)^draws that an item is in a batch at least once.

    Differs from the paper: log(draws * share), the usual correction, is the expected number of copies, and exceeds 1
    where the catalog is small. Assumed: all rows of a batch are drawn from one mixture, whatever their task.

    Args:
        share: Expected share of a batch's rows with the item, 0 to 1.
        draws: Rows of the batch over all ranks.

    Returns:
        Log probability, at most 0, and finite: a share of 0 counts as the smallest normal number.

    Raises:
        ValueError: draws is not positive.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, found {draws}")
    positive_share = share.clamp(min=torch.finfo(share.dtype).tiny, max=1)
    return (-torch.expm1(draws * torch.log1p(-positive_share))).log()
