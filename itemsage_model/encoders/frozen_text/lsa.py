"""Latent semantic analysis, fitted on the catalog's own text: offline and deterministic."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from itemsage_model.encoders.frozen_text.text_encoder import Vectors, hash8, unit
from itemsage_model.text.words import words_and_parts
from schemas.tables import EMBEDDING_DIM


@dataclass(frozen=True, eq=False)
class LsaEncoder:
    """Latent semantic analysis: tf-idf of words and parts of words, times the leading singular vectors.

    Attributes:
        tokens: The vocabulary, in column order.
        inverse_document_frequencies: float32 [token].
        components: float32 [token, dimension]; columns past the rank of the fitted matrix are zero.
        explained_variance: See `TextEncoder`.
    """

    tokens: tuple[str, ...]
    inverse_document_frequencies: npt.NDArray[np.float32]
    components: npt.NDArray[np.float32]
    explained_variance: float

    @cached_property
    def name(self) -> str:
        """`lsa-` and a hash of vocabulary and weights."""
        content = (json.dumps(self.tokens).encode(), self.inverse_document_frequencies, self.components)
        return f"lsa-{hash8(*content)}"

    @cached_property
    def _vectorizer(self) -> TfidfVectorizer:
        vectorizer = _tfidf(self.tokens)
        vectorizer.idf_ = self.inverse_document_frequencies
        return vectorizer

    def encode(self, texts: list[str]) -> Vectors:
        """See `TextEncoder`."""
        if not texts:
            return np.zeros((0, self.components.shape[1]), dtype=np.float32)
        return unit(self._vectorizer.transform(texts) @ self.components)


def fit_lsa(texts: list[str], *, vocabulary_size: int, dims: int = EMBEDDING_DIM) -> LsaEncoder:
    """Fit latent semantic analysis on the `vocabulary_size` most frequent tokens, ties broken by token.

    Raises:
        ValueError: no text holds a word.
    """
    tokens, counts = _frequent_tokens(texts, vocabulary_size)
    transformer = TfidfTransformer(sublinear_tf=True)
    weights = transformer.fit_transform(counts)
    rank = min(dims, *weights.shape)
    # One thread: the order of a threaded sum, and with it the last bits, may change from run to run.
    with threadpool_limits(limits=1):
        _, singular_values, directions = randomized_svd(weights, n_components=rank, random_state=0)
    components = np.zeros((len(tokens), dims), dtype=np.float32)
    # Directions past the matrix's rank are rounding noise.
    real = singular_values > 1e-5 * singular_values[0]
    components[:, : real.sum()] = directions[real].T
    explained = float(np.sum(singular_values.astype(np.float64) ** 2) / weights.power(2).sum(dtype=np.float64))
    return LsaEncoder(tokens, transformer.idf_.astype(np.float32), components, min(explained, 1.0))


def _tfidf(tokens: tuple[str, ...]) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer=words_and_parts, vocabulary=tokens, sublinear_tf=True, dtype=np.float32)


def _frequent_tokens(texts: list[str], size: int) -> tuple[tuple[str, ...], csr_matrix]:
    """The most frequent tokens, and how often each text has each of them [text, token]."""
    counter = CountVectorizer(analyzer=words_and_parts, dtype=np.float32)
    try:
        counts = counter.fit_transform(texts)
    except ValueError as error:  # scikit-learn's word for "empty vocabulary"
        raise ValueError("no text holds a word") from error
    names = counter.get_feature_names_out()
    totals = np.asarray(counts.sum(axis=0)).ravel()
    # The names are sorted, so a stable sort breaks ties by token.
    kept = np.sort(np.argsort(-totals, kind="stable")[:size])
    return tuple(str(name) for name in names[kept]), counts[:, kept]
