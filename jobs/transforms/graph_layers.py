"""One convolution's joins: what each node's neighbours have for it, in the order of their ranks, in the node's row.

Layer by layer: a node is computed once a layer, however many nodes it is a neighbour of, and whoever needs it finds it
by one join. No row holds more than one node's direct neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.cells import unpack_cells
from schemas.tables import SOURCE_HASH

_EDGE = "item_key long, rank int, neighbour_key long, weight float"


def edges_of(nodes: DataFrame) -> DataFrame:
    """One row per node and neighbour: item_key, rank from 0, neighbour_key, weight.

    Args:
        nodes: Rows of GRAPH_NODES.
    """
    return nodes.select("item_key", "neighbour_keys", "neighbour_weights").mapInArrow(_unpack, _EDGE)


def _unpack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        keys, counts = unpack_cells(batch.column("neighbour_keys"), "<i8")
        weights, _ = unpack_cells(batch.column("neighbour_weights"), "<f4")
        starts = np.cumsum(counts) - counts
        ranks = (np.arange(len(keys)) - np.repeat(starts, counts)).astype(np.int32)
        item_keys = np.repeat(batch.column("item_key").to_numpy(), counts)
        columns = [pa.array(column) for column in (item_keys, ranks, keys, weights)]
        yield pa.RecordBatch.from_arrays(columns, ["item_key", "rank", "neighbour_key", "weight"])


def gathered(edges: DataFrame, values: DataFrame, name: str) -> DataFrame:
    """One row per node with neighbours: `item_key`, and `told`, a list of (rank, weight, value) by rank.

    Args:
        edges: Rows of `edges_of`.
        values: item_key, unique, and the column `name`; every neighbour is among them.
        name: What neighbours have for a node.
    """
    of_neighbours = values.select(F.col("item_key").alias("neighbour_key"), F.col(name).alias("value"))
    joined = edges.join(of_neighbours, on="neighbour_key", how="inner")
    entry = F.struct("rank", "weight", "value")
    return joined.groupBy("item_key").agg(F.sort_array(F.collect_list(entry)).alias("told"))


def first_sources(nodes: DataFrame, edges: DataFrame) -> DataFrame:
    """item_id, item_key and the SOURCE_HASH of each node's first layer: its row, and its neighbours' features."""
    features = nodes.select("item_key", F.xxhash64("node_embedding").alias("features"))
    own = nodes.select(
        "item_id", "item_key", F.xxhash64("node_embedding", "neighbour_keys", "neighbour_weights").alias("own")
    )
    return _hashed(own, gathered(edges, features, "features"))


def second_sources(first: DataFrame, edges: DataFrame) -> DataFrame:
    """The same of the second layer: what the first layer of the node and of its neighbours are made of."""
    own = first.select("item_id", "item_key", F.col(SOURCE_HASH).alias("own"))
    return _hashed(own, gathered(edges, first, SOURCE_HASH))


def _hashed(own: DataFrame, told: DataFrame) -> DataFrame:
    whole = own.join(told, on="item_key", how="left")
    return whole.select("item_id", "item_key", F.xxhash64("own", "told").alias(SOURCE_HASH))
