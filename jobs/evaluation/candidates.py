"""Held-out pairs, candidate items and their vectors, collected from tables into arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from itemsage_model.encoders.model_files import model_bytes
from itemsage_model.evaluation.baselines import sum_of_images
from itemsage_model.serving.frozen_vectors import frozen_vectors
from itemsage_model.serving.scorer import batch_function, load_once, unpack_rows
from jobs.evaluation.compared import Candidates, Keys, Names, TaskPairs, Vectors
from jobs.evaluation.subject import Subject
from jobs.runtime import table_io
from jobs.runtime.job_run import JobRun
from jobs.transforms.keys import item_key
from schemas.cells import to_matrix
from schemas.columns import Table
from schemas.elements import FROZEN_TEXT, IMAGES, TEXT
from schemas.settings import Settings
from schemas.stages import is_among
from schemas.tables import (
    EMBEDDING_DIM,
    FROZEN_ALL,
    FROZEN_UNSEEN,
    ITEM_COUNTS,
    ITEM_EMBEDDINGS,
    ITEM_FEATURES,
    TRUE_ITEM_VECTORS,
)
from schemas.tasks import Task

_SHARES = 1 << 30


def collect_pairs(job: JobRun[Any], table: Table, task: Task) -> TaskPairs:
    """At most `evaluate.max_pairs_per_task` pairs of one task's table, the first by a hash of the pair."""
    return pairs_of(job.read(table, may_be_empty=True), task, job.settings.evaluate.max_pairs_per_task)


def pairs_of(table: DataFrame, task: Task, most: int) -> TaskPairs:
    """At most so many rows of a table with PAIR_COLUMNS, the first by a hash of the pair."""
    by_hash = table.orderBy(F.xxhash64("query_id", "item_id"), "query_id", "item_id")
    names = ("query_id", "query_key", "item_key", "query_item_key", "engagement_count")
    columns = by_hash.limit(most).select(*names).toArrow()
    distinct, first, query = np.unique(names_of(columns["query_id"]), return_index=True, return_inverse=True)
    return TaskPairs(
        task,
        query.astype(np.int64),
        columns["item_key"].to_numpy(),
        columns["engagement_count"].to_numpy().astype(np.float32),
        distinct,
        columns["query_item_key"].to_numpy()[first],
        columns["query_key"].to_numpy()[first],
    )


def collect_candidates(job: JobRun[Any], task_pairs: list[TaskPairs], subject: Subject) -> Candidates:
    """The whole catalog, or about `evaluate.max_distractors` of it chosen by hash; and every pair's item."""
    catalog = job.read(ITEM_FEATURES)
    source = job.read(ITEM_EMBEDDINGS) if subject.is_published else catalog
    row_count = job.row_count(ITEM_EMBEDDINGS if subject.is_published else ITEM_FEATURES)
    chosen = _chosen(job, source, row_count, task_pairs).persist()
    kept = ["item_key", "is_distractor", *(["embedding"] if subject.is_published else [])]
    table = chosen.select(kept).toArrow()
    table = table.take(np.argsort(table["item_key"].to_numpy(), kind="stable"))
    keys = table["item_key"].to_numpy()
    ids = chosen.select("item_id")
    features = catalog.join(ids, on="item_id", how="left_semi")
    vectors, has = _of_features(features, keys, job.settings, subject)
    counts = _engagements(job, keys, chosen, subject)
    if subject.is_published:
        vectors["itemsage"] = to_matrix(table["embedding"])
    if subject.has_fallback:
        vectors |= with_fallbacks(vectors["itemsage"], vectors.pop(FROZEN_TEXT.name), counts)
    if exists(job, TRUE_ITEM_VECTORS):
        true_vectors = job.read(TRUE_ITEM_VECTORS).join(ids, on="item_id", how="left_semi")
        vectors["oracle"] = by_item(true_vectors.select(item_key("item_id"), "true_vector"), keys)
    is_distractor = table["is_distractor"].to_numpy(zero_copy_only=False)
    candidates = Candidates(keys, is_distractor, counts, vectors, has["text"], has["images"])
    chosen.unpersist()
    return candidates


def with_fallbacks(ours: Vectors, frozen: Vectors, engagement_count: Keys) -> dict[str, Vectors]:
    """What the items have if the frozen vectors of their texts are published in place of the model's, by system.

    Args:
        ours: The model's vectors [item, dim].
        frozen: Zero where an item has no frozen vector: it keeps the model's [item, dim].
        engagement_count: Training engagements [item].
    """
    has = frozen.any(axis=1)
    replaced = {FROZEN_UNSEEN: has & (engagement_count == 0), FROZEN_ALL: has}
    return {name: np.where(rows[:, None], frozen, ours) for name, rows in replaced.items()}


def exists(job: JobRun[Any], table: Table) -> bool:
    """Whether the stage may read the table and the warehouse has it: only the demo world knows true vectors."""
    if not is_among(table.name, job.stage.reads):
        return False
    return table_io.latest_version(job.spark, job.settings.table_uri(table.name)) is not None


