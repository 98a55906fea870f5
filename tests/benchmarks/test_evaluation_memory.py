"""The warehouse of the benchmark of the evaluation's memory: every table as it is declared today."""

from __future__ import annotations

from pyspark.sql import SparkSession

from benchmarks.evaluation_memory import tables


def test_its_tables_have_every_declared_column(spark: SparkSession) -> None:
    made = tables(spark, 40)
    assert {name: rows.count() for name, rows in made.items()} == {
        "items": 40, "queries": 2, "item_features": 40, "item_embeddings": 40, "item_counts": 40, "query_embeddings": 2,
        "held_out_closeup_click": 2, "training_closeup_click": 2,
    }  # fmt: skip
