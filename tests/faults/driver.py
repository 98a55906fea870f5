"""A Spark driver that publishes without end, by a whole write and by a MERGE, to be killed: see test_spark.py.

python -m tests.faults.driver WAREHOUSE FIRST       says `<generation> <seconds>` after each
"""

from __future__ import annotations

import sys
import time
from datetime import datetime, timezone
from itertools import count

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.runtime.changes import find_changes
from jobs.runtime.rescoring import by_id, merge_published
from jobs.runtime.table_io import read, write
from schemas.commits import open_or_create
from schemas.spark import struct_type
from schemas.tables import ITEM_EMBEDDINGS
from schemas.warehouse import Warehouse
from tests.conftest import spark_defaults
from tests.jobs.runtime.prices import PRICES

ROWS, CHANGED = 200, 40


def publish(spark: SparkSession, warehouse: Warehouse, generation: int) -> None:
    """Prices of the generation; and the first items of item_embeddings, one of them new, that of before gone."""
    rows = spark.range(ROWS, numPartitions=2).selectExpr("concat('i', id) item_id", f"{generation}L price")
    write(rows, warehouse.table(PRICES.name), PRICES, note={"run_id": f"run {generation}"})
    names = [f"i{number}" for number in range(ROWS - 1)]
    hashes = {name: f"g{generation if number < CHANGED else 0}" for number, name in enumerate(names)}
    hashes[f"x{generation}"] = f"g{generation}"
    keys = [(name, number, text) for number, (name, text) in enumerate(hashes.items())]
    features = spark.createDataFrame(keys, "item_id string, item_key long, features_hash string")
    uri = warehouse.table(ITEM_EMBEDDINGS.name)
    open_or_create(uri, ITEM_EMBEDDINGS)
    published = read(spark, uri, ITEM_EMBEDDINGS)
    changes = find_changes(by_id(features, published, published.limit(0)), "item_id")
    scored = features.join(changes.rows.select("item_id", "change"), on="item_id", how="inner")
    now = datetime(2026, 3, 1, tzinfo=timezone.utc)
    vectors = scored.select(
        "item_id",
        F.array_repeat(F.lit(float(generation)).cast("float"), 256).alias("embedding"),
        F.lit("m").alias("model_id"),
        "features_hash",
        F.lit(now).alias("scored_ts"),
    )
    new = spark.createDataFrame(vectors.collect(), struct_type(ITEM_EMBEDDINGS))
    merge_published(warehouse, ITEM_EMBEDDINGS, changes, new, {"run_id": f"run {generation}"})
    changes.forget()


def _main() -> None:
    builder = SparkSession.builder.appName("driver").master("local[2]")
    fast = {
        "spark.driver.memory": "1g", "spark.sql.shuffle.partitions": "1", "spark.ui.enabled": "false",
        "spark.databricks.delta.snapshotPartitions": "1", "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN", "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
    }  # fmt: skip
    for key, value in (spark_defaults() | fast).items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    for generation in count(int(sys.argv[2])):
        started = time.monotonic()
        publish(spark, Warehouse(sys.argv[1]), generation)
        print(generation, time.monotonic() - started, flush=True)


if __name__ == "__main__":
    _main()
