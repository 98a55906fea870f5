"""Rows of graph_nodes: features filled with zeros, neighbours with shares that sum up to 1, hard ones behind them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from jobs.transforms.graph_nodes import node_rows, pack_nodes

FOUND = "item_key long, found array<struct<rank: int, key: long, visit_count: long, distance: int>>"


def halves(*values: float, length: int = 256) -> bytes:
    return np.array([*values, *[0.0] * (length - len(values))], "<f2").tobytes()


def test_features_are_the_text_then_the_mean_image_zeros_for_what_is_missing(spark: SparkSession) -> None:
    items = spark.createDataFrame([("a",), ("b",), ("c",)], "item_id string")
    texts = spark.createDataFrame([("a", halves(1.0)), ("b", b"")], "item_id string, text_embedding binary")
    images = [("a", [halves(3.0, 0.0, length=4), halves(0.0, 5.0, length=4)]), ("b", [halves(0.0, 0.0, 2.0, length=4)])]
    shown = spark.createDataFrame(images, "item_id string, images array<binary>")
    found = spark.createDataFrame([], FOUND)
    rows = {row["item_id"]: row for row in node_rows(items, texts, shown, found, image_length=4).collect()}
    vectors = {name: np.frombuffer(row["node_embedding"], "<f2").astype(float) for name, row in rows.items()}
    assert {len(vector) for vector in vectors.values()} == {260}
    np.testing.assert_allclose(vectors["a"][[0, 256, 257]], [1, 0.5**0.5, 0.5**0.5], atol=1e-3)
    np.testing.assert_allclose(vectors["b"][256:], [0, 0, 1, 0])
    assert not vectors["c"].any()
    without = node_rows(items, texts, None, found, image_length=0).collect()
    assert {len(row["node_embedding"]) for row in without} == {512}


def test_visits_become_neighbours_with_shares_and_hard_negatives() -> None:
    entries = [
        {"rank": rank, "key": 100 - rank, "visit_count": 6 - rank, "distance": 1 if rank == 5 else 2}
        for rank in (1, 2, 3, 4, 5)
    ]
    numbers = [("rank", pa.int32()), ("key", pa.int64()), ("visit_count", pa.int64()), ("distance", pa.int32())]
    columns = {
        "item_id": ["a", "b"],
        "item_key": [1, 2],
        "node_embedding": [b"x", b"y"],
        "found": pa.array([entries, None], pa.list_(pa.struct(numbers))),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    rows = pack_nodes(batch, neighbours=2, hard_from=4)
    near, weights, hard = (
        rows.column(name).to_pylist() for name in ("neighbour_keys", "neighbour_weights", "hard_keys")
    )
    assert np.frombuffer(near[0], "<i8").tolist() == [99, 98]
    assert np.frombuffer(weights[0], "<f4").tolist() == pytest.approx([5 / 9, 4 / 9])
    assert np.frombuffer(hard[0], "<i8").tolist() == [96], "the last one is in a group with it"
    assert near[1] == weights[1] == hard[1] == b""
