"""Two encoders side by side: LSA, which knows the catalog's own words, and a pretrained one, which knows others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from itemsage_model.encoders.frozen_text.lsa import LsaEncoder, fit_lsa
from itemsage_model.encoders.frozen_text.sentence import SentenceEncoder, whole_sentence_encoder
from itemsage_model.encoders.frozen_text.text_encoder import TextEncoder, Vectors, hash8, unit
from itemsage_model.encoders.projection import Projection, fit_projection

_FIT_TEXTS = 20_000
"""Most texts that the projection is fitted on: more would take a pretrained model minutes, and hundreds of MB."""


@dataclass(frozen=True, eq=False)
class JoinedEncoder:
    """LSA and a sentence-transformers model side by side, each of unit length, reduced to 256 dimensions.

    The cosine of two texts is then about the mean of their cosines in both.

    Attributes:
        lsa: As many dimensions as query_encoder.lsa_dims.
        sentence: At the model's own width.
        projection: Takes both vectors, end to end.
    """

    lsa: LsaEncoder
    sentence: SentenceEncoder
    projection: Projection

    @property
    def explained_variance(self) -> float:
        """See `TextEncoder`; of what both encoders know."""
        return self.projection.explained_variance

    @cached_property
    def name(self) -> str:
        """`joined-` and a hash of both encoders and the projection."""
        return f"joined-{hash8(self.lsa.name.encode(), self.sentence.name.encode(), self.projection.matrix)}"

    def encode(self, texts: list[str]) -> Vectors:
        """See `TextEncoder`."""
        both = _side_by_side(self.lsa, self.sentence, texts)
        return unit(self.projection.apply(both).astype(np.float32))


def fit_joined(folder: str, texts: list[str], *, vocabulary_size: int, lsa_dims: int) -> JoinedEncoder:
    """Fit LSA on all texts, and what reduces both encoders' vectors on at most _FIT_TEXTS distinct ones.

    Raises:
        ValueError: no text holds a word.
        SettingsError: the extra is not installed or the folder is missing.
    """
    sentence = whole_sentence_encoder(folder)
    lsa = fit_lsa(texts, vocabulary_size=vocabulary_size, dims=lsa_dims)
    known = sorted({text for text in texts if text.strip()})
    sample = known[:: -(-len(known) // _FIT_TEXTS)]
    return JoinedEncoder(lsa, sentence, fit_projection("joined", _side_by_side(lsa, sentence, sample)))


def _side_by_side(lsa: TextEncoder, sentence: TextEncoder, texts: list[str]) -> Vectors:
    return np.concatenate([lsa.encode(texts), sentence.encode(texts)], axis=1)
