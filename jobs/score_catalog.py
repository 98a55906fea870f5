"""Score the whole catalog with the trained model.

Reads: item_features, and the model that the record of train names.
Writes: item_embeddings; one row is one product of the catalog with its published embedding.
Safe to rerun: one Delta commit replaces the table, and equal inputs give equal rows (scored_ts is the logical date).

    spark-submit --properties-file spark-defaults.conf jobs/score_catalog.py --settings pipeline.toml
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from itemsage_model.batch import FEATURE_CELLS
from itemsage_model.checkpoint import ModelSpec, load_model
from itemsage_model.parquet_files import file_batches
from itemsage_model.precision import Precision, choose
from itemsage_model.reader import TableFiles, pin_files
from itemsage_model.scorer import batch_function, load_once
from jobs import command_line
from jobs.run import Run
from schemas.columns import TableError
from schemas.records import read_record
from schemas.settings import Settings
from schemas.tables import EMBEDDING_DIM, ITEM_EMBEDDINGS, ITEM_FEATURES

STAGE = "score_catalog"
MAX_BROADCAST_BYTES = 1 << 30

_ROWS_PER_READ = 2048
_ROWS_PER_TASK = 16_384
KEPT = ("item_id", "features_hash")


def build(
    spark: SparkSession, files: TableFiles, weights: bytes, spec: ModelSpec, rows_at_once: int, precision: Precision
) -> DataFrame:
    """Each item's embedding; the model travels as safetensors bytes and is built once per Python worker.

    The workers read the files of item_features themselves, so that which items share a batch follows from the files and
    not from the tasks. It is hardly faster than to send the rows through the JVM (docs/lab-log.md); no file is split.

    Args:
        spark: The session.
        files: The pinned files of item_features.
        weights: The model's weights as safetensors.
        spec: What they are.
        rows_at_once: Items that a worker encodes together.
        precision: What the workers compute in.

    Returns:
        item_id, features_hash, embedding.
    """
    broadcast = spark.sparkContext.broadcast(weights)

    def score_partition(batches):  # type: ignore[no-untyped-def]
        scorer = load_once(broadcast.value, spec, rows_at_once, precision)
        score = batch_function(KEPT, {"embedding": scorer.score_batch})
        for uri in (uri for batch in batches for uri in batch.column("uri").to_pylist()):
            yield from score(file_batches(uri, [*KEPT, *FEATURE_CELLS], _ROWS_PER_READ))

    schema = T.StructType(
        [
            *(T.StructField(name, T.StringType(), False) for name in KEPT),
            T.StructField("embedding", T.ArrayType(T.FloatType(), False), False),
        ]
    )
    tasks = max(spark.sparkContext.defaultParallelism, files.row_count // _ROWS_PER_TASK)
    uris = spark.createDataFrame(pa.table({"uri": files.uris})).repartition(min(tasks, len(files.uris)))
    return uris.mapInArrow(score_partition, schema)


def run(spark: SparkSession, settings: Settings) -> None:
    """Score and publish."""
    with Run(spark, settings, STAGE) as run_:
        trained = read_record(settings.warehouse.uri, "train")
        weights, spec, facts = load_model(trained["figures"]["model_uri"])
        if len(weights) > MAX_BROADCAST_BYTES:
            raise TableError(
                "model",
                "weights",
                expected=f"at most {MAX_BROADCAST_BYTES:,} bytes, to be broadcast",
                found=f"{len(weights):,} bytes",
                cure="Lower model.hash_rows or the vocabulary sizes in [features].",
            )
        run_.read(ITEM_FEATURES)
        features = run_.inputs[-1]
        files = pin_files(ITEM_FEATURES.name, features["uri"], features["version"])
        _refuse_other_vocabulary(settings, trained)
        # Decided once, so that all rows of a version are computed alike.
        precision = choose(settings.score.precision, torch.device("cpu"))
        run_.figures["precision"] = precision
        scored = build(spark, files, weights, spec, settings.score.rows_per_batch, precision)
        published = scored.withColumns(
            {"model_id": F.lit(facts["model_id"]), "scored_ts": F.lit(settings.dates.end).cast("timestamp")}
        )
        checks = {"embedding_length": f"size(embedding) = {EMBEDDING_DIM}"}
        written = run_.write(published, ITEM_EMBEDDINGS, checks=checks)
        _require_whole_catalog(written.rows, features["rows"])
        run_.figures["model_id"] = facts["model_id"]


def _refuse_other_vocabulary(settings: Settings, trained: dict[str, Any]) -> None:
    """Token ids mean something only with the vocabulary they were made with."""
    expected = trained["figures"]["vocabulary_hash"]
    found = read_record(settings.warehouse.uri, "build_item_features")["figures"]["vocabulary_hash"]
    if found != expected:
        raise TableError(
            ITEM_FEATURES.name,
            "text_token_ids",
            expected=f"ids of the vocabulary that the model was trained with ({expected})",
            found=f"ids of another one ({found})",
            cure="Train again, or restore the vocabulary table and run build_item_features.",
        )


def _require_whole_catalog(written: int, expected: int) -> None:
    if written != expected:
        raise TableError(
            ITEM_EMBEDDINGS.name,
            "item_id",
            expected=f"{expected} rows, one for each row of item_features",
            found=f"{written}",
            cure="Run the job again; the previous version of the table is still readable.",
        )


def main() -> None:
    """Entry point of spark-submit."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
