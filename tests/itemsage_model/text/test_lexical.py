"""tf-idf and BM25 against their formulas, word by word."""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest

from itemsage_model.text.lexical import fit_lexical

ITEMS = ["Red lamp, red", "blue lamp", "", "table"]


def test_bm25_is_its_formula() -> None:
    index = fit_lexical(ITEMS)
    assert index is not None
    score = (index.queries(["red LAMP lamp sofa", ""])["bm25"] @ index.items["bm25"].T).toarray()
    average = 6 / 4

    def word(count: float, length: int, items_with_word: int) -> float:
        importance = log(1 + (4 - items_with_word + 0.5) / (items_with_word + 0.5))
        return importance * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / average))

    assert score[0] == pytest.approx([word(2, 3, 1) + 2 * word(1, 3, 2), 2 * word(1, 2, 2), 0, 0], rel=1e-5)
    assert not score[1].any()


def test_tfidf_is_the_cosine_of_sublinear_counts() -> None:
    index = fit_lexical(ITEMS)
    assert index is not None
    score = (index.queries(["blue-lamp"])["tfidf"] @ index.items["tfidf"].T).toarray()[0]
    rare, common = log(5 / 2) + 1, log(5 / 3) + 1
    query, item = np.array([rare, common, 0]), np.array([0, common, rare * (1 + log(2))])
    assert score[0] == pytest.approx(query @ item / sqrt(query @ query) / sqrt(item @ item), rel=1e-5)
    assert score[1:].tolist() == pytest.approx([1, 0, 0])


def test_a_catalog_without_a_word_has_no_index() -> None:
    assert fit_lexical(["", "?!"]) is None
