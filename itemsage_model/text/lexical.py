"""What full-text search scores: tf-idf cosine and BM25 of words, as sparse vectors whose dot product is the score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, diags
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from itemsage_model.text.tokens import MAX_CHARACTERS
from itemsage_model.text.words import clean, separate_letters

K1, B = 1.2, 0.75
"""BM25's two constants: how soon a word's repetitions count no more, and how much a long text counts less."""


@dataclass(frozen=True, eq=False)
class LexicalIndex:
    """Both weightings of the words of some items.

    Attributes:
        items: `tfidf` and `bm25` -> weights [item, word].
    """

    items: dict[str, csr_matrix]
    _counter: CountVectorizer
    _tfidf: TfidfTransformer

    def queries(self, texts: list[str]) -> dict[str, csr_matrix]:
        """`tfidf` and `bm25` -> weights of some queries' words [query, word]; words that no item has are left out.

        Their products with `items` are the cosine and the BM25 score, in which a word counts as often as it is asked.
        """
        counts = self._counter.transform(texts)
        return {"tfidf": self._tfidf.transform(counts), "bm25": counts}


def fit_lexical(texts: list[str]) -> LexicalIndex | None:
    """Index the items' texts; None where none holds a word.

    tf-idf: (1 + ln count) x (1 + ln((1 + N) / (1 + n))), each text of length 1. BM25: Lucene's, where a word counts
    ln(1 + (N - n + .5) / (n + .5)); N = items, n = items with the word.

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009).
    """
    counter = CountVectorizer(analyzer=_words, dtype=np.float32)
    try:
        counts = counter.fit_transform(texts)
    except ValueError:  # scikit-learn's word for "empty vocabulary"
        return None
    tfidf = TfidfTransformer(sublinear_tf=True)
    return LexicalIndex({"tfidf": tfidf.fit_transform(counts), "bm25": _bm25(counts)}, counter, tfidf)


def _words(text: str) -> list[str]:
    return separate_letters(clean(text[:MAX_CHARACTERS])).split()


def _bm25(counts: csr_matrix) -> csr_matrix:
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    items_with_word = np.bincount(counts.indices, minlength=counts.shape[1])
    importance = np.log1p((len(lengths) - items_with_word + 0.5) / (items_with_word + 0.5))
    repetitions = np.repeat(K1 * (1 - B + B * lengths / lengths.mean()), np.diff(counts.indptr))
    saturated = counts.data * (K1 + 1) / (counts.data + repetitions)
    weights = csr_matrix((saturated.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)
    return (weights @ diags(importance.astype(np.float32))).tocsr()
