"""What an evaluation compares, as arrays: pairs, candidate items, queries, engagements. Knows no table and no job."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from itemsage_model.evaluation.baselines import ItemPairs
from schemas.tasks import Task

Keys = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Names = npt.NDArray[np.object_]
"""Strings as Python objects: an array of numpy's own strings makes each as wide as the longest."""


@dataclass(frozen=True)
class TaskPairs:
    """Held-out pairs of one task and its distinct queries; `query` indexes the query arrays.

    Attributes:
        task: The task.
        query: Position of each pair's query in `query_ids` [pair].
        item_key: Item of each pair [pair].
        weights: Engagement count of each pair [pair].
        query_ids: The distinct queries, sorted [query].
        query_item_key: Item that each query shows, 0 = none [query].
        query_key: Key of each query [query].
    """

    task: Task
    query: Keys
    item_key: Keys
    weights: npt.NDArray[np.float32]
    query_ids: Names
    query_item_key: Keys
    query_key: Keys


@dataclass(frozen=True)
class Candidates:
    """The items that compete, sorted by key, and what each system knows of them; all arrays are [candidate, ...].

    Attributes:
        item_key: int64.
        is_distractor: False where the item is here only as some pair's positive.
        engagement_count: Training engagements over all tasks; 0 = unseen in training.
        vectors: System -> vectors.
        has_text: Whether a text of the item holds a known token.
        has_images: Whether the item has an image.
        category: Value of the text feature evaluate.slice_by, empty without one; None = no such setting.
        words: `tfidf` and `bm25` -> weights of the item's words [candidate, word].
    """

    item_key: Keys
    is_distractor: npt.NDArray[np.bool_]
    engagement_count: Keys
    vectors: dict[str, Vectors]
    has_text: npt.NDArray[np.bool_]
    has_images: npt.NDArray[np.bool_]
    category: Names | None = None
    words: dict[str, csr_matrix] = field(default_factory=dict)


@dataclass(frozen=True)
class Queries:
    """What the systems know of the held-out queries; all arrays are [query, ...].

    Attributes:
        ids: Sorted.
        embeddings: From query_embeddings.
        adapted: The same through the model's query adapter, where it has one.
        texts: The frozen text encoder's vectors of their texts; None where there is no encoder or no text.
        has_text: Whether the query has a text.
        true_vectors: Engagement -> vectors of true_query_vectors; empty but on the demo world.
        said: The texts themselves, empty where there is none.
        words: `tfidf` and `bm25` -> weights of the query's words, or of its item's where it has no text [query, word].
    """

    ids: Names
    embeddings: Vectors
    adapted: Vectors
    texts: Vectors | None
    has_text: npt.NDArray[np.bool_]
    true_vectors: dict[str, Vectors]
    said: Names
    words: dict[str, csr_matrix] = field(default_factory=dict)


@dataclass(frozen=True)
class Engagements:
    """Training engagements of all tasks, as counted: by number, or each by its age.

    Attributes:
        of_items: Of each candidate [candidate].
        of_pairs: Of each item after queries that show an item.
    """

    of_items: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    of_pairs: ItemPairs
