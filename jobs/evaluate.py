"""Measure recall@k on the held-out window, for the published embeddings and for every baseline that applies.

Reads: held_out_<task>, training_<task>, query_embeddings, queries, items, item_features, item_counts,
item_embeddings; on the demo world true_item_vectors and true_query_vectors.
Writes: evaluation; one row is one figure of one system on one task.
Safe to rerun: one Delta commit replaces the table; pairs and distractors are chosen by hash, not at random.

    spark-submit --properties-file spark-defaults.conf jobs/evaluate.py --settings pipeline.toml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from itemsage_model import baselines, query_encoder
from itemsage_model.batch import FEATURE_CELLS, unpack_items
from itemsage_model.checkpoint import load_model, model_bytes
from itemsage_model.recall import HeldOut, ScoreQueries, hits, weighted_mean
from itemsage_model.scorer import batch_function, load_once, sum_of_images
from jobs import command_line, table_io
from jobs.run import Run
from schemas.columns import Table
from schemas.records import read_record
from schemas.settings import Settings
from schemas.spark import struct_type
from schemas.tables import (
    EVALUATION,
    ITEM_COUNTS,
    ITEM_EMBEDDINGS,
    ITEM_FEATURES,
    ITEMS,
    QUERIES,
    QUERY_EMBEDDINGS,
    TRUE_ITEM_VECTORS,
    TRUE_QUERY_VECTORS,
    held_out_pairs,
    training_pairs,
)
from schemas.tasks import Task

STAGE = "evaluate"
SYSTEMS = ("itemsage", "untrained", "random", "popularity", "co_occurrence", "frozen_query", "sum", "oracle")

Vectors = npt.NDArray[np.float32]
Figure = tuple[str, str, str, str, float, int]
"""A row of the table evaluation."""


@dataclass(frozen=True)
class Candidates:
    """The items that compete, sorted by key, and what each system knows of them; all arrays are [candidate, ...].

    Attributes:
        item_key: int64.
        item_id: The ids as strings.
        is_distractor: False where the item is here only as some pair's positive.
        is_seen: Whether the item has a training engagement.
        engagement_count: Training engagements over all tasks.
        vectors: System -> vectors.
    """

    item_key: npt.NDArray[np.int64]
    item_id: npt.NDArray[Any]
    is_distractor: npt.NDArray[np.bool_]
    is_seen: npt.NDArray[np.bool_]
    engagement_count: npt.NDArray[np.int64]
    vectors: dict[str, Vectors]


@dataclass(frozen=True)
class TaskPairs:
    """Held-out pairs of one task and its distinct queries; `query` indexes the query arrays."""

    task: Task
    query: npt.NDArray[np.int64]
    item_key: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    query_ids: list[str]
    query_item_key: npt.NDArray[np.int64]


def measure(pairs: TaskPairs, candidates: Candidates, systems: dict[str, ScoreQueries], k: int) -> list[Figure]:
    """Recall@k of each system on one task, over all pairs and over pairs with an unseen item."""
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
    slices["unseen"] = torch.from_numpy(~candidates.is_seen[positive])
    rows: list[Figure] = []
    for system in SYSTEMS:
        if system in systems:
            hit = hits(held_out, systems[system], k)
            for name, chosen in slices.items():
                value = weighted_mean(hit[chosen], held_out.weights[chosen])
                rows.append((pairs.task.name, system, f"recall@{k}", name, value, int(chosen.sum())))
    return rows


def run(spark: SparkSession, settings: Settings) -> None:
    """Evaluate every task."""
    with Run(spark, settings, STAGE) as run_:
        task_pairs = [_collect_pairs(run_, entry.task, settings) for entry in settings.tasks]
        task_pairs = [pairs for pairs in task_pairs if len(pairs.query)]
        candidates = _collect_candidates(run_, task_pairs, settings)
        query_table = run_.read(QUERY_EMBEDDINGS)
        counts = _collect_training_pairs(run_, settings)
        rows: list[Figure] = []
        for pairs in task_pairs:
            systems = _systems(run_, pairs, candidates, query_table, counts)
            rows += measure(pairs, candidates, systems, settings.evaluate.k)
        run_.figures["distractors"] = int(candidates.is_distractor.sum())
        table = spark.createDataFrame(rows, struct_type(EVALUATION))
        run_.write(table, EVALUATION)


def _collect_pairs(run_: Run, task: Task, settings: Settings) -> TaskPairs:
    """At most `max_pairs_per_task` held-out pairs, the first by a hash of the pair."""
    table = run_.read(held_out_pairs(task), may_be_empty=True)
    chosen = table.orderBy(F.xxhash64("query_id", "item_id"), "query_id", "item_id").limit(
        settings.evaluate.max_pairs_per_task
    )
    columns = chosen.select("query_id", "item_key", "query_item_key", "engagement_count").toArrow()
    ids = np.array(columns["query_id"].to_pylist(), dtype=object)
    distinct, first, query = np.unique(ids.astype(str), return_index=True, return_inverse=True)
    return TaskPairs(
        task,
        query.astype(np.int64),
        columns["item_key"].to_numpy(),
        columns["engagement_count"].to_numpy().astype(np.float32),
        [str(name) for name in distinct],
        columns["query_item_key"].to_numpy()[first],
    )


def _collect_candidates(run_: Run, task_pairs: list[TaskPairs], settings: Settings) -> Candidates:
    """The whole catalog, or about `max_distractors` of it chosen by hash; and every pair's item."""
    spark = run_.spark
    published = run_.read(ITEM_EMBEDDINGS).withColumn("item_key", F.xxhash64("item_id"))
    catalog = int(run_.inputs[-1]["rows"])
    threshold = min(1.0, settings.evaluate.max_distractors / catalog)
    is_distractor = F.pmod(F.xxhash64(F.lit("distractors"), "item_id"), F.lit(1 << 30)) < F.lit(
        int(threshold * (1 << 30))
    )
    positives = np.unique(np.concatenate([pairs.item_key for pairs in task_pairs]))
    positive_table = spark.createDataFrame([(int(key),) for key in positives], "item_key long")
    kept = (
        published.withColumn("is_distractor", is_distractor)
        .join(F.broadcast(positive_table.withColumn("is_positive", F.lit(True))), on="item_key", how="left")
        .where("is_distractor OR is_positive")
    )
    table = kept.select("item_key", "item_id", "is_distractor", "embedding").toArrow()
    order = np.argsort(table["item_key"].to_numpy(), kind="stable")
    table = table.take(order)
    keys = table["item_key"].to_numpy()
    vectors = {"itemsage": _matrix(table["embedding"])}
    chosen = kept.select("item_id")
    features = run_.read(ITEM_FEATURES).join(chosen, on="item_id", how="left_semi")
    vectors |= _feature_vectors(features, keys, settings)
    counts, seen = _popularity(run_, keys)
    titles = _frozen_titles(run_, chosen, keys, settings)
    oracle = _optional_vectors(run_, TRUE_ITEM_VECTORS, chosen, keys)
    return Candidates(
        keys,
        np.array(table["item_id"].to_pylist(), dtype=object),
        table["is_distractor"].to_numpy(zero_copy_only=False),
        seen,
        counts,
        vectors | titles | oracle,
    )