def by_item(df: DataFrame, keys: Keys) -> Vectors:
    """Rows (item_key, vector) as a matrix in the order of the sorted `keys`; zero where there is none."""
    table = df.toDF("item_key", "vector").toArrow()
    return _aligned(table["vector"], np.searchsorted(keys, table["item_key"].to_numpy()), len(keys))


def names_of(column: pa.ChunkedArray) -> Names:
    """A column of strings as objects, equal ones being one object."""
    encoded = column.combine_chunks().dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), object)
    taken: Names = names[encoded.indices.to_numpy()]
    return taken


def by_query(df: DataFrame, ids: Names) -> Vectors:
    """Rows (query_id, vector) as a matrix in the order of the sorted `ids`; zero where there is none."""
    table = df.toDF("query_id", "vector").toArrow()
    return _aligned(table["vector"], np.searchsorted(ids, names_of(table["query_id"])), len(ids))


def _chosen(job: JobRun[Any], source: DataFrame, row_count: int, task_pairs: list[TaskPairs]) -> DataFrame:
    """The candidates among the items of `source`, with `item_key` and `is_distractor`."""
    items = source.withColumn("item_key", item_key("item_id"))
    share = min(1.0, job.settings.evaluate.max_distractors / row_count)
    index = F.pmod(F.xxhash64(F.lit("distractors"), "item_id"), F.lit(_SHARES))
    with_share = items.withColumn("is_distractor", index < F.lit(int(share * _SHARES)))
    keys = np.unique(np.concatenate([pairs.item_key for pairs in task_pairs]))
    positives = job.spark.createDataFrame(pa.table({"item_key": keys})).withColumn("is_positive", F.lit(True))
    # The broadcast side is unique by item_key.
    flagged = with_share.join(F.broadcast(positives), on="item_key", how="left")
    embedding = [name for name in items.columns if name == "embedding"]
    return flagged.where("is_distractor OR is_positive").select("item_key", "item_id", "is_distractor", *embedding)


def _of_features(
    features: DataFrame, keys: Keys, settings: Settings, subject: Subject
) -> tuple[dict[str, Vectors], dict[str, npt.NDArray[np.bool_]]]:
    """Vectors of a model and, where there are images, of their sum; and who has text, and images.

    The model is the subject's, or, where its vectors are published, the same one untrained.
    """
    spec, name = subject.model.spec, "untrained" if subject.is_published else "itemsage"
    weights = model_bytes(spec.build(seed=settings.train.seed)) if subject.is_published else subject.model.weights

    def add_images(batch: pa.RecordBatch) -> Vectors:
        images = unpack_rows(batch, spec)[IMAGES.values.name]
        return sum_of_images(images.values, images.counts)

    def score(batch: pa.RecordBatch) -> Vectors:
        return load_once(weights, spec).score_batch(batch)

    # All from one pass: reading the features takes longer than adding images.
    scores: dict[str, Callable[[pa.RecordBatch], Vectors]]
    scores = {name: score} | ({"sum": add_images} if _images_are_queries(settings) else {})
    if subject.has_fallback:
        scores[FROZEN_TEXT.name] = frozen_vectors
    has = {element.name: F.octet_length(element.values.name) > 0 for element in (TEXT, IMAGES)}
    schema = ", ".join(
        ["item_key long", *(f"{name} boolean" for name in has), *(f"{name} array<float>" for name in scores)]
    )
    scored = features.withColumns(has).mapInArrow(batch_function(("item_key", *has), scores), schema)
    table = scored.toArrow()
    rows = np.searchsorted(keys, table["item_key"].to_numpy())
    flags = {name: np.zeros(len(keys), bool) for name in has}
    for name, flag in flags.items():
        flag[rows] = table[name].to_numpy(zero_copy_only=False)
    return {name: _aligned(table[name], rows, len(keys)) for name in scores}, flags


def _images_are_queries(settings: Settings) -> bool:
    """Whether images can stand for an item among queries: vectors of another length lie in a space of their own."""
    return settings.inputs.has_images and settings.model.image_length == EMBEDDING_DIM


def _engagements(job: JobRun[Any], keys: Keys, chosen: DataFrame, subject: Subject) -> Keys:
    """Training engagements of each candidate over all tasks."""
    counts = job.read(ITEM_COUNTS).join(chosen.select("item_key"), on="item_key", how="left_semi")
    totals = counts.groupBy("item_key").agg(F.sum(subject.count).alias("total")).toArrow()
    return totals_of(totals, keys).astype(np.int64)


def totals_of(totals: pa.Table, keys: Keys) -> npt.NDArray[np.float64]:
    """Rows (item_key, total), unique by key, in the order of the sorted `keys`; 0 where there is none."""
    items = totals["item_key"].to_numpy()
    index = np.minimum(np.searchsorted(keys, items), len(keys) - 1)
    is_candidate = keys[index] == items
    found = np.zeros(len(keys), np.float64)
    found[index[is_candidate]] = totals["total"].to_numpy()[is_candidate]
    return found


def _aligned(column: pa.ChunkedArray, rows: Keys, row_count: int) -> Vectors:
    matrix = to_matrix(column)
    result = np.zeros((row_count, matrix.shape[1]), np.float32)
    result[rows] = matrix
    return result
