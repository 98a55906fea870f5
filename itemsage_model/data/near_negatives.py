"""Hard negatives of a text encoder: items that an earlier one puts near a text, and nobody engaged with after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from itemsage_model.data.pinned_files import TableFiles
from itemsage_model.data.query_keys import weighing_rows
from itemsage_model.data.ragged import ItemRows, runs
from itemsage_model.data.reader import CatalogItems, Pairs
from schemas.elements import FROZEN_TEXT
from schemas.tables import EMBEDDING_DIM

_TEXTS_AT_ONCE = 128

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NearNegatives:
    """Draws one hard negative for each pair of a text and an item.

    Near is what has the largest dot product of frozen vectors: those of texts that the pairs hold, and of the items'
    own texts. They are compared with the whole catalog, in every batch anew.

    Source: ANCE (Xiong et al. 2021, arXiv 2007.00808): negatives from an index of an earlier state of the encoder.
    Differs from it: the index is that of the encoder that training begins with, and is not made anew on the way; the
    drawn item counts beside the batch's negatives, and not in their place.

    Attributes:
        catalog: All items, sorted by key.
        vectors: float32 [item, dim], their frozen texts; anything where there is none.
        has_text: bool [item].
        query_key: int64 [engagement], texts with an item that was engaged with after them, sorted.
        engaged: int64 [engagement], the rows of these items in the catalog.
        nearest: How many items of a text may be drawn.
        seed: With the step it decides which are; another on every rank.
    """

    catalog: CatalogItems
    vectors: npt.NDArray[np.float32]
    has_text: npt.NDArray[np.bool_]
    query_key: Rows
    engaged: Rows
    nearest: int
    seed: tuple[int, int]

    def drawn(self, pairs: Pairs, step: int) -> tuple[CatalogItems, npt.NDArray[np.float32]]:
        """An item for each pair, and its weight: 1, or 0 where there is none to be drawn.

        Neither an item that the text has in any pair, nor the one that its query shows, is drawn.
        """
        generator = np.random.default_rng((*self.seed, step))
        chances = generator.random(len(pairs))
        rows = np.zeros(len(pairs), np.int64)
        weights = np.zeros(len(pairs), np.float32)
        _, first, text_of = np.unique(pairs.query_key, return_index=True, return_inverse=True)
        for texts, near, counts in self._near(pairs, first):
            for place in np.flatnonzero(np.isin(text_of, texts)):
                own = text_of[place] - texts[0]
                if counts[own]:
                    rows[place] = near[own, int(chances[place] * counts[own])]
                    weights[place] = 1
        return CatalogItems(self.catalog.item_key[rows], self.catalog.items.take(rows)), weights

    def _near(self, pairs: Pairs, first: Rows) -> Iterator[tuple[Rows, Rows, Rows]]:
        """Some texts at a time, rows of the items near each of them [text, near], and how many of these are any."""
        for start in range(0, len(first), _TEXTS_AT_ONCE):
            of_pair = first[start : start + _TEXTS_AT_ONCE]
            scores = pairs.query_embedding[of_pair].astype(np.float32) @ self.vectors.T
            scores[:, ~self.has_text] = -np.inf
            keys = pairs.query_key[of_pair]
            begins, ends = (np.searchsorted(self.query_key, keys, side) for side in ("left", "right"))
            text = np.repeat(np.arange(len(keys)), ends - begins)
            scores[text, self.engaged[runs(begins, ends - begins)]] = -np.inf
            shown = np.searchsorted(self.catalog.item_key, pairs.query_item_key[of_pair])
            shown = shown.clip(max=len(self.catalog) - 1)
            is_there = self.catalog.item_key[shown] == pairs.query_item_key[of_pair]
            scores[np.flatnonzero(is_there), shown[is_there]] = -np.inf
            most = min(self.nearest, scores.shape[1])
            near = np.argpartition(-scores, most - 1, axis=1)[:, :most]
            found = np.take_along_axis(scores, near, axis=1)
            near = np.take_along_axis(near, np.argsort(-found, axis=1, kind="stable"), axis=1)
            yield np.arange(start, start + len(keys)), near, np.isfinite(found).sum(axis=1)


def near_negatives(
    whole: CatalogItems, pairs: TableFiles, weight: str, *, nearest: int, seed: tuple[int, int]
) -> NearNegatives:
    """What draws hard negatives for the pairs of a table.

    Args:
        whole: All items, sorted by key, with their frozen texts.
        pairs: Files of the table.
        weight: The column that is a pair's weight. Items of other pairs may be drawn: a pass that is validated knows
            nothing of the window that it is validated on.
        nearest: See `NearNegatives`.
        seed: See `NearNegatives`.
    """
    packed = whole.items.gather()
    texts = packed[FROZEN_TEXT.values.name]
    vectors = np.zeros((len(whole), EMBEDDING_DIM), np.float32)
    vectors[texts.counts > 0] = texts.values
    names = ("query_key", "item_key")
    batches = list(weighing_rows(pairs, names, weight))
    queries, items = (
        np.concatenate([np.empty(0, np.int64), *(batch[name].to_numpy() for batch in batches)]) for name in names
    )
    order = np.argsort(queries, kind="stable")
    rows = np.searchsorted(whole.item_key, items[order])
    catalog = CatalogItems(whole.item_key, ItemRows([packed], np.arange(len(whole))))
    return NearNegatives(catalog, vectors, texts.counts > 0, queries[order], rows, nearest, seed)
