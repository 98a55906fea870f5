"""Who an item or a query is: a learned vector of its key, for the keys trained on alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

_FUNCTIONS = 2
_BITS_PER_KEY, _PROBES = 10, 7
"""Of the Bloom filter: 0.8 % of the keys never trained on are taken for trained ones."""
_DROPOUT_SEED = _FUNCTIONS + _PROBES
_LARGEST = (1 << 63) - 1


class KeyIdentity(nn.Module):
    """Vector of a key: its own row of a table, or where keys are more than rows, the sum of two rows that it hashes to.

    A key that is in no training pair has no identity. Which keys have one, the sorted keys themselves say, eight bytes
    each; where they share rows, a Bloom filter, so that a worker that scores needs no list of them (hash embeddings:
    Svenstrup et al. 2017). In training an identity is hidden at random, so that all else that the model knows of an
    item or a query learns to do without.

    The draws follow from the key and a count of forward passes, which is a buffer: a resumed run hides the same.

    Args:
        rows: Rows of the table, or more than it needs.
        dim: Length of a vector.
        dropout: Probability that an identity is hidden in training.
        trained_keys: How many keys will be remembered, at most.
    """

    keys: Tensor
    filter: Tensor
    draws: Tensor

    def __init__(self, rows: int, dim: int, dropout: float, trained_keys: int) -> None:
        super().__init__()
        self.dropout = dropout
        self.has_own_rows = 0 < trained_keys <= rows
        self.table = nn.Parameter(torch.empty(trained_keys if self.has_own_rows else rows, dim))
        nn.init.xavier_normal_(self.table)
        if self.has_own_rows:
            self.register_buffer("keys", torch.full((trained_keys,), _LARGEST))
        else:
            bits = torch.zeros(max(8, -(-_BITS_PER_KEY * trained_keys // 8)), dtype=torch.uint8)
            self.register_buffer("filter", bits)
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))

    def forward(self, keys: Int[Tensor, "present"]) -> Float[Tensor, "present dim"]:
        """Embed keys that have an identity."""
        if self.has_own_rows:
            return F.embedding(self._rows(keys), self.table)
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
        if self.has_own_rows:
            return self.keys[self._rows(keys)] == keys
        places = self._places(keys)
        is_known: Tensor = ((self.filter[places >> 3].long() >> (places & 7)) & 1).bool().all(dim=1)
        return is_known

    def remember(self, keys: Int[Tensor, "key"]) -> None:
        """Give an identity to exactly these distinct keys, those that training has pairs of.

        Raises:
            ValueError: they are more than the table was made for.
        """
        if self.has_own_rows:
            if len(keys) > len(self.keys):
                raise ValueError(f"{len(keys)} keys for a table of {len(self.keys)} rows")
            self.keys.fill_(_LARGEST)
            self.keys[: len(keys)] = keys.sort().values.to(self.keys.device)
            return
        bits = torch.zeros(8 * len(self.filter), dtype=torch.bool, device=self.filter.device)
        bits[self._places(keys.to(bits.device)).flatten()] = True
        weights = 1 << torch.arange(8, device=bits.device)
        self.filter.copy_((bits.view(-1, 8) * weights).sum(dim=1))

    @torch.no_grad()
    def assign(self, keys: Int[Tensor, "key"], vectors: Float[Tensor, "key dim"]) -> None:
        """Give these keys these vectors, and others of the table zeros.

        Args:
            keys: Distinct keys that were remembered.
            vectors: What each is to have.

        Raises:
            ValueError: keys share rows, so that not all can have what they are given, or one was not remembered.
        """
        if len(keys) and not self.has_own_rows:
            raise ValueError(f"a table of {len(self.table)} rows has none of its own for each key")
        if not self.is_known(keys).all():
            raise ValueError("keys that were not remembered have no row")
        self.table.zero_()
        if len(keys):
            self.table[self._rows(keys)] = vectors.to(self.table.dtype)

    def _rows(self, keys: Int[Tensor, "key"]) -> Int[Tensor, "key"]:
        """The row of each key; that of some other one where a key was not trained on."""
        return torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)

    def _places(self, keys: Tensor) -> Int[Tensor, "key probe"]:
        """Bits of the filter that stand for each key."""
        return _hashes(keys, range(_FUNCTIONS, _FUNCTIONS + _PROBES)) % (8 * len(self.filter))


def _hashes(keys: Int[Tensor, "key"], seeds: range | list[int]) -> Int[Tensor, "key seed"]:
    """Independent hashes of each key, from 0 to 2^63 - 1."""
    offsets = _mixed(torch.tensor(list(seeds), device=keys.device) + 1)
    return _mixed(keys[:, None] + offsets) & _LARGEST


def _mixed(numbers: Tensor) -> Tensor:
    """The 64 bits of each number, mixed as by splitmix64; products wrap, and shifts are made unsigned."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        numbers = (numbers ^ (numbers >> shift & (1 << 64 - shift) - 1)) * factor
    return numbers ^ (numbers >> 31 & (1 << 33) - 1)
