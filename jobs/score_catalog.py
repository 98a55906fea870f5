"""Score the whole catalog with the trained model.

Reads: item_features at the version that its record names, and the model that the record of train names.
Writes: item_embeddings; one row is one product of the catalog with its published embedding.
Safe to rerun: one Delta commit replaces the table, and equal inputs give equal rows (scored_ts is the logical date).

    spark-submit --properties-file spark-defaults.conf jobs/score_catalog.py --settings pipeline.toml
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import torch
from pyspark.sql import SparkSession

from itemsage_model.data.parquet_files import file_batches
from itemsage_model.data.pinned_files import TableFiles, pin_files, require_image_length
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import SavedModel, load_model
from itemsage_model.encoders.precision import Precision, choose_precision
from itemsage_model.serving.scorer import batch_function, load_once
from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun
from jobs.runtime.worker_rows import WorkerRows
from schemas.arrow import arrow_schema
from schemas.elements import FEATURE_CELLS
from schemas.errors import InputError, TableError
from schemas.metrics import ItemMetrics, ScoreMetrics, TrainMetrics
from schemas.records import TableVersion, read_record
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_FEATURES, SCORE_CATALOG, TRAIN
from schemas.tables import ITEM_EMBEDDINGS, ITEM_FEATURES

STAGE = SCORE_CATALOG
MAX_BROADCAST_BYTES = 1 << 30

_ROWS_PER_READ = 2048
_ROWS_PER_TASK = 16_384
KEPT = ("item_id", "features_hash")


def build(
    spark: SparkSession,
    files: TableFiles,
    model: SavedModel[ItemTowerSpec],
    constants: dict[str, Any],
    rows_at_once: int,
    precision: Precision,
) -> WorkerRows:
    """Each item's embedding; the model travels as safetensors bytes and is built once per Python worker.

    The workers read the files of item_features themselves, so that which items share a batch follows from the files and
    not from the tasks, and write those of item_embeddings. No file is split.

    Args:
        spark: The session.
        files: The pinned files of item_features.
        model: The trained model.
        constants: Columns that are equal in all rows.
        rows_at_once: Items that a worker encodes together.
        precision: What the workers compute in.

    Returns:
        Rows of ITEM_EMBEDDINGS.
    """
    spec = model.spec
    broadcast, sha256 = spark.sparkContext.broadcast(model.weights), hashlib.sha256(model.weights).hexdigest()
    schema = arrow_schema(ITEM_EMBEDDINGS)
    scalars = {name: pa.scalar(value, schema.field(name).type) for name, value in constants.items()}

    def score_files(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        scorer = load_once(broadcast.value, spec, rows_at_once, precision, sha256)
        score = batch_function(KEPT, {"embedding": scorer.score_batch})
        for uri in (uri for batch in batches for uri in batch.column("uri").to_pylist()):
            for scored in score(file_batches(uri, [*KEPT, *FEATURE_CELLS], _ROWS_PER_READ)):
                repeated = [pa.repeat(value, len(scored)) for value in scalars.values()]
                yield pa.RecordBatch.from_arrays([*scored.columns, *repeated], [*scored.schema.names, *scalars])

    tasks = max(spark.sparkContext.defaultParallelism, files.row_count // _ROWS_PER_TASK)
    uris = spark.createDataFrame(pa.table({"uri": files.uris})).repartition(min(tasks, len(files.uris)))
    return WorkerRows(uris, score_files)


def run(spark: SparkSession, settings: Settings) -> None:
    """Score and publish."""
    with JobRun(spark, settings, STAGE) as job:
        trained = read_record(settings.layout, TRAIN)
        model = load_model(trained.metrics.model_uri, ItemTowerSpec)
        _refuse_large(model.weights)
        # The version that the record names: a newer one, of a run that died, may have ids of another vocabulary.
        made = read_record(settings.layout, BUILD_ITEM_FEATURES)
        _refuse_other_vocabulary(made.metrics, trained.metrics)
        require_image_length(made.metrics, model.spec.model.image_length)
        features = made.output(ITEM_FEATURES.name)
        files = pin_files(ITEM_FEATURES.name, features.uri, features.version)
        job.count_input(TableVersion(ITEM_FEATURES.name, features.uri, files.version, files.row_count))
        # Decided once, so that all rows of a version are computed alike.
        precision = choose_precision(settings.score.precision, torch.device("cpu"))
        constants = {"model_id": model.model_id, "scored_ts": settings.dates.end}
        scored = build(spark, files, model, constants, settings.score.rows_per_batch, precision)
        job.write_worker_rows(scored, ITEM_EMBEDDINGS, row_count=files.row_count)
        job.metrics = ScoreMetrics(model.model_id, precision)


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


def _refuse_other_vocabulary(made: ItemMetrics, trained: TrainMetrics) -> None:
    """Token ids mean something only with the vocabulary they were made with."""
    if made.vocabulary_hash != trained.vocabulary_hash:
        raise TableError(
            ITEM_FEATURES.name,
            "text_token_ids",
            expected=f"ids of the vocabulary that the model was trained with ({trained.vocabulary_hash})",
            found=f"ids of another one ({made.vocabulary_hash})",
            cure="Train again: run build_training_tables and train.",
        )


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE.name, run, __doc__)


if __name__ == "__main__":
    main()
