"""The short forms of vectors that are about to be published: made where the vectors lie, and what they lose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.evaluation.candidates import by_query, pairs_of
from jobs.evaluation.compared import Candidates, TaskPairs, Vectors
from jobs.evaluation.measure import OURS, Worth
from jobs.evaluation.short_recall import losses, mean_recalls, worth_of_forms
from jobs.evaluation.vector_health import SAMPLED_ITEMS, is_sampled
from jobs.runtime import table_io
from jobs.runtime.changes import REMOVED, Changes, merge
from jobs.runtime.job_run import JobRun, side_by_side
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.keys import item_key
from retrieval.short_tables import from_columns, load_rotation, save_rotation, to_columns
from retrieval.short_vectors import Floats, rotations
from schemas.cells import to_matrix
from schemas.commits import Note, Staged
from schemas.errors import leaving_a_worker
from schemas.metrics import ScoreMetrics, ShortLoss, ShortMetrics
from schemas.published import Published
from schemas.short_vectors import ShortVector, short_vectors_table
from schemas.storage import is_unchanged_since
from schemas.tables import QUERY_VECTORS, validation_pairs
from schemas.tasks import Task

_SAMPLED_QUERIES = 2_000
_MOST_PAIRS = 16_000
"""Validation pairs of all tasks: the interval of a loss is then some thousandths wide."""


@dataclass(frozen=True)
class Items:
    """The items of a version that is about to be published.

    Attributes:
        scored: Rows of ITEM_EMBEDDINGS that were scored.
        whole: Those that will be published.
        rows: How many they will be.
        model_id: The model, in whose folder the rotation is kept.
        changes: What was scored, where the other rows stay; None = all.
        kept: What is live, where they stay.
    """

    scored: DataFrame
    whole: DataFrame
    rows: int
    model_id: str
    changes: Changes | None
    kept: Published | None


@dataclass(frozen=True)
class StagedShort:
    """Short vectors that are not live yet.

    Attributes:
        staged: Rows of item_short_vectors: of all items, or of those that have changed.
        metrics: Their forms, and what they lose.
        kept: The version of item_short_vectors of which the other rows stay; None = all rows are staged.
    """

    staged: Staged
    metrics: ShortMetrics
    kept: int | None = None

    def merge(self, changes: Changes, note: Note) -> int:
        """Commit the changed rows alone; returns the version, which is the one of before where none has changed.

        Raises:
            OvertakenError: somebody else has committed meanwhile.
        """
        assert self.kept is not None
        if not changes.total:
            return self.kept
        table, uri = self.staged.table, self.staged.uri
        version = merge(
            table_io.read_files(changes.rows.sparkSession, self.staged.uris, table), uri, table, changes, note
        )
        self.staged.discard()
        return version


def stage_short(job: JobRun[ScoreMetrics], items: Items, answers: Staged) -> StagedShort | None:
    """Write the short forms that the settings name; None where they name none.

    Where model and forms are those of what is live, so is the rotation, and the rows of changed items alone are
    written. Else the rotation is found anew, from a sample of the items, and what the forms lose is measured.

    Args:
        job: The run.
        items: What is about to be published.
        answers: The rows of QUERY_VECTORS that belong to it.

    Raises:
        InputError: the rotation of what is live is gone or damaged.
    """
    forms = job.settings.score.short_forms
    if not forms:
        return None
    table, kept, changes = short_vectors_table(forms), items.kept, items.changes
    if kept is not None and changes is not None and (version := _kept_version(kept, forms)) is not None:
        rotation = load_rotation(kept.rotation_uri) if kept.rotation_uri else None
        count = changes.total - changes.counts[REMOVED]
        staged = job.stage_worker_rows(_rows(items.scored, forms, rotation), table, count)
        assert kept.metrics.short is not None
        return StagedShort(staged, kept.metrics.short, version)
    sample = _sample(job, items, answers)
    rotated_by, rotation, file = "", None, ""
    if any(form.is_prefix for form in forms):
        rotated_by, rotation = _best_rotation(job, sample)
        file = save_rotation(job.settings.layout.model(items.model_id), rotation)
    staged = job.stage_worker_rows(_rows(items.whole, forms, rotation), table, items.rows)
    names = tuple(map(str, forms))
    return StagedShort(staged, ShortMetrics(names, file, rotated_by, _losses(job, sample, forms, rotation)))


def _kept_version(kept: Published, forms: Sequence[ShortVector]) -> int | None:
    """The live version of the table, where it has these forms, and is its newest; None = all rows are to be written."""
    output = kept.short_output
    is_same = output is not None and kept.short_forms == tuple(map(str, forms))
    if output is None or output.version is None or not is_same:
        return None
    return output.version if is_unchanged_since(output.uri, output.version) else None


def _rows(items: DataFrame, forms: Sequence[ShortVector], rotation: Floats | None) -> WorkerRows:
    """The rows of item_short_vectors of some rows of item_embeddings; the rotation travels with the function."""
    names = ["item_id", "model_id", *(column.name for form in forms for column in form.columns)]

    def make(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            with leaving_a_worker():
                vectors = to_matrix(batch.column("embedding"))
                columns = [column for form in forms for column in to_columns(vectors, form, rotation)]
            yield pa.RecordBatch.from_arrays([batch.column("item_id"), batch.column("model_id"), *columns], names)

    return WorkerRows(items.select("item_id", "model_id", "embedding"), make)


@dataclass(frozen=True)
class _Sample:
    """What is measured on.

    Attributes:
        candidates: About SAMPLED_ITEMS items, chosen by hash, and those of the pairs.
        queries: Some queries, chosen by hash [query, 256].
        task_pairs: Validation pairs of each task that has any, whose item and query are published.
        asked: Of each of these tasks, the vectors of its queries [query, 256].
    """

    candidates: Candidates
    queries: Vectors
    task_pairs: list[TaskPairs]
    asked: list[Vectors]

    def worths(self, forms: Sequence[ShortVector], rotation: Floats | None, k: int) -> list[Worth]:
        """What every pair is worth by the 256 floats and by each form, of each task."""

        def decode(form: ShortVector) -> Vectors:
            columns = to_columns(self.candidates.vectors[OURS], form, rotation)
            return from_columns(pa.table(columns, [column.name for column in form.columns]), form)

        return worth_of_forms(self.task_pairs, self.asked, self.candidates, forms, decode, rotation, k)


def _sample(job: JobRun[ScoreMetrics], items: Items, answers: Staged) -> _Sample:
    found = _validation_pairs(job)
    candidates = _candidates(items, found)
    published = table_io.read_files(job.spark, answers.uris, QUERY_VECTORS).select("query_id", "query_vector")
    share = min(1.0, _SAMPLED_QUERIES / max(answers.rows, 1))
    some = published.where(is_sampled(share, "query_id")).toArrow().sort_by("query_id")
    task_pairs, asked = [], []
    for pairs in found:
        wanted = job.spark.createDataFrame(pa.table({"query_id": pairs.query_ids.tolist()}))
        vectors = by_query(published.join(F.broadcast(wanted), on="query_id", how="left_semi"), pairs.query_ids)
        known = _published(pairs, candidates.item_key, vectors.any(axis=1))
        if len(known.query):
            task_pairs.append(known)
            asked.append(vectors)
    return _Sample(candidates, to_matrix(some["query_vector"]), task_pairs, asked)


def _validation_pairs(job: JobRun[ScoreMetrics]) -> list[TaskPairs]:
    """Some pairs of every task's validation window."""
    tasks = job.settings.task_list

    def read(task: Task) -> TaskPairs:
        return pairs_of(job.read(validation_pairs(task), may_be_empty=True), task, _MOST_PAIRS // len(tasks))

    found = side_by_side([partial(read, task) for task in tasks])
    return [pairs for pairs in found if len(pairs.query)]


def _candidates(items: Items, task_pairs: Sequence[TaskPairs]) -> Candidates:
    share = min(1.0, SAMPLED_ITEMS / max(items.rows, 1))
    keys = np.unique(np.concatenate([np.empty(0, np.int64), *(pairs.item_key for pairs in task_pairs)]))
    wanted = items.whole.sparkSession.createDataFrame(pa.table({"item_key": keys}), "item_key long")
    keyed = items.whole.select(
        item_key("item_id").alias("item_key"), "embedding", is_sampled(share).alias("is_distractor")
    )
    # The broadcast side is unique by item_key.
    flagged = keyed.join(F.broadcast(wanted.withColumn("is_positive", F.lit(True))), on="item_key", how="left")
    table = flagged.where("is_distractor OR is_positive").select("item_key", "embedding", "is_distractor").toArrow()
    table = table.take(np.argsort(table["item_key"].to_numpy(), kind="stable"))
    no, nothing = np.zeros(len(table), bool), np.zeros(len(table), np.int64)
    is_distractor = table["is_distractor"].to_numpy(zero_copy_only=False)
    vectors = {OURS: to_matrix(table["embedding"])}
    return Candidates(table["item_key"].to_numpy(), is_distractor, nothing, vectors, no, no)


def _best_rotation(job: JobRun[ScoreMetrics], sample: _Sample) -> tuple[str, Floats]:
    """The rotation, and its name, after which the prefixes have the best recall; the first where there is no pair."""
    forms, k = job.settings.score.short_forms, job.settings.evaluate.k
    prefixes = [ShortVector("float32", length) for length in sorted({form.length for form in forms if form.is_prefix})]
    items = sample.candidates.vectors[OURS][sample.candidates.is_distractor]
    found, recalls = rotations(items, sample.queries), {}
    for name, rotation in found.items():
        means = mean_recalls(sample.task_pairs, sample.worths(prefixes, rotation, k), f"recall@{k}")
        recalls[name] = sum(means.get(str(form), 0.0) for form in prefixes)
        figures = ", ".join(f"{form.length} numbers {means[str(form)]:.4f}" for form in prefixes if means)
        print(f"  rotation {name}: {figures or 'no validation pair'}", flush=True)
    best = max(recalls, key=recalls.__getitem__)
    return best, found[best]


def _losses(
    job: JobRun[ScoreMetrics], sample: _Sample, forms: Sequence[ShortVector], rotation: Floats | None
) -> dict[str, ShortLoss]:
    """What each form loses, said aloud."""
    k = job.settings.evaluate.k
    found = losses(sample.task_pairs, sample.worths(forms, rotation, k), f"recall@{k}")
    if not found:
        print("  short vectors: no validation pair says what they lose", flush=True)
    for name, loss in found.items():
        figures = f"recall@{k} {loss.recall:.4f}, of 256 floats {loss.full:.4f} ({-loss.share:+.1%})"
        print(f"  short vectors {name}: {figures} on validation pairs", flush=True)
    return found


def _published(pairs: TaskPairs, keys: npt.NDArray[np.int64], has_query: npt.NDArray[np.bool_]) -> TaskPairs:
    """The pairs whose item is among sorted keys, and whose query has a vector."""
    rows = np.isin(pairs.item_key, keys) & has_query[pairs.query]
    return replace(pairs, query=pairs.query[rows], item_key=pairs.item_key[rows], weights=pairs.weights[rows])
