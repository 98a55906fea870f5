"""One convolution's joins: neighbours in order, and hashes that change where a surrounding does and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
from pyspark.sql import DataFrame, SparkSession

from jobs.transforms.graph_layers import edges_of, first_sources, gathered, second_sources

NODE = "item_id string, item_key long, node_embedding binary, neighbour_keys binary, neighbour_weights binary"


def nodes_from(
    spark: SparkSession, around: dict[int, list[int]], features: dict[int, bytes] | None = None
) -> DataFrame:
    rows: list[Any] = []
    for key, near in around.items():
        weights = np.full(len(near), 1 / max(1, len(near)), "<f4").tobytes()
        feature = (features or {}).get(key, b"same")
        rows.append((f"i{key}", key, feature, np.array(near, "<i8").tobytes(), weights))
    return spark.createDataFrame(rows, NODE)


def hashes(nodes: DataFrame) -> tuple[dict[int, int], dict[int, int]]:
    edges = edges_of(nodes)
    first = first_sources(nodes, edges)
    of_key = [
        {row["item_key"]: row["source_hash"] for row in f.collect()} for f in (first, second_sources(first, edges))
    ]
    return of_key[0], of_key[1]


def test_what_neighbours_have_comes_in_the_order_of_their_ranks(spark: SparkSession) -> None:
    edges = edges_of(nodes_from(spark, {1: [3, 2], 2: [], 3: [1]}))
    values = spark.createDataFrame([(1, "one"), (2, "two"), (3, "three")], "item_key long, name string")
    found = {row["item_key"]: row["told"] for row in gathered(edges, values, "name").collect()}
    assert [entry["value"] for entry in found[1]] == ["three", "two"]
    assert [entry["weight"] for entry in found[1]] == [0.5, 0.5]
    assert found.keys() == {1, 3}


CHAIN = {1: [2], 2: [3], 3: [4], 4: [5], 5: [4], 6: []}


def changed(spark: SparkSession, other: DataFrame) -> tuple[set[int], set[int]]:
    before, after = hashes(nodes_from(spark, CHAIN)), hashes(other)
    first, second = (
        {key for key in old if old[key] != new[key]} for old, new in zip(before, after, strict=True)
    )  # fmt: skip
    return first, second


def test_a_changed_edge_touches_its_neighbourhood_only(spark: SparkSession) -> None:
    # 4 now looks at 6: 3 and 5, which are told by 4, follow one layer later.
    assert changed(spark, nodes_from(spark, CHAIN | {4: [6]})) == ({4}, {3, 4, 5})


def test_changed_features_reach_as_far_as_the_layers_do(spark: SparkSession) -> None:
    assert changed(spark, nodes_from(spark, CHAIN, {4: b"new"})) == ({3, 4, 5}, {2, 3, 4, 5})
