"""What full-text search knows: the candidates' texts, and the queries' or those of the items that they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from itemsage_model.text.lexical import fit_lexical
from jobs.evaluation.compared import Candidates, Keys, Names, Queries, TaskPairs
from jobs.transforms.keys import item_key
from jobs.transforms.queries import FIT_FEATURES
from schemas.tables import MAX_TEXT_CHARACTERS

SEARCHED_CHARACTERS = 1_000
"""Characters of an item that are searched, its features one after the other: a million items then fit in memory."""


@dataclass(frozen=True)
class ItemTexts:
    """Texts of some items; all but `item_key` are objects, empty where there is none [item].

    Attributes:
        item_key: Sorted.
        title: The title.
        said: All text features that describe the item, joined by blanks; the first SEARCHED_CHARACTERS.
        category: Value of evaluate.slice_by.
    """

    item_key: Keys
    title: Names
    said: Names
    category: Names

    def rows(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Positions of keys that are all there."""
        return np.searchsorted(self.item_key, keys).astype(np.int64)


def collect_texts(items: DataFrame, keys: Keys, text_features: Sequence[str], slice_by: str) -> ItemTexts:
    """Texts of the items with the given keys; of an item's several rows the fullest, as its features are made of.

    Args:
        items: Rows of ITEMS.
        keys: Sorted and distinct.
        text_features: Those that the shop uses.
        slice_by: A text feature, or none.
    """
    wanted = items.sparkSession.createDataFrame(pa.table({"item_key": keys}))
    searched = [_text(name) for name in text_features if name in FIT_FEATURES]
    said = F.substring(F.concat_ws(" ", *searched), 1, SEARCHED_CHARACTERS)
    category = _text(slice_by) if slice_by else F.lit(None).cast("string")
    texts = items.select(
        item_key("item_id").alias("item_key"),
        _text("title").alias("title"),
        said.alias("said"),
        category.alias("category"),
    )
    fullest = F.max(F.struct(F.char_length("said"), "said"))["said"]
    one_each = (
        texts.join(wanted, on="item_key", how="left_semi")
        .groupBy("item_key")
        .agg(F.min("title").alias("title"), fullest.alias("said"), F.min("category").alias("category"))
    )
    table = one_each.toArrow()
    rows = np.searchsorted(keys, table["item_key"].to_numpy())

    def aligned(name: str) -> Names:
        column = np.full(len(keys), "", object)
        column[rows] = [text or "" for text in table[name].to_pylist()]
        return column

    return ItemTexts(keys, aligned("title"), aligned("said"), aligned("category"))


def with_words(
    candidates: Candidates, queries: Queries, task_pairs: list[TaskPairs], texts: ItemTexts
) -> tuple[Candidates, Queries]:
    """Both sides with the weights of their words; as they were where no candidate has a word.

    Args:
        candidates: The items that compete.
        queries: The queries of all tasks; one without a text is asked with that of the item it shows.
        task_pairs: The pairs of all tasks.
        texts: Of the candidates and of all items that queries show.
    """
    index = fit_lexical(texts.said[texts.rows(candidates.item_key)].tolist())
    if index is None:
        return candidates, queries
    asked = queries.said.copy()
    for pairs in task_pairs:
        places = np.searchsorted(queries.ids, pairs.query_ids)
        needs = (pairs.query_item_key != 0) & (asked[places] == "")
        asked[places[needs]] = texts.said[texts.rows(pairs.query_item_key[needs])]
    return replace(candidates, words=index.items), replace(queries, words=index.queries(asked.tolist()))


def shown_items(task_pairs: list[TaskPairs]) -> Keys:
    """Keys of the items that the queries of some tasks show, sorted."""
    keys = np.unique(np.concatenate([pairs.query_item_key for pairs in task_pairs]))
    shown: Keys = keys[keys != 0]
    return shown


def _text(feature: str) -> Column:
    """A text feature as one string; null where it holds what is no text: another row of the item was used then."""
    joined = F.concat_ws(" ", feature)
    return F.when(F.is_valid_utf8(joined) & (joined != ""), F.substring(joined, 1, MAX_TEXT_CHARACTERS))
