"""Measure recall@k on the held-out window, for the published embeddings and for every baseline that applies.

Reads: held_out_<task>, training_<task>, query_embeddings, queries, items, item_features, item_counts,
item_embeddings, item_short_vectors if there are any; on the demo world true_item_vectors and true_query_vectors.
Writes: evaluation; one row is one figure of one system on one task.
Safe to rerun: one Delta commit replaces the table; pairs and distractors are chosen by hash, not at random.

    spark-submit --properties-file spark-defaults.conf jobs/evaluate.py --settings pipeline.toml
"""

from __future__ import annotations

from functools import partial

import pyarrow as pa
from pyspark.sql import SparkSession

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import load_model
from jobs.evaluation.candidates import collect_pairs
from jobs.evaluation.comparison import compare
from jobs.evaluation.subject import Subject
from jobs.evaluation.systems import notes_of
from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun, side_by_side
from schemas.arrow import arrow_schema
from schemas.metrics import EvaluationMetrics
from schemas.settings import Settings
from schemas.stages import EVALUATE, SCORE_CATALOG, TRAIN
from schemas.tables import EVALUATION, FROZEN_ALL, held_out_pairs

STAGE = EVALUATE


def run(spark: SparkSession, settings: Settings) -> None:
    """Evaluate every task that has held-out pairs; where none has, the table stays without a row, and it is said."""
    k = settings.evaluate.k
    with JobRun(spark, settings, STAGE) as job:
        job.require_agreement([TRAIN])
        tables = {task: held_out_pairs(task) for task in settings.task_list}
        all_pairs = side_by_side([partial(collect_pairs, job, table, task) for task, table in tables.items()])
        task_pairs = [pairs for pairs in all_pairs if len(pairs.query)]
        rows, distractors = compare(job, task_pairs, _published(job)) if task_pairs else ([], 0)
        job.metrics = EvaluationMetrics(distractors, notes_of(all_pairs, distractors, k), k)
        for note in job.metrics.notes:
            print(f"  note: {note}", flush=True)
        table = pa.Table.from_pylist([row._asdict() for row in rows], arrow_schema(EVALUATION))
        job.write_arrow(table, EVALUATION)


def _published(job: JobRun[EvaluationMetrics]) -> Subject:
    """The published vectors; frozen ones of the whole catalog are compared with frozen queries."""
    model = load_model(job.record(TRAIN).metrics.model_uri, ItemTowerSpec)
    return Subject(model, adapts=job.record(SCORE_CATALOG).metrics.fallback != FROZEN_ALL)


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
