"""Compare the model with what a shop has without it, on the validation window, before anything is published.

Reads: validation_<task>, training_<task>, query_embeddings, queries, items, item_features, item_counts, and the model
that train fitted on what came before the validation window.
Writes: validation; one row is one figure of one system on one task.
Rivals know the engagements before that window alone, as the fitted model does. score_catalog reads the verdicts from
the run record. Where training validated nothing, or floor.gate is "off", there is nothing to do, and it is said.
Safe to rerun: one Delta commit replaces the table; pairs and distractors are chosen by hash, not at random.

    spark-submit --properties-file spark-defaults.conf jobs/validate.py --settings pipeline.toml
"""

from __future__ import annotations

from functools import partial

import pyarrow as pa
from pyspark.sql import SparkSession

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model
from itemsage_model.evaluation.fallback import verdicts
from jobs.evaluation.candidates import collect_pairs
from jobs.evaluation.comparison import compare
from jobs.evaluation.subject import Subject
from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun, side_by_side
from schemas.arrow import arrow_schema
from schemas.contracts import kinds_apart, run_again
from schemas.errors import InputError
from schemas.metrics import TrainMetrics, ValidateMetrics
from schemas.settings import Settings
from schemas.stages import BUILD_TRAINING_TABLES, EMBED_QUERIES, TRAIN, VALIDATE
from schemas.tables import ITEM_COUNTS, VALIDATION, validation_pairs

STAGE = VALIDATE


def run(spark: SparkSession, settings: Settings) -> None:
    """Measure the fitted model and its rivals; where there is none, the table stays without a row, and it is said."""
    metric = f"recall@{settings.evaluate.k}"
    with JobRun(spark, settings, STAGE) as job:
        job.require_agreement([EMBED_QUERIES, TRAIN])
        trained = job.record(TRAIN).metrics
        note = _why_not(settings, trained)
        rows = []
        if not note:
            _require_same_window(job)
            tables = {task: validation_pairs(task) for task in settings.task_list}
            found = side_by_side([partial(collect_pairs, job, table, task) for task, table in tables.items()])
            task_pairs = [pairs for pairs in found if len(pairs.query)]
            subject = _fitted(job, trained)
            measured, distractors = compare(job, task_pairs, subject) if task_pairs else ([], 0)
            rows = [row._asdict() for row in measured]
            note = "" if rows else "there is no validation pair"
        if note:
            job.metrics = ValidateMetrics(trained.model_id, metric, note=note)
            print(f"  floor: not compared with simple rivals: {note}", flush=True)
        else:
            job.metrics = ValidateMetrics(trained.model_id, metric, *verdicts(rows, metric), distractors=distractors)
        job.write_arrow(pa.Table.from_pylist(rows, arrow_schema(VALIDATION)), VALIDATION)


def _why_not(settings: Settings, trained: TrainMetrics) -> str:
    """Why nothing is to be measured; empty where something is."""
    if settings.floor.gate == "off":
        return 'floor.gate is "off"'
    if not trained.validated_model_uri:
        return "training validated nothing (train.validate_every, dates.validation_days)"
    return ""


def _require_same_window(job: JobRun[ValidateMetrics]) -> None:
    """Refuse training tables that were cut again since training: their window may be one that the model has seen.

    Raises:
        InputError: the model was trained on other tables than those that would be measured on.
    """
    used = job.record(TRAIN).input(ITEM_COUNTS.name)
    cut = job.record(BUILD_TRAINING_TABLES).output(ITEM_COUNTS.name)
    if used is None or used.version != cut.version:
        raise InputError(
            "validation window",
            ITEM_COUNTS.name,
            expected=f"a model trained on version {cut.version}, which build_training_tables completed last",
            found=f"one trained on version {used.version if used else 'unknown'}",
            cure=run_again([TRAIN.name]),
        )


def _fitted(job: JobRun[ValidateMetrics], trained: TrainMetrics) -> Subject:
    """The model fitted on what came before the validation window; its rivals know no more."""
    return Subject(
        load_model(trained.validated_model_uri, ItemTowerSpec),
        is_published=False,
        count="fit_engagement_count",
        weight="fit_weight",
        has_fallback=not kinds_apart(job.made_with, [task.query_kind for task in job.settings.task_list]),
    )


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
