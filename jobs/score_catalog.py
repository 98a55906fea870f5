"""Score the whole catalog with the trained model, and publish the query vectors that its embeddings answer.

Reads: item_features at the version that its record names, or item_feature_changes and changed_item_features where these
go on from what is published; item_counts, query_embeddings, and the model that the record of train names; with
score.short_vectors validation_<task> too.
Writes: item_embeddings, query_vectors, item_changes, item_short_vectors; one row is one product of the catalog with its
embedding, one query with the vector to compare them with, one item that the version has otherwise than the one before,
or one product with its embedding in short forms.
Safe to rerun: one Delta commit replaces each table, and equal inputs give equal rows (scored_ts is the logical date).
Before the work it compares with what is published, and stops where a gate does not open: [gates] of the settings.
Where validate found the model below a simple rival, frozen vectors take its place, or it stops: [floor].

    spark-submit --properties-file spark-defaults.conf jobs/score_catalog.py --settings pipeline.toml
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from itemsage_model.data.parquet_files import file_batches
from itemsage_model.data.pinned_files import TableFiles, deal, pieces_of, pin_version, require_image_length
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import SavedModel, load_model
from itemsage_model.encoders.precision import Precision, choose_precision
from itemsage_model.evaluation.fallback import Decision, decide
from itemsage_model.serving.frozen_vectors import Replacement, with_frozen
from itemsage_model.serving.query_vectors import query_batches, saved_adapter
from itemsage_model.serving.scorer import batch_function, load_once
from itemsage_model.serving.selection import Selection, rows_of_keys
from jobs.evaluation import vector_health
from jobs.evaluation.short_vectors import Items, StagedShort, stage_short
from jobs.runtime import command_line, gates, table_io
from jobs.runtime.changes import Changes, with_changes
from jobs.runtime.job_run import JobRun
from jobs.runtime.rescoring import Comparison, compare, kept_version, merge_published, query_vectors, scoring_of
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.keys import query_key
from schemas.arrow import arrow_schema
from schemas.candidate import Candidate, keep_candidate, remove_candidate
from schemas.commits import Staged
from schemas.contracts import date_of, require_same_graph, run_again, space_of
from schemas.elements import FEATURE_CELLS
from schemas.errors import InputError
from schemas.metrics import Health, ScoreMetrics
from schemas.records import TableVersion
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES, BUILD_TRAINING_TABLES, EMBED_QUERIES, SCORE_CATALOG, TRAIN, VALIDATE
from schemas.tables import (
    FEATURES_HASH,
    FROZEN_ALL,
    FROZEN_UNSEEN,
    ITEM_COUNTS,
    ITEM_EMBEDDINGS,
    ITEM_FEATURES,
    QUERY_EMBEDDINGS,
    QUERY_VECTORS,
    ROW_CHECKSUM,
    filtered,
)

STAGE = SCORE_CATALOG
MAX_BROADCAST_BYTES = 1 << 30

_ROWS_PER_READ = 2048
_ROWS_PER_TASK = 16_384
KEPT = ("item_id", FEATURES_HASH)
_READ = [*ITEM_FEATURES.checksummed, *FEATURE_CELLS, ROW_CHECKSUM, FEATURES_HASH]


def build(
    spark: SparkSession,
    files: TableFiles,
    model: SavedModel[ItemTowerSpec],
    constants: dict[str, Any],
    rows_at_once: int,
    precision: Precision,
    selection: Selection | None = None,
) -> WorkerRows:
    """Each item's embedding; the model travels as safetensors bytes and is built once per Python worker.

    The workers read the files of item_features themselves, so that which items share a batch follows from the files and
    not from the tasks, and write those of item_embeddings. Each task gets pieces of files of about as many rows.

    Args:
        spark: The session.
        files: The pinned files of item_features.
        model: The trained model.
        constants: Columns that are equal in all rows.
        rows_at_once: Items that a worker encodes together.
        precision: What the workers compute in.
        selection: Which items, and further columns; None = all items, and none.

    Returns:
        Rows of ITEM_EMBEDDINGS, with those columns.
    """
    selection = selection or Selection()
    table = filtered(ITEM_EMBEDDINGS, selection.filters)
    kept = (*KEPT, *[name for name in table.column_names if name not in ITEM_EMBEDDINGS.column_names])
    read_columns = [*_READ, *kept[len(KEPT) :]]
    spec = model.spec
    broadcast, sha256 = spark.sparkContext.broadcast(model.weights), hashlib.sha256(model.weights).hexdigest()
    chosen = spark.sparkContext.broadcast(selection)
    schema = arrow_schema(table)
    scalars = {name: pa.scalar(value, schema.field(name).type) for name, value in constants.items()}

    def score_files(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        scorer = load_once(broadcast.value, spec, rows_at_once, precision, sha256)
        frozen, keys = chosen.value.frozen, chosen.value.keys
        vectors = with_frozen(scorer.score_batch, frozen) if frozen else scorer.score_batch
        score = batch_function(kept, {"embedding": vectors})
        numbers = (number for batch in batches for number in batch.column("id").to_pylist())
        pieces = (piece for number in numbers for piece in dealt[number])
        read = (
            batch
            for piece in pieces
            for batch in file_batches(piece.uri, read_columns, _ROWS_PER_READ, ITEM_FEATURES, piece.row_groups)
        )
        for scored in score(read if keys is None else rows_of_keys(read, keys, rows_at_once)):
            repeated = [pa.repeat(value, len(scored)) for value in scalars.values()]
            yield pa.RecordBatch.from_arrays([*scored.columns, *repeated], [*scored.schema.names, *scalars])

    tasks = max(spark.sparkContext.defaultParallelism, files.row_count // _ROWS_PER_TASK)
    dealt = deal(pieces_of(files, _ROWS_PER_TASK), tasks)
    # One number in each partition, as a shuffle of so few rows leaves half of the partitions empty.
    return WorkerRows(spark.range(0, len(dealt), 1, max(len(dealt), 1)).toDF("id"), score_files)


def build_queries(
    queries: DataFrame, model: SavedModel[ItemTowerSpec], kinds: set[str], fallback: str = ""
) -> WorkerRows:
    """The vectors of the queries of some kinds; the adapter travels with the function, which Spark broadcasts.

    Args:
        queries: Rows of QUERY_EMBEDDINGS.
        model: The trained model.
        kinds: Query kinds of the tasks; the items were fitted to no others.
        fallback: What takes the place of the model's vectors; frozen items are compared with frozen queries.

    Returns:
        Rows of QUERY_VECTORS.

    Raises:
        InputError: the model adapts queries, and was not trained on one of these kinds.
    """
    adapter = None if fallback == FROZEN_ALL else saved_adapter(model)
    if adapter is not None:
        for kind in sorted(kinds):
            adapter.number_of(kind)
    asked = queries.where(F.col("query_kind").isin(*kinds))
    asked = asked.select("query_id", "query_kind", query_key("query_id").alias("query_key"), "query_embedding")
    return WorkerRows(asked, query_batches(adapter, published_id(model, fallback)))


def published_id(model: SavedModel[ItemTowerSpec], fallback: str) -> str:
    """The model_id of published rows: vectors of which some are frozen are another space than the model's own."""
    return f"{model.model_id}-{fallback.replace('_', '-')}" if fallback else model.model_id


