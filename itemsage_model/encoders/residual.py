"""The residual path: an item's embedding starts as the frozen vector of its text, and learns what to add to it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

START_ALPHA = 0.3
"""From 0 the tower would hardly learn at first, its gradient being multiplied by alpha. Gamma starts so too."""


class Residual(nn.Module):
    """unit(frozen + frozen M + alpha tower + gamma identity); the tower in place of the rest without a text.

    M starts at zero, so that training starts at the frozen encoder's recall, or as `training.start` gives it. Without a
    tower an item without text has one learned vector that all such items share.

    Args:
        dim: Length of the vectors.
        has_tower: Whether there is a tower beside the frozen vectors.
        has_map: Whether M is learned.
        has_identity: Whether items have a vector of their own beside it.
    """

    def __init__(self, dim: int, *, has_tower: bool, has_map: bool, has_identity: bool = False) -> None:
        super().__init__()
        self.item_map = nn.Parameter(torch.zeros(dim, dim)) if has_map else None
        self.alpha = nn.Parameter(torch.tensor(START_ALPHA)) if has_tower else None
        self.gamma = nn.Parameter(torch.tensor(START_ALPHA)) if has_identity else None
        self.without_text = None if has_tower else nn.Parameter(F.normalize(torch.randn(dim), dim=0))

    def forward(
        self,
        frozen: Float[Tensor, "item dim"],
        has_text: Bool[Tensor, "item"],
        tower: Float[Tensor, "item dim"] | None,
        identity: Float[Tensor, "item dim"] | None = None,
    ) -> Float[Tensor, "item dim"]:
        """Embeddings of unit length, in float32 whatever the tower computes in.

        Args:
            frozen: Frozen vectors of the texts, zero where there is none.
            has_text: Where there is one.
            tower: The tower's embeddings; None where there is no tower.
            identity: The items' own vectors, zero for an item without; None where no item has one.
        """
        with torch.autocast(frozen.device.type, enabled=False):
            moved = frozen if self.item_map is None else frozen + frozen @ self.item_map
            if tower is None or self.alpha is None:
                assert self.without_text is not None
                other = self.without_text.expand_as(frozen)
            else:
                moved, other = moved + self.alpha * tower, tower
            vectors = torch.where(has_text[:, None], moved, other)
            if identity is not None and self.gamma is not None:
                vectors = vectors + self.gamma * identity
            return F.normalize(vectors, dim=-1)