def _feature_vectors(features: DataFrame, keys: npt.NDArray[np.int64], settings: Settings) -> dict[str, Vectors]:
    """Vectors of the untrained model and, where there are images, of their sum."""
    trained, spec, _ = load_model(read_record(settings.warehouse.uri, "train")["figures"]["model_uri"])
    del trained
    untrained = model_bytes(spec.build(seed=settings.train.seed))
    text_count = len(spec.features.text_features)

    def score_untrained(batches):  # type: ignore[no-untyped-def]
        yield from batch_function(load_once(untrained, spec).score_batch, ("item_key",))(batches)

    def add_images(batch):  # type: ignore[no-untyped-def]
        cells = {name: batch.column(name).to_pylist() for name in FEATURE_CELLS}
        return sum_of_images(unpack_items(ITEM_FEATURES.name, cells, text_count, spec.vocabulary_size))

    def sum_images(batches):  # type: ignore[no-untyped-def]
        yield from batch_function(add_images, ("item_key",))(batches)

    schema = T.StructType(
        [
            T.StructField("item_key", T.LongType(), False),
            T.StructField("embedding", T.ArrayType(T.FloatType(), False), False),
        ]
    )
    result = {"untrained": _aligned(features.mapInArrow(score_untrained, schema), keys)}
    if settings.inputs.has_images:
        result["sum"] = _aligned(features.mapInArrow(sum_images, schema), keys)
    return result


