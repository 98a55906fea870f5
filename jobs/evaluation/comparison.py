"""A model beside every system that applies, on the pairs of any window: from tables to rows of the table evaluation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from itemsage_model.encoders.frozen_text.stored import load_recorded
from itemsage_model.encoders.frozen_text.text_encoder import TextEncoder
from itemsage_model.serving.query_vectors import adapt_queries
from jobs.evaluation.candidates import by_query, collect_candidates, exists
from jobs.evaluation.compared import Candidates, Names, Queries, TaskPairs, Vectors
from jobs.evaluation.engagements import collect_log
from jobs.evaluation.measure import EvaluationRow, measure
from jobs.evaluation.short_recall import decoder, evaluation_rows, worth_of_forms
from jobs.evaluation.subject import Subject
from jobs.evaluation.systems import systems_of
from jobs.evaluation.texts import collect_texts, shown_items, with_words
from jobs.runtime.job_run import JobRun, side_by_side
from retrieval.short_tables import load_rotation
from schemas.columns import Table
from schemas.short_vectors import short_vector, short_vectors_table
from schemas.stages import EMBED_QUERIES, SCORE_CATALOG
from schemas.tables import ITEMS, MAX_TEXT_CHARACTERS, QUERIES, QUERY_EMBEDDINGS, TRUE_QUERY_VECTORS


def compare(job: JobRun[Any], task_pairs: list[TaskPairs], subject: Subject) -> tuple[list[EvaluationRow], int]:
    """Rows of EVALUATION, and the number of distractors.

    Args:
        job: The run; it reads the tables.
        task_pairs: Tasks that all have pairs.
        subject: What is measured.
    """
    asked = job.settings.evaluate
    encoder = load_recorded(job.settings.layout, job.record(EMBED_QUERIES).metrics.encoder)
    with ThreadPoolExecutor() as threads:
        found = threads.submit(collect_candidates, job, task_pairs, subject)
        queries = threads.submit(_collect_queries, job, task_pairs, encoder, subject)
        log = collect_log(job, task_pairs, subject)
        candidates, known = _with_texts(job, task_pairs, found.result(), queries.result(), encoder)
    engagements = log.of(candidates)

    def measure_task(pairs: TaskPairs) -> list[EvaluationRow]:
        systems = systems_of(pairs, candidates, known, engagements)
        return measure(pairs, candidates, systems, asked.k, asked.slice_by)

    measured = side_by_side([partial(measure_task, pairs) for pairs in task_pairs])
    rows = [row for of_task in measured for row in of_task]
    rows += _of_short_forms(job, task_pairs, candidates, known) if subject.is_published else []
    return rows, int(candidates.is_distractor.sum())


def _of_short_forms(
    job: JobRun[Any], task_pairs: list[TaskPairs], candidates: Candidates, queries: Queries
) -> list[EvaluationRow]:
    """Rows of the short forms that are published beside the vectors, on the same pairs and candidates."""
    scored, asked = job.record(SCORE_CATALOG).metrics, job.settings.evaluate
    if scored.short is None:
        return []
    forms = [short_vector(name) for name in scored.short.forms]
    file = f"{job.settings.layout.model(scored.model_id)}/{scored.short.rotation}"
    rotation = load_rotation(file) if scored.short.rotation else None
    decode = decoder(job.read(short_vectors_table(forms)), candidates.item_key)
    of_tasks = [queries.adapted[np.searchsorted(queries.ids, pairs.query_ids)] for pairs in task_pairs]
    worths = worth_of_forms(task_pairs, of_tasks, candidates, forms, decode, rotation, asked.k)
    return evaluation_rows(task_pairs, candidates, worths, asked.slice_by)


def _with_texts(
    job: JobRun[Any],
    task_pairs: list[TaskPairs],
    candidates: Candidates,
    queries: Queries,
    encoder: TextEncoder | None,
) -> tuple[Candidates, Queries]:
    """Both sides with what the items' texts say: words, the encoder's vectors of titles, categories."""
    slice_by, features = job.settings.evaluate.slice_by, job.settings.features.text_features
    keys = np.union1d(candidates.item_key, shown_items(task_pairs))
    texts = collect_texts(job.read(ITEMS), keys, features, slice_by)
    rows = texts.rows(candidates.item_key)
    titles = {"frozen_query": encoder.encode(texts.title[rows].tolist())} if encoder is not None else {}
    category = texts.category[rows] if slice_by else None
    candidates = replace(candidates, vectors=candidates.vectors | titles, category=category)
    return with_words(candidates, queries, task_pairs, texts)


def _collect_queries(
    job: JobRun[Any], task_pairs: list[TaskPairs], encoder: TextEncoder | None, subject: Subject
) -> Queries:
    """The queries of all tasks at once: a query may stand in several."""
    ids = np.unique(np.concatenate([pairs.query_ids for pairs in task_pairs]))
    wanted = F.broadcast(job.spark.createDataFrame(pa.table({"query_id": ids.tolist()})))

    def known(table: Table) -> DataFrame:
        return job.read(table).join(wanted, on="query_id", how="left_semi")

    embeddings = by_query(known(QUERY_EMBEDDINGS).select("query_id", "query_embedding"), ids)
    adapted = adapted_queries(subject, task_pairs, ids, embeddings)
    # Another row of the query may hold a text that is no text: that row was rejected.
    text = F.when(F.is_valid_utf8("text"), F.substring("text", 1, MAX_TEXT_CHARACTERS))
    texts_known = known(QUERIES).select("query_id", text.alias("text")).where("text IS NOT NULL")
    rows = texts_known.toArrow().to_pydict()
    text_of = dict(zip(rows["query_id"], rows["text"], strict=True))
    said = np.array([text_of.get(name) or "" for name in ids], object)
    texts = encoder.encode(said.tolist()) if encoder is not None else None
    true_vectors = {}
    if exists(job, TRUE_QUERY_VECTORS):
        rows_of = known(TRUE_QUERY_VECTORS)
        for engagement in sorted({pairs.task.engagement for pairs in task_pairs}):
            of_engagement = rows_of.where(F.col("engagement") == engagement).select("query_id", "true_vector")
            true_vectors[engagement] = by_query(of_engagement, ids)
    return Queries(ids, embeddings, adapted, texts, said != "", true_vectors, said)


def adapted_queries(subject: Subject, task_pairs: list[TaskPairs], ids: Names, embeddings: Vectors) -> Vectors:
    """The queries as the items' vectors want them; a query has one kind, whichever tasks it stands in."""
    if not subject.adapts:
        return embeddings
    adapted = embeddings.copy()
    for kind in sorted({pairs.task.query_kind for pairs in task_pairs}):
        of_kind = [pairs for pairs in task_pairs if pairs.task.query_kind == kind]
        names, first = np.unique(np.concatenate([pairs.query_ids for pairs in of_kind]), return_index=True)
        keys = np.concatenate([pairs.query_key for pairs in of_kind])[first]
        rows = np.searchsorted(ids, names)
        adapted[rows] = adapt_queries(subject.model, kind, embeddings[rows], keys)
    return adapted