def run(spark: SparkSession, settings: Settings) -> None:
    """Score and publish."""
    with JobRun(spark, settings, STAGE) as job:
        previous = gates.published(settings)
        gates.require_newer_date(previous, settings)
        model = load_model(job.record(TRAIN).metrics.model_uri, ItemTowerSpec)
        _refuse_large(model.weights)
        # Token ids of another vocabulary, and queries of another space, than the model was trained with.
        job.require_agreement([EMBED_QUERIES, TRAIN])
        # The version that the record names: a newer one, of a run that died, may have ids of another vocabulary.
        made = job.record(BUILD_ITEM_FEATURES)
        require_same_graph(STAGE, made, job.record(TRAIN), model.spec.model.sequence)
        require_image_length(made.metrics, model.spec.model.image_length)
        features = made.output(ITEM_FEATURES.name)
        files = pin_version(features)
        job.count_input(TableVersion(ITEM_FEATURES.name, features.uri, files.version, files.row_count))
        gates.require_sound_catalog(previous, made.metrics, files.row_count, settings)
        decision = floor_of(job)
        fallback = decision.fallback
        # Decided once, so that all rows of a version are computed alike.
        precision = choose_precision(settings.score.precision, torch.device("cpu"))
        identity = published_id(model, fallback)
        gates.require_not_rolled_back(settings, identity)
        constants = {"model_id": identity, "scored_ts": settings.dates.end}
        kinds = {task.query_kind for task in settings.task_list}
        queries = build_queries(job.read(QUERY_EMBEDDINGS), model, kinds, fallback)
        table = settings.score.filtered(ITEM_EMBEDDINGS)
        scoring = scoring_of(identity, precision, settings.score.filters)
        kept = kept_version(settings, scoring, precision, fallback)
        compared = compare(job, made, previous, kept)
        changes = compared.changes
        gates.require_known_ids(compared.ids, settings.gates)
        keys = compared.keys
        count = files.row_count if keys is None else len(keys)
        selection = Selection(keys, _replacement(job, fallback), settings.score.filters)
        to_score = files if compared.features == features else pin_version(compared.features, may_be_empty=True)
        scored = build(spark, to_score, model, constants, settings.score.rows_per_batch, precision, selection)
        items = job.stage_worker_rows(scored, table, row_count=count)
        answers = query_vectors(job, queries, kinds, kept)
        new = table_io.read_files(spark, items.uris, table)
        is_same = previous is not None and previous.metrics.published_id == identity
        health = _health(job, new, files.row_count, answers, compared, is_same)
        gates.require_sound_vectors(health, previous.metrics.health if previous else None, settings.gates)
        whole = new if changes is None or compared.published is None else with_changes(compared.published, changes, new)
        short = stage_short(job, Items(new, whole, files.row_count, model.model_id, changes, kept), answers)
        if short is not None:
            gates.require_small_loss(short.metrics, settings.gates)
        trained_as_of = date_of(job.record(TRAIN))
        counted = made.metrics.items_without_text, made.metrics.items_without_images
        spaces = {kind: job.made_with[space_of(kind)] for kind in sorted(kinds) if space_of(kind) in job.made_with}
        job.metrics = ScoreMetrics(
            model.model_id, precision, *counted, fallback=fallback, floor=decision.lines, published_id=identity,
            spaces=spaces, health=health, scoring=scoring, scored=count, trained_as_of=trained_as_of,
            short=short.metrics if short else None, features_checksum=files.checksum,
        )  # fmt: skip
        note = job.note(made_with=job.made_with)
        candidate = Candidate(items, answers, note, job.metrics, files.row_count, short.staged if short else None)
        _publish(job, candidate, changes, new, short)


