"""What a frozen text encoder is, and the small parts that every kind of it uses."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
"""One row a text, float32 [text, 256] where nothing else is said."""


class TextEncoder(Protocol):
    """A frozen text encoder."""

    @property
    def explained_variance(self) -> float:
        """Share of the fitted texts' squared length that the 256 dimensions keep, 0 to 1."""

    @property
    def name(self) -> str:
        """The embedding space: kind and content hash, equal only where every vector is equal."""

    def encode(self, texts: list[str]) -> Vectors:
        """Vectors of unit length, one row a text; a zero row where the encoder knows nothing of the text."""


def unit(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-6)


def hash8(*parts: bytes | Vectors) -> str:
    """The first eight hexadecimal digits of the sha256 of some parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.tobytes())
    return digest.hexdigest()[:8]
