"""Memory of jobs/evaluate.py by the size of the catalog: no row of the table, but how much a driver needs.

Each size gets a warehouse of its own, with as many items, one task, and a held-out pair for each 20th item; then the
stage runs as its own command, and the most that each kind of process has held is printed.

    python -m benchmarks.evaluation_memory /tmp/scratch 2000 20000
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.contest import peak_bytes
from benchmarks.spark_tables import ROOT, session
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import save_model
from jobs.transforms.keys import item_key
from pipeline.commands import environment, stage_command
from schemas.cells import pack_cells
from schemas.metrics import EventCounts, ItemMetrics, QueryMetrics, ScoreMetrics, TrainingTableMetrics, TrainMetrics
from schemas.records import RunRecord, TableVersion, write_record
from schemas.settings import FeatureSettings, LossSettings, ModelSettings
from schemas.spark import conform
from schemas.stages import EVALUATE
from schemas.tables import (
    EMBEDDING_DIM,
    ITEM_COUNTS,
    ITEM_EMBEDDINGS,
    ITEM_FEATURES,
    ITEMS,
    QUERIES,
    QUERY_EMBEDDINGS,
    held_out_pairs,
    training_pairs,
)
from schemas.tasks import Task
from schemas.warehouse import Warehouse

_ITEMS_A_PAIR = 20
_TASK = Task("closeup", "click")
_TABLES = (
    ITEMS, QUERIES, ITEM_FEATURES, ITEM_EMBEDDINGS, ITEM_COUNTS, QUERY_EMBEDDINGS, held_out_pairs(_TASK),
    training_pairs(_TASK),
)  # fmt: skip
_IMAGES, _TOKENS, _VOCABULARY = 2, 30, 1_000
_FEATURES = FeatureSettings(text_features=("title",))
_MODEL = ModelSettings(width=16, heads=2, feed_forward_width=24, head_width=16, hash_rows=64, max_images=_IMAGES)
_VECTOR = f"transform(sequence(1, {EMBEDDING_DIM}), n -> float((pmod(xxhash64(number, n), 1000) - 500) / 4600))"
_SETTINGS = """
[warehouse]
uri = "{uri}"
[dates]
as_of = 2026-03-01
train_days = 20
test_days = 7
[features]
text_features = ["title"]
[model]
width = 16
heads = 2
feed_forward_width = 24
head_width = 16
hash_rows = 64
max_images = 2
[[tasks]]
query_kind = "closeup"
engagement = "click"
"""


def tables(spark: SparkSession, items: int) -> dict[str, DataFrame]:
    """The tables that evaluate reads; all items have the same features, as only their size counts."""
    cells = {
        "text_token_ids": pack_cells(np.arange(_TOKENS, dtype="<i4"), np.array([_TOKENS])),
        "text_token_counts": pack_cells(np.array([_TOKENS], "<i4"), np.array([1])),
        "image_embeddings": pack_cells(
            np.full(_IMAGES * EMBEDDING_DIM, 1 / 16, "<f2"), np.array([_IMAGES * EMBEDDING_DIM])
        ),
        "text_embedding": pack_cells(np.full(EMBEDDING_DIM, 1 / 16, "<f2"), np.array([EMBEDDING_DIM])),
    }
    numbered = spark.range(items).select(
        F.col("id").alias("number"), F.expr("format_string('i%09d', id)").alias("item_id")
    )
    keyed = numbered.withColumn("item_key", item_key("item_id"))
    queries = keyed.where(F.col("number") % _ITEMS_A_PAIR == 0).withColumn("query_id", F.concat(F.lit("q"), "item_id"))
    pairs = queries.select(
        "query_id", "item_id", F.xxhash64("query_id").alias("query_key"), "item_key",
        F.col("item_key").alias("query_item_key"), F.lit(1).cast("long").alias("engagement_count"),
        F.lit(1.0).cast("float").alias("pair_weight"),
    )  # fmt: skip
    constant = [F.lit(value[0].as_py()).alias(name) for name, value in cells.items()]
    checks = [F.lit(0).cast("long").alias("row_checksum"), F.lit("0").alias("features_hash")]
    kind = F.lit("closeup").alias("query_kind")
    title = F.expr("concat_ws(' ', transform(sequence(1, 8), n -> concat('w', pmod(xxhash64(number, n), 5000))))")
    rows = {
        "items": numbered.select("item_id", title.alias("title")),
        "queries": queries.select("query_id", kind),
        "item_features": keyed.select(
            "item_id", "item_key", *constant, F.lit(0).alias("out_of_vocabulary_count"), *checks
        ),
        "item_embeddings": numbered.select(
            "item_id", F.expr(_VECTOR).alias("embedding"), F.lit("m").alias("model_id"), checks[1],
            F.lit("2026-03-01").cast("timestamp").alias("scored_ts"),
        ),
        "item_counts": keyed.select(
            "item_id", "item_key", F.lit("closeup_click").alias("task"), F.lit(1).cast("long").alias("pair_count"),
            F.lit(1).cast("long").alias("engagement_count"), F.lit(1).cast("long").alias("fit_pair_count"),
            F.lit(1).cast("long").alias("fit_engagement_count"),
        ),
        "query_embeddings": queries.select(
            "query_id", kind, F.expr(_VECTOR).alias("query_embedding"), F.lit("a").alias("embedding_space"),
            F.col("item_id").alias("query_item_id"),
        ),
        "held_out_closeup_click": pairs,
        "training_closeup_click": pairs.select(
            "*", F.lit(1.0).cast("float").alias("fit_weight"), F.lit(1).cast("long").alias("fit_engagement_count"),
            F.lit(0).cast("long").alias("negative_item_key"), F.lit(0.0).cast("float").alias("negative_weight"),
            F.lit(b"\0" * 2 * EMBEDDING_DIM).alias("query_embedding"), *constant, *checks
        ),
    }  # fmt: skip
    return {table.name: conform(rows[table.name], table) for table in _TABLES}


def prepare(folder: Path, items: int) -> Path:
    """A warehouse as the stages before leave it; returns its settings file."""
    uri = folder / f"warehouse-{items}"
    layout, versions = Warehouse(str(uri)), {}
    with session("tables", folder) as spark:
        for name, rows in tables(spark, items).items():
            rows.write.format("delta").mode("overwrite").save(layout.table(name))
            versions[name] = TableVersion(name, layout.table(name), 0, rows.count())
    spec = ItemTowerSpec(_MODEL, LossSettings(), _FEATURES, _VOCABULARY, {})
    model_uri, model_id = save_model(layout.models, spec.build(), spec, {})
    cut = tuple(versions[name] for name in ("item_counts", "held_out_closeup_click", "training_closeup_click"))
    metrics = TrainingTableMetrics({}, EventCounts(0, 0, 0, 0, 0))
    for record in (
        RunRecord("embed_queries", QueryMetrics(None, 0, {"closeup": "a"}), outputs=(versions["query_embeddings"],)),
        RunRecord("build_item_features", ItemMetrics(_VOCABULARY, "v"), outputs=(versions["item_features"],)),
        RunRecord("build_training_tables", metrics, outputs=cut),
        RunRecord("train", TrainMetrics(model_id, model_uri, "v")),
        RunRecord("score_catalog", ScoreMetrics("m", "float32"), outputs=(versions["item_embeddings"],)),
    ):
        write_record(layout, record)
    settings = folder / f"settings-{items}.toml"
    settings.write_text(_SETTINGS.format(uri=uri), encoding="utf-8")
    return settings


def run(settings: Path) -> dict[str, int]:
    """Evaluate; returns kind of process -> most bytes that one such process has held."""
    peaks: dict[str, int] = {}
    process = subprocess.Popen(stage_command(EVALUATE, ["--settings", str(settings)]), cwd=ROOT, env=environment())
    while process.poll() is None:
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                command = one.cmdline()
            except psutil.Error:  # it has just ended
                continue
            worker = "worker" if "pyspark.daemon" in command else "driver"
            kind = "JVM" if command and command[0].endswith("java") else worker
            peaks[kind] = max(peaks.get(kind, 0), peak_bytes(one.pid))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(process.returncode)
    return peaks


def main() -> None:
    """Measure every size that the command line names."""
    folder = Path(sys.argv[1]).resolve()
    for items in map(int, sys.argv[2:]):
        settings = folder / f"settings-{items}.toml"
        if not settings.exists():
            # A process of its own: what is measured starts with none of its memory.
            if os.fork() == 0:
                prepare(folder, items)
                os._exit(0)
            os.wait()
        started = time.monotonic()
        peaks = run(settings)
        said = ", ".join(f"{kind} {size / 1e6:,.0f} MB" for kind, size in sorted(peaks.items()))
        print(f"{items:,} items: {said}, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
