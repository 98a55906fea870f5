"""What a frozen picture encoder is, and how pictures go through it: in batches of one size, to unit length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from itemsage_model.encoders.pictures.preprocessing import Pixels, Preprocessing

Vectors = npt.NDArray[np.float32]
"""One row a picture, float32 [picture, length]."""

BATCH = 8
"""Pictures that go through a model together. All batches have this size, the last one filled with zeros: the last bits
of a vector then do not depend on how many pictures came with it. Larger ones leave a core's cache and are slower."""

Forward = Callable[[Pixels], Vectors]
"""Pixels [BATCH, 3, side, side] -> the model's vectors [BATCH, length]."""


@dataclass(frozen=True)
class PictureEncoder:
    """A frozen vision model.

    Attributes:
        name: The embedding space: the model's kind and a hash of its files, equal only where every vector is equal.
        preprocessing: What is done to a picture before.
        forward: The model itself.
        length: Numbers of a vector.
    """

    name: str
    preprocessing: Preprocessing
    forward: Forward
    length: int

    def encode(self, pictures: list[Pixels]) -> Vectors:
        """Vectors of unit length; a zero row where the model gives no direction.

        Args:
            pictures: Each as `preprocessing` makes it.
        """
        side = self.preprocessing.side
        found = np.zeros((len(pictures), self.length), np.float32)
        for first in range(0, len(pictures), BATCH):
            some = pictures[first : first + BATCH]
            pixels = np.zeros((BATCH, 3, side, side), np.float32)
            pixels[: len(some)] = some
            found[first : first + len(some)] = self.forward(pixels)[: len(some)]
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        is_sound = np.isfinite(lengths) & (lengths > 1e-6)
        return np.divide(found, lengths, out=np.zeros_like(found), where=is_sound)
