"""The systems that an evaluation compares, and what each of them scores on one task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from itemsage_model.evaluation import baselines
from itemsage_model.evaluation.recall import HeldOut, ScoreQueries, hits, weighted_share
from jobs.evaluation.candidates import (
    Candidates,
    Names,
    TaskPairs,
    Vectors,
)
from schemas.tables import EVALUATED_SYSTEMS

EvaluationRow = tuple[str, str, str, str, float, int]
"""A row of the table evaluation."""

FEW_PAIRS = 100
"""Below so many held-out pairs a figure is said to be rough."""


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
    """

    ids: Names
    embeddings: Vectors
    adapted: Vectors
    texts: Vectors | None
    has_text: npt.NDArray[np.bool_]
    true_vectors: dict[str, Vectors]


def measure(pairs: TaskPairs, candidates: Candidates, systems: dict[str, ScoreQueries], k: int) -> list[EvaluationRow]:
    """Recall@k of each system on one task, over all pairs and over pairs with an item unseen in training."""
    positive = np.searchsorted(candidates.item_key, pairs.item_key)
    shown = np.searchsorted(candidates.item_key, pairs.query_item_key)
    shown = np.minimum(shown, len(candidates.item_key) - 1)
    has_item = candidates.item_key[shown] == pairs.query_item_key
    held_out = HeldOut(
        query=torch.from_numpy(pairs.query),
        positive=torch.from_numpy(positive),
        query_item=torch.from_numpy(np.where(has_item, shown, -1)),
        weights=torch.from_numpy(pairs.weights),
        distractors=torch.from_numpy(candidates.is_distractor),
    )
    slices = {"all": torch.ones(len(positive), dtype=torch.bool)}
    slices["unseen"] = torch.from_numpy(candidates.engagement_count[positive] == 0)
    rows: list[EvaluationRow] = []
    for system in EVALUATED_SYSTEMS:
        if system in systems:
            hit = hits(held_out, systems[system], k)
            for name, chosen in slices.items():
                value = weighted_share(hit[chosen], held_out.weights[chosen])
                rows.append((pairs.task.name, system, f"recall@{k}", name, value, int(chosen.sum())))
    return rows


def notes_of(task_pairs: list[TaskPairs], distractors: int, k: int) -> tuple[str, ...]:
    """What to know before a figure is believed, one line each.

    Args:
        task_pairs: The pairs of all tasks, also of those that have none.
        distractors: Items that compete with the held-out ones.
        k: How many ranks count.
    """
    notes = [
        f"{pairs.task.name}: no held-out pair, so there is no figure; the log has none of its engagements in the last "
        "dates.test_days before dates.as_of"
        for pairs in task_pairs if not len(pairs.query)
    ]  # fmt: skip
    notes += [
        f"{pairs.task.name}: {len(pairs.query)} held-out pairs are few: the figure is off by up to "
        f"{1 / math.sqrt(len(pairs.query)):.2f} by chance"
        for pairs in task_pairs if 0 < len(pairs.query) < FEW_PAIRS
    ]  # fmt: skip
    if distractors <= k and any(len(pairs.query) for pairs in task_pairs):
        notes.append(f"recall@{k} among {distractors} candidates is near 1 for every system: lower evaluate.k")
    return tuple(notes)


def systems_of(
    pairs: TaskPairs, candidates: Candidates, queries: Queries, engagements: baselines.ItemPairs
) -> dict[str, ScoreQueries]:
    """Every system that applies to the task."""
    rows = np.searchsorted(queries.ids, pairs.query_ids)
    vectors, adapted, of_items = queries.embeddings[rows], queries.adapted[rows], candidates.vectors
    systems = {
        "itemsage": baselines.dot_product(adapted, of_items["itemsage"]),
        "untrained": baselines.dot_product(adapted, of_items["untrained"]),
        "random": baselines.random(len(candidates.item_key), seed=1),
        "popularity": baselines.popularity(candidates.engagement_count),
    }
    if pairs.query_item_key.any():
        systems["co_occurrence"] = baselines.co_occurrence(
            pairs.query_item_key, candidates.item_key, engagements, candidates.engagement_count
        )
    if "sum" in of_items and pairs.task.query_kind == "closeup":
        systems["sum"] = baselines.dot_product(vectors, of_items["sum"])
    if queries.texts is not None and queries.has_text[rows].any():
        systems["frozen_query"] = baselines.dot_product(queries.texts[rows], of_items["frozen_query"])
    if queries.true_vectors:
        true_vectors = queries.true_vectors[pairs.task.engagement][rows]
        systems["oracle"] = baselines.dot_product(true_vectors, of_items["oracle"])
    return systems
