"""What short forms of the vectors lose: on the held-out pairs, form by form, and on the validation pairs for a gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from itemsage_model.evaluation import baselines
from itemsage_model.evaluation.intervals import bootstrap
from itemsage_model.evaluation.recall import gains, ranks
from jobs.evaluation.compared import Candidates, Keys, TaskPairs, Vectors
from jobs.evaluation.measure import OURS, EvaluationRow, Worth, held_out_of, rows_of
from jobs.transforms.keys import item_key
from retrieval.short_tables import from_columns
from retrieval.short_vectors import Floats, short_queries
from schemas.metrics import ShortLoss
from schemas.short_vectors import ShortVector

Decode = Callable[[ShortVector], Vectors]
"""A form's vectors of all candidates, as float32 [candidate, length]."""


def worth_of_forms(
    task_pairs: Sequence[TaskPairs],
    queries: Sequence[Vectors],
    candidates: Candidates,
    forms: Sequence[ShortVector],
    decode: Decode,
    rotation: Floats | None,
    k: int,
) -> list[Worth]:
    """What every pair's rank is worth by the 256 floats and by each form, of each task.

    Args:
        task_pairs: The pairs of each task.
        queries: Of each task, the vectors of its queries as the 256 floats want them [query, 256].
        candidates: The items that compete, with the vectors of `itemsage`.
        forms: The short forms.
        decode: Their vectors; asked for one form after the other, as they may be large.
        rotation: After which the shorter ones are prefixes [256, 256].
        k: How many ranks count.
    """
    found: list[Worth] = [{} for _ in task_pairs]

    def add(name: str, vectors: Vectors, asked: Sequence[Vectors]) -> None:
        for worth, pairs, of_queries in zip(found, task_pairs, asked, strict=True):
            worth[name] = gains(ranks(held_out_of(pairs, candidates), baselines.dot_product(of_queries, vectors)), k)

    add(OURS, candidates.vectors[OURS], queries)
    for form in forms:
        short = [short_queries(of_task, rotation if form.is_prefix else None, form.length) for of_task in queries]
        add(str(form), decode(form), short)
    return found


def evaluation_rows(
    task_pairs: Sequence[TaskPairs], candidates: Candidates, worths: Sequence[Worth], slice_by: str
) -> list[EvaluationRow]:
    """Rows of EVALUATION for the forms, beside the 256 floats on the same pairs, which have rows of their own."""
    return [
        row
        for pairs, worth in zip(task_pairs, worths, strict=True)
        for row in rows_of(pairs, candidates, worth, slice_by)
        if row.system != OURS
    ]


def mean_recalls(task_pairs: Sequence[TaskPairs], worths: Sequence[Worth], metric: str) -> dict[str, float]:
    """The recall of the 256 floats and of each form, the mean over all tasks; nothing where there is no pair."""
    names = list(worths[0]) if worths else []
    return {
        name: float(np.mean([np.average(worth[name][metric].numpy(), weights=pairs.weights)
                             for pairs, worth in zip(task_pairs, worths, strict=True)]))
        for name in names
    }  # fmt: skip


def losses(task_pairs: Sequence[TaskPairs], worths: Sequence[Worth], metric: str) -> dict[str, ShortLoss]:
    """What each form loses over all tasks, each of which counts the same; nothing where there is no pair.

    Args:
        task_pairs: The pairs of each task.
        worths: From `worth_of_forms`.
        metric: Such as recall@10.
    """
    known = list(zip(task_pairs, worths, strict=True))
    if not known:
        return {}
    names = list(known[0][1])
    values = np.concatenate([np.stack([worth[name][metric].numpy() for name in names], axis=1) for _, worth in known])
    # A query has one kind but may stand in several tasks; its resamples are then one.
    _, query = np.unique(np.concatenate([pairs.query_ids[pairs.query] for pairs, _ in known]), return_inverse=True)
    of_task = len(query) / len(known)
    weights = np.concatenate([pairs.weights * (of_task / pairs.weights.sum()) for pairs, _ in known])
    found = bootstrap(query, weights.astype(np.float64), values, {"all": np.ones(len(query), bool)})["all"]
    between = found.differences(np.zeros(len(names), np.int64), np.arange(len(names)))
    return {
        name: ShortLoss(float(found.values[number]), float(found.values[0]), between[number][0])
        for number, name in enumerate(names) if name != OURS
    }  # fmt: skip


def decoder(rows: DataFrame, keys: Keys) -> Decode:
    """Reads a form's columns of the candidates' rows when it is asked for.

    Args:
        rows: Rows of the table item_short_vectors, at least those of the candidates.
        keys: item_key of the candidates, sorted.
    """
    wanted = F.broadcast(rows.sparkSession.createDataFrame(pa.table({"item_key": keys})))
    chosen = rows.withColumn("item_key", item_key("item_id")).join(wanted, on="item_key", how="left_semi")

    def decode(form: ShortVector) -> Vectors:
        table = chosen.select("item_key", *(column.name for column in form.columns)).toArrow()
        found = from_columns(table, form)
        vectors = np.zeros((len(keys), form.length), np.float32)
        vectors[np.searchsorted(keys, table["item_key"].to_numpy())] = found
        return vectors

    return decode