def _publish(
    job: JobRun[ScoreMetrics],
    candidate: Candidate,
    changes: Changes | None,
    scored: DataFrame,
    short: StagedShort | None,
) -> None:
    """Make the candidate live, by a merge where only changed items were scored; or keep it beside what is."""
    layout, outputs = job.settings.layout, candidate.outputs
    if job.settings.score.publish == "live":
        by_merge = None if changes is None else partial(merge_published, layout, candidate.items.table, changes, scored)
        merge_short = None
        if short is not None and short.kept is not None and changes is not None:
            merge_short = partial(short.merge, changes)
        outputs = candidate.make_live(layout, by_merge, merge_short)
        remove_candidate(layout)
        if changes is not None:
            candidate.items.discard()
            changes.forget()
    else:
        keep_candidate(layout, candidate)
    for output in outputs:
        job.count_output(output)


def _health(
    job: JobRun[ScoreMetrics], scored: DataFrame, rows: int, answers: Staged, compared: Comparison, is_same: bool
) -> Health:
    """What the staged vectors look like beside those that are published."""
    published, changes = compared.published, compared.changes
    changed = None if changes is None else changes.rows
    found = vector_health.health(scored, published, rows, changed, is_same_model=is_same)
    print(f"  vectors: {found}", flush=True)
    queries = table_io.read_files(job.spark, answers.uris, QUERY_VECTORS)
    whole = scored if published is None or changes is None else with_changes(published, changes, scored)
    return vector_health.with_canaries(found, whole, queries, job.settings.canaries)


def floor_of(job: JobRun[ScoreMetrics]) -> Decision:
    """What to publish by the verdicts of validate, said aloud; the model's own vectors where it validated nothing.

    Raises:
        InputError: the model is below a rival and floor.gate is "refuse", or the verdicts are of another model.
    """
    gate, trained = job.settings.floor.gate, job.record(TRAIN).metrics
    if gate == "off":
        return Decision("", ('not compared with simple rivals: floor.gate is "off"',))
    if not trained.validated_model_uri:
        return Decision("", ("not compared with simple rivals: training validated nothing",))
    record = job.record(VALIDATE)
    was_off = record.settings.get("floor", {}).get("gate") == "off"
    if record.metrics.model_id != trained.model_id or was_off:
        found = 'a run with floor.gate = "off"' if was_off else f"verdicts on {record.metrics.model_id}"
        raise InputError(
            f"run record of {VALIDATE.name}",
            "floor",
            expected=f"verdicts on {trained.model_id}, which train saved last",
            found=found,
            cure=run_again([VALIDATE.name]),
        )
    decision = decide(record.metrics, gate)
    for line in decision.lines:
        print(f"  floor: {line}", flush=True)
    return decision


def _replacement(job: JobRun[ScoreMetrics], fallback: str) -> Replacement | None:
    """Which items a fallback is about: those without a training pair, or all."""
    if fallback != FROZEN_UNSEEN:
        return Replacement(None) if fallback else None
    counts = job.record(BUILD_TRAINING_TABLES).output(ITEM_COUNTS.name)
    rows = table_io.read(job.spark, counts.uri, ITEM_COUNTS, version=counts.version)
    return Replacement(np.unique(rows.select("item_key").toArrow()["item_key"].to_numpy()))


def _refuse_large(weights: bytes) -> None:
    """Weights that cannot be broadcast."""
    if len(weights) > MAX_BROADCAST_BYTES:
        raise InputError(
            "model",
            "weights",
            expected=f"at most {MAX_BROADCAST_BYTES:,} bytes, to be broadcast",
            found=f"{len(weights):,} bytes",
            cure="Lower model.hash_rows or the vocabulary sizes in [features].",
        )


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