def _popularity(run_: Run, keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Training engagements of each candidate over all tasks, and whether it has any."""
    table = run_.read(ITEM_COUNTS).groupBy("item_key").agg(F.sum("engagement_count").alias("n")).toArrow()
    counts = np.zeros(len(keys), np.int64)
    place = np.searchsorted(keys, table["item_key"].to_numpy())
    place = np.minimum(place, len(keys) - 1)
    known = keys[place] == table["item_key"].to_numpy()
    counts[place[known]] = table["n"].to_numpy()[known]
    return counts, counts > 0


def _frozen_titles(run_: Run, chosen: DataFrame, keys: npt.NDArray[np.int64], settings: Settings) -> dict[str, Vectors]:
    """The frozen text encoder's vector of each candidate's title, where the pipeline has such an encoder."""
    encoder = query_encoder.load_if_saved(f"{settings.warehouse.uri}/query_encoder")
    if encoder is None:
        return {}
    titles = run_.read(ITEMS).join(chosen, on="item_id", how="left_semi")
    one_each = titles.groupBy(F.xxhash64("item_id").alias("item_key")).agg(F.min("title").alias("title"))
    table = one_each.toArrow()
    vectors = np.zeros((len(keys), 256), np.float32)
    place = np.searchsorted(keys, table["item_key"].to_numpy())
    vectors[place] = encoder.encode([title or "" for title in table["title"].to_pylist()])
    return {"frozen_query": vectors}


def _optional_vectors(run_: Run, table: Table, chosen: DataFrame, keys: npt.NDArray[np.int64]) -> dict[str, Vectors]:
    """The demo world's hidden vectors, where it wrote any."""
    if table_io.latest_version(run_.spark, run_.settings.table_uri(table.name)) is None:
        return {}
    vectors = run_.read(table).join(chosen, on="item_id", how="left_semi")
    return {"oracle": _aligned(vectors.select(F.xxhash64("item_id"), "true_vector"), keys)}


def _collect_training_pairs(
    run_: Run, settings: Settings
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(query item, item, engagements) summed over the training tables of all tasks."""
    parts = []
    for entry in settings.tasks:
        pairs = run_.read(training_pairs(entry.task)).where("query_item_key != 0")
        parts.append(pairs.select("query_item_key", "item_key", "engagement_count"))
    union = parts[0]
    for part in parts[1:]:
        union = union.unionByName(part)
    table = union.groupBy("query_item_key", "item_key").agg(F.sum("engagement_count").alias("n")).toArrow()
    return (
        table["query_item_key"].to_numpy(),
        table["item_key"].to_numpy(),
        table["n"].to_numpy().astype(np.float64),
    )


def _systems(
    run_: Run,
    pairs: TaskPairs,
    candidates: Candidates,
    query_table: DataFrame,
    counts: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]],
) -> dict[str, ScoreQueries]:
    """Every system that applies to the task."""
    wanted = run_.spark.createDataFrame([(name,) for name in pairs.query_ids], "query_id string")
    known = query_table.join(F.broadcast(wanted), on="query_id", how="left_semi")
    queries = _by_id(known.select("query_id", "query_embedding"), pairs.query_ids)
    vectors = candidates.vectors
    systems = {
        "itemsage": baselines.dot_product(queries, vectors["itemsage"]),
        "untrained": baselines.dot_product(queries, vectors["untrained"]),
        "random": baselines.random(len(candidates.item_key), run_.settings.train.seed),
        "popularity": baselines.popularity(candidates.engagement_count),
    }
    if pairs.query_item_key.any():
        systems["co_occurrence"] = baselines.co_occurrence(
            pairs.query_item_key, candidates.item_key, counts, candidates.engagement_count
        )
    if "sum" in vectors and pairs.task.query_kind == "closeup":
        systems["sum"] = baselines.dot_product(queries, vectors["sum"])
    if "frozen_query" in vectors:
        texts = run_.read(QUERIES).join(F.broadcast(wanted), on="query_id", how="left_semi").select("query_id", "text")
        systems |= _frozen_query(texts, pairs, vectors["frozen_query"], run_.settings)
    if "oracle" in vectors:
        true = run_.read(TRUE_QUERY_VECTORS).where(F.col("engagement") == pairs.task.engagement)
        true = true.join(F.broadcast(wanted), on="query_id", how="left_semi").select("query_id", "true_vector")
        systems["oracle"] = baselines.dot_product(_by_id(true, pairs.query_ids), vectors["oracle"])
    return systems


def _frozen_query(texts: DataFrame, pairs: TaskPairs, titles: Vectors, settings: Settings) -> dict[str, ScoreQueries]:
    text_of = {row["query_id"]: row["text"] for row in texts.collect()}
    if not any(text_of.values()):
        return {}
    encoder = query_encoder.load_if_saved(f"{settings.warehouse.uri}/query_encoder")
    assert encoder is not None
    encoded = encoder.encode([text_of.get(name) or "" for name in pairs.query_ids])
    return {"frozen_query": baselines.dot_product(encoded, titles)}


def _matrix(column: Any) -> Vectors:
    """A list<float> column of equal lengths as a matrix."""
    flat = column.combine_chunks().flatten().to_numpy().astype(np.float32)
    matrix: Vectors = flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 256)
    return matrix


def _aligned(df: DataFrame, keys: npt.NDArray[np.int64]) -> Vectors:
    """Rows (item_key, vector) as a matrix in the order of the sorted `keys`."""
    table = df.toDF("item_key", "vector").toArrow()
    matrix = _matrix(table["vector"])
    result = np.zeros((len(keys), matrix.shape[1]), np.float32)
    result[np.searchsorted(keys, table["item_key"].to_numpy())] = matrix
    return result


def _by_id(df: DataFrame, ids: list[str]) -> Vectors:
    """Rows (query_id, vector) as a matrix in the order of the sorted `ids`."""
    table = df.toDF("query_id", "vector").toArrow()
    matrix = _matrix(table["vector"])
    result = np.zeros((len(ids), matrix.shape[1]), np.float32)
    result[np.searchsorted(np.array(ids), np.array(table["query_id"].to_pylist(), dtype=str))] = matrix
    return result


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
