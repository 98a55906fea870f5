"""What of the items' texts is searched, and with what a query without a text is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs.evaluation.compared import Candidates, Queries, TaskPairs
from jobs.evaluation.texts import SEARCHED_CHARACTERS, ItemTexts, collect_texts, shown_items, with_words
from jobs.transforms.keys import item_key
from schemas.tables import ITEMS, TEXT_FEATURES
from schemas.tasks import Task


def objects(*texts: str) -> np.ndarray:
    return np.array(texts, object)


@pytest.fixture
def items(spark: Any) -> Any:
    """Four products, one of them in two rows."""
    rows = [
        {"item_id": "a", "title": "Lamp", "brand": "Ikea", "colors": ["red", "blue"], "size": "XL"},
        {"item_id": "b", "title": None, "brand": "Muji", "colors": None, "size": None},
        {"item_id": "b", "title": "Chair", "brand": "Muji", "colors": None, "size": None},
        {"item_id": "c", "title": "word " * 500, "brand": None, "colors": None, "size": None},
        {"item_id": "d", "title": "Table", "brand": None, "colors": None, "size": None},
    ]
    names = [column.name for column in ITEMS.columns]
    schema = ", ".join(f"{name} {'array<string>' if TEXT_FEATURES.get(name) else 'string'}" for name in names)
    return spark.createDataFrame([tuple(row.get(name) for name in names) for row in rows], schema)


def test_the_features_that_describe_an_item_are_searched_as_one_text(items: Any) -> None:
    wanted = items.where("item_id != 'd'").select("item_id", item_key("item_id").alias("item_key")).distinct()
    key = {row["item_id"]: row["item_key"] for row in wanted.collect()}
    keys = np.unique([*key.values(), 5])
    texts = collect_texts(items, keys, ("title", "brand", "colors", "size"), "brand")
    found = {name: int(texts.rows(np.array([number]))[0]) for name, number in key.items()}
    assert texts.said[found["a"]] == "Lamp Ikea red blue"
    assert texts.said[found["b"]] == "Chair Muji"
    assert (texts.title[found["b"]], texts.category[found["b"]], texts.category[found["c"]]) == ("Chair", "Muji", "")
    assert len(texts.said[found["c"]]) == SEARCHED_CHARACTERS
    assert texts.said[int(texts.rows(np.array([5]))[0])] == ""
    assert set(collect_texts(items, keys, ("title",), "").category) == {""}


def test_a_query_without_a_text_is_asked_with_that_of_the_item_it_shows() -> None:
    yes = np.ones(2, bool)
    candidates = Candidates(np.array([10, 20]), yes, np.array([1, 1]), {}, yes, yes)
    texts = ItemTexts(np.array([10, 20, 30]), objects("", "", ""), objects("red lamp", "chair", "old chair"), objects())
    nothing = np.zeros((3, 2), np.float32)
    queries = Queries(objects("q1", "q2", "q3"), nothing, nothing, None, yes, {}, objects("lamp", "", ""))
    one = np.zeros(1, np.int64)
    closeup = TaskPairs(Task("closeup", "click"), one, one, one, objects("q2"), np.array([30]), one)
    search = TaskPairs(Task("search", "click"), one, one, one, objects("q1", "q3"), np.array([20, 0]), np.arange(2))
    assert shown_items([closeup, search]).tolist() == [20, 30]
    candidates, queries = with_words(candidates, queries, [closeup, search], texts)
    for name in ("tfidf", "bm25"):
        score = (queries.words[name] @ candidates.words[name].T).toarray()
        assert (score > 0).tolist() == [[True, False], [False, True], [False, False]]


def test_without_a_word_there_is_no_search() -> None:
    yes = np.ones(1, bool)
    candidates = Candidates(np.array([10]), yes, np.array([1]), {}, yes, yes)
    nothing = np.zeros((1, 2), np.float32)
    queries = Queries(objects("q"), nothing, nothing, None, yes, {}, objects("lamp"))
    texts = ItemTexts(np.array([10]), objects(""), objects(""), objects(""))
    assert with_words(candidates, queries, [], texts) == (candidates, queries)
    assert candidates.words == {}
