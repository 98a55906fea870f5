"""The systems that an evaluation compares, and what each of them scores on one task."""

from __future__ import annotations

import math

import numpy as np

from itemsage_model.evaluation import baselines
from itemsage_model.evaluation.recall import ScoreQueries
from jobs.evaluation.compared import Candidates, Engagements, Queries, TaskPairs
from schemas.tables import FROZEN_ALL, FROZEN_UNSEEN

FEW_PAIRS = 100
"""Below so many held-out pairs a figure is said to be rough."""


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
    pairs: TaskPairs, candidates: Candidates, queries: Queries, engagements: dict[str, Engagements]
) -> dict[str, ScoreQueries]:
    """Every system that applies to the task.

    Args:
        pairs: The pairs of the task.
        candidates: The items that compete.
        queries: The queries of all tasks.
        engagements: Ending of the systems' names -> what they count: none by number, `_recent` by age.
    """
    rows = np.searchsorted(queries.ids, pairs.query_ids)
    vectors, adapted, of_items = queries.embeddings[rows], queries.adapted[rows], candidates.vectors
    systems = {
        "itemsage": baselines.dot_product(adapted, of_items["itemsage"]),
        "random": baselines.random(len(candidates.item_key), seed=1),
    }
    for name, asked in (("untrained", adapted), (FROZEN_UNSEEN, adapted), (FROZEN_ALL, vectors)):
        if name in of_items:
            systems[name] = baselines.dot_product(asked, of_items[name])
    for ending, counted in engagements.items():
        systems[f"popularity{ending}"] = baselines.popularity(counted.of_items)
        if pairs.query_item_key.any():
            systems[f"co_occurrence{ending}"] = baselines.co_occurrence(
                pairs.query_item_key, candidates.item_key, counted.of_pairs, counted.of_items
            )
    for name, weights in queries.words.items():
        if weights[rows].nnz:
            systems[name] = baselines.sparse_dot_product(
                weights[rows], candidates.words[name], candidates.engagement_count
            )
    if "sum" in of_items and pairs.task.query_kind == "closeup":
        systems["sum"] = baselines.dot_product(vectors, of_items["sum"])
    if queries.texts is not None and queries.has_text[rows].any():
        systems["frozen_query"] = baselines.dot_product(queries.texts[rows], of_items["frozen_query"])
    if queries.true_vectors:
        true_vectors = queries.true_vectors[pairs.task.engagement][rows]
        systems["oracle"] = baselines.dot_product(true_vectors, of_items["oracle"])
    return systems
