"""Who an item or a query is: a learned vector of its key, hashed, for the keys trained on alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

_FUNCTIONS = 2
_BITS_PER_KEY, _PROBES = 10, 7
"""Of the Bloom filter: 0.8 % of the keys never trained on are taken for trained ones."""
_MAX_ITERATIONS = 30
_DROPOUT_SEED = _FUNCTIONS + _PROBES
_LARGEST = (1 << 63) - 1


class KeyIdentity(nn.Module):
    """Vector of a key = sum of the rows of a small table that it hashes to (Svenstrup et al. 2017).

    A key that is in no training pair has no identity: its rows would hold what other keys left there. Which keys are,
    a Bloom filter says, so that a worker that scores needs no list of them. In training an identity is hidden at
    random, so that all else that the model knows of an item or a query learns to do without.

    The draws follow from the key and a count of forward passes, which is a buffer: a resumed run hides the same.

    Args:
        rows: Rows of the table.
        dim: Length of a vector.
        dropout: Probability that an identity is hidden in training.
        trained_keys: How many keys the filter is made for.
    """

    filter: Tensor
    draws: Tensor

    def __init__(self, rows: int, dim: int, dropout: float, trained_keys: int) -> None:
        super().__init__()
        self.dropout = dropout
        self.table = nn.Parameter(torch.empty(rows, dim))
        nn.init.xavier_normal_(self.table)
        self.register_buffer("filter", torch.zeros(max(8, -(-_BITS_PER_KEY * trained_keys // 8)), dtype=torch.uint8))
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))

    def forward(self, keys: Int[Tensor, "present"]) -> Float[Tensor, "present dim"]:
        """Embed keys that have an identity."""
        slots = _hashes(keys, range(_FUNCTIONS)) % len(self.table)
        return F.embedding(slots, self.table).sum(dim=1)

    def is_present(self, keys: Int[Tensor, "key"]) -> Bool[Tensor, "key"]:
        """Which keys have an identity here and now: those trained on, less in training those that are hidden."""
        is_known = self.is_known(keys)
        if self.training and self.dropout:
            self.draws += 1
            draw = _hashes(keys + _mixed(self.draws), [_DROPOUT_SEED]).squeeze(1)
            is_known &= draw >= int(self.dropout * _LARGEST)
        return is_known

    def is_known(self, keys: Int[Tensor, "key"]) -> Bool[Tensor, "key"]:
        """Which keys were trained on."""
        places = self._places(keys)
        is_known: Tensor = ((self.filter[places >> 3].long() >> (places & 7)) & 1).bool().all(dim=1)
        return is_known

    def remember(self, keys: Int[Tensor, "key"]) -> None:
        """Give an identity to exactly these keys, those that training has pairs of."""
        bits = torch.zeros(8 * len(self.filter), dtype=torch.bool, device=self.filter.device)
        bits[self._places(keys.to(bits.device)).flatten()] = True
        weights = 1 << torch.arange(8, device=bits.device)
        self.filter.copy_((bits.view(-1, 8) * weights).sum(dim=1))

    @torch.no_grad()
    def assign(self, keys: Int[Tensor, "key"], vectors: Float[Tensor, "key dim"]) -> None:
        """Make the table give these keys these vectors, or what is nearest to them, with the smallest rows that do.

        Each key asks that its rows add up to its vector: a sparse problem of least squares, solved by conjugate
        gradients (CGLS) from a table of zeros. With three rows a key, two or three keys in a hundred must give way.

        Args:
            keys: Distinct keys.
            vectors: What each is to have.
        """
        slots = _hashes(keys, range(_FUNCTIONS)) % len(self.table)
        table = torch.zeros_like(self.table)
        left = vectors.to(table.dtype)
        gradient = _sums_by_row(left, slots, table)
        direction, size = gradient, gradient.square().sum()
        enough = 1e-7 * size
        for _ in range(_MAX_ITERATIONS):
            if size <= enough:
                break
            moved = F.embedding(slots, direction).sum(dim=1)
            step = size / moved.square().sum()
            table += step * direction
            left = left - step * moved
            gradient = _sums_by_row(left, slots, table)
            previous, size = size, gradient.square().sum()
            direction = gradient + size / previous * direction
        self.table.copy_(table)

    def _places(self, keys: Tensor) -> Int[Tensor, "key probe"]:
        """Bits of the filter that stand for each key."""
        return _hashes(keys, range(_FUNCTIONS, _FUNCTIONS + _PROBES)) % (8 * len(self.filter))


def _sums_by_row(vectors: Float[Tensor, "key dim"], slots: Int[Tensor, "key slot"], like: Tensor) -> Tensor:
    """For each row of a table, the sum of the vectors of the keys that it belongs to."""
    sums = torch.zeros_like(like)
    for slot in slots.unbind(dim=1):
        sums.index_add_(0, slot, vectors)
    return sums


def _hashes(keys: Int[Tensor, "key"], seeds: range | list[int]) -> Int[Tensor, "key seed"]:
    """Independent hashes of each key, from 0 to 2^63 - 1."""
    offsets = _mixed(torch.tensor(list(seeds), device=keys.device) + 1)
    return _mixed(keys[:, None] + offsets) & _LARGEST


def _mixed(numbers: Tensor) -> Tensor:
    """The 64 bits of each number, mixed as by splitmix64; products wrap, and shifts are made unsigned."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        numbers = (numbers ^ (numbers >> shift & (1 << 64 - shift) - 1)) * factor
    return numbers ^ (numbers >> 31 & (1 << 33) - 1)
