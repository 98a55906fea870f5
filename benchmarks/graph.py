"""Graph: its walks, and the graph tower's layers, at N, 3N and 10N nodes; and layer by layer beside the recursive form.

Synthetic graphs: every item in six groups of eight on average, some near it and some anywhere; features and weights
of the tower are random, as no figure here depends on them. Walks: alias rows, 32 walks of three hops from every item,
the ten nearest, written as graph_nodes. Layers: both convolutions as `embed_graph` has them, of graphs with ten
neighbours a node, hashes for the incremental run and all. Growth is what a size takes over what N takes, divided by how
many times N it is. All times are CPU seconds of all processes of a contender, so that other work of the machine shows
in them as little as it can; before they count, a graph of a thousand nodes goes the same way, so that a young JVM's
compiler does not flatter large sizes.

The recursive form computes a node's neighbours anew for every node that needs them, as a program does that asks for one
node at a time: every target gets the features of all its neighbours' neighbours. It runs on fewer nodes, as it needs as
many rows as there are paths of two edges.

    python -m benchmarks.graph [--rounds N] [--small]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.contest import Contender, Figures, Outcome, Row, Turn, compete, cpu_seconds, judge, require
from benchmarks.report import Options, main, print_outcome
from benchmarks.spark_tables import session
from itemsage_model.encoders.graph_tower import GraphTowerSpec
from itemsage_model.encoders.model_files import model_bytes
from itemsage_model.serving.graph_scorer import GraphScorer
from jobs.build_item_graph import build_found, build_graph, build_nodes
from jobs.embed_graph import build_first, build_second
from jobs.runtime import table_io
from jobs.runtime.publish import write_worker_rows
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.graph_edges import UNIT, capped
from jobs.transforms.graph_layers import edges_of, first_sources, second_sources
from schemas.cells import pack_cells
from schemas.columns import Table
from schemas.graph_tables import GRAPH_LAYERS, GRAPH_NODES, ITEM_GRAPH_IMAGES
from schemas.settings import LossSettings
from schemas.settings.graph import GraphSettings
from schemas.tables import EMBEDDING_DIM, SOURCE_HASH

FACTORS = (1, 3, 10)
SETTINGS = GraphSettings(width=128)
SPEC = GraphTowerSpec(SETTINGS, LossSettings(), EMBEDDING_DIM, EMBEDDING_DIM, "synthetic")
_FIRST = 1_000
LAYERED, RECURSIVE = "layer by layer", "recursive"
_MEMORY = {"spark__driver__memory": "6g"}


def rows(options: Options) -> Iterator[Row]:
    """Walk and embed graphs of three sizes, then one small graph in both forms."""
    items, few = options.choose(100_000, 2_000), options.choose(20_000, 1_000)
    for what, turn in (("walks", walk_turn), ("layers", layer_turn)):
        contenders = [
            Contender(f"{what}, {factor} x {items:,} nodes", turn, (options.scratch, items * factor))
            for factor in FACTORS
        ]
        # One after the other: a size that waits would hold its memory.
        apart = [compete([contender], options.rounds or 1).performances for contender in contenders]
        outcome = Outcome({name: found for each in apart for name, found in each.items()}, {})
        print_outcome(f"{what} over {items:,} nodes, and multiples, CPU", "nodes", outcome)
        first, *others = (contender.name for contender in contenders)
        for factor, name in zip(FACTORS[1:], others, strict=True):
            slowness = outcome.ratios(first, name)
            yield judge("graph", f"{what}: CPU at {factor}N over {factor} x N's", "linear", slowness, at_most=1.1)
    contenders = [
        Contender(LAYERED, layer_turn, (options.scratch, few)),
        Contender(RECURSIVE, recursive_turn, (options.scratch, few)),
    ]
    outcome = compete(contenders, options.rounds or 3)
    print_outcome(f"vectors of {few:,} nodes, CPU", "nodes", outcome)
    ours, theirs = (outcome.performances[name].figures[-1]["sample"] for name in (LAYERED, RECURSIVE))
    require(np.allclose(ours, theirs, atol=2e-3), "both forms must come to the same vectors")
    yield judge("graph", f"vectors/s of {few:,} nodes", RECURSIVE, outcome.ratios(LAYERED, RECURSIVE), at_least=1)


def synthetic_edges(spark: SparkSession, items: int) -> DataFrame:
    """item_key, group_key, weight: three groups near each item, three anywhere."""
    groups = max(1, 6 * items // 8)
    number = F.explode(F.sequence(F.lit(0), F.lit(5))).alias("number")
    placed = spark.range(items).select(F.col("id").alias("item_key"), number)
    near = (F.col("item_key") * 6 / 8).cast("long") + F.col("number")
    anywhere = F.pmod(F.xxhash64("item_key", "number"), F.lit(groups))
    group = F.coalesce(F.when(F.col("number") < 3, near), anywhere).alias("group_key")
    weight = (UNIT * (1 + F.pmod(F.xxhash64("number", "item_key"), F.lit(8)))).alias("weight")
    return (
        placed.select("item_key", group, weight).groupBy("item_key", "group_key").agg(F.sum("weight").alias("weight"))
    )


def with_features(keys: DataFrame) -> DataFrame:
    """item_id, item_key and random features."""

    def draw(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            own = batch.column("item_key").to_numpy()
            numbers = np.random.default_rng(own[0]).standard_normal((len(batch), EMBEDDING_DIM)).astype("<f2")
            cells = pack_cells(numbers, np.full(len(batch), EMBEDDING_DIM))
            ids = pa.array([f"item-{key:09}" for key in own])
            yield pa.RecordBatch.from_arrays([ids, batch.column(0), cells], ["item_id", "item_key", "node_embedding"])

    return keys.select("item_key").mapInArrow(draw, "item_id string, item_key long, node_embedding binary")


def walk_turn(scratch: Path, items: int) -> Turn:
    """From capped edges to graph_nodes."""

    def turn() -> Figures:
        with session("walks", scratch, **_MEMORY) as spark:
            _walk(spark, scratch, _FIRST)
            started = cpu_seconds()
            written = _walk(spark, scratch, items)
            return {"units": written, "seconds": cpu_seconds() - started}

    return turn


def _walk(spark: SparkSession, scratch: Path, items: int) -> int:
    edges = capped(synthetic_edges(spark, items), max_groups=200, max_items=100)
    graph = build_graph(edges.persist(StorageLevel.MEMORY_AND_DISK))
    found = build_found(graph, SETTINGS)
    nodes = with_features(spark.range(items).withColumnRenamed("id", "item_key"))
    whole = nodes.join(found, on="item_key", how="left")
    written = _written(build_nodes(whole, SETTINGS), scratch / "walked", GRAPH_NODES)
    spark.catalog.clearCache()
    return written


def random_nodes(spark: SparkSession, scratch: Path, items: int) -> DataFrame:
    """Rows of GRAPH_NODES with ten random neighbours each, written once."""
    place = scratch / f"nodes-{items}"
    if not place.exists():
        drawn = F.transform(
            F.sequence(F.lit(1), F.lit(10)),
            lambda rank: F.struct(
                rank.alias("rank"),
                F.pmod(F.xxhash64("item_key", rank), F.lit(items)).alias("key"),
                (F.lit(11) - rank).cast("long").alias("visit_count"),
                F.lit(1).alias("distance"),
            ),
        )
        nodes = with_features(spark.range(items).withColumnRenamed("id", "item_key"))
        _written(build_nodes(nodes.withColumn("found", drawn), SETTINGS), place, GRAPH_NODES)
    return table_io.read(spark, str(place), GRAPH_NODES)


def _written(rows: WorkerRows, place: Path, table: Table) -> int:
    return write_worker_rows(rows, str(place), table, note={}).rows


def _scorer() -> GraphScorer:
    weights = model_bytes(SPEC.build(seed=1))
    return GraphScorer(lambda: weights, SPEC)


def layer_turn(scratch: Path, items: int) -> Turn:
    """Both layers, as the job has them."""

    def turn() -> Figures:
        with session("layers", scratch, **_MEMORY) as spark:
            nodes = random_nodes(spark, scratch, items)
            _layers(spark, scratch, random_nodes(spark, scratch, _FIRST))
            started = cpu_seconds()
            written = _layers(spark, scratch, nodes)
            seconds = cpu_seconds() - started
            return {"units": written, "seconds": seconds, "sample": _sample(spark, scratch)}

    return turn


def _layers(spark: SparkSession, scratch: Path, nodes: DataFrame) -> int:
    scorer, edges = _scorer(), edges_of(nodes)
    first = first_sources(nodes, edges).persist(StorageLevel.MEMORY_AND_DISK)
    _written(build_first(nodes, edges, first, scorer), scratch / "layers", GRAPH_LAYERS)
    layers = table_io.read(spark, str(scratch / "layers"), GRAPH_LAYERS)
    second = second_sources(first, edges)
    written = _written(build_second(nodes, edges, layers, second, scorer), scratch / "vectors", ITEM_GRAPH_IMAGES)
    spark.catalog.clearCache()
    return written


def recursive_turn(scratch: Path, items: int) -> Turn:
    """Each node with the features of all its neighbours' neighbours, and what lies between computed for it alone."""

    def turn() -> Figures:
        with session("recursive", scratch, **_MEMORY) as spark:
            nodes = random_nodes(spark, scratch, items)
            _recursive(random_nodes(spark, scratch, _FIRST), scratch)
            started = cpu_seconds()
            written = _recursive(nodes, scratch)
            seconds = cpu_seconds() - started
            return {"units": written, "seconds": seconds, "sample": _sample(spark, scratch)}

    return turn


def _recursive(nodes: DataFrame, scratch: Path) -> int:
    scorer = _scorer()
    hidden = _hidden_for_each(nodes, scorer)
    entry = F.struct("rank", "weight", F.col("message").alias("value"))
    lists = F.sort_array(F.collect_list(entry)).alias("told")
    told = hidden.where("rank >= 0").groupBy("target").agg(lists)
    own = hidden.where("rank < 0").select("target", "hidden")
    whole = own.join(told, on="target", how="left").withColumnRenamed("target", "item_key")
    whole = whole.join(nodes.select("item_id", "item_key", "node_embedding"), on="item_key", how="inner")
    source = whole.withColumn(SOURCE_HASH, F.lit(0).cast("long"))
    source = source.select("item_id", "node_embedding", "hidden", "told", SOURCE_HASH)
    return _written(WorkerRows(source, scorer.second_layer), scratch / "vectors", ITEM_GRAPH_IMAGES)


def _hidden_for_each(nodes: DataFrame, scorer: GraphScorer) -> DataFrame:
    """target, rank (-1 = itself), weight, hidden, message: the first layer of itself and each neighbour, for each."""
    edges = edges_of(nodes)
    around = edges.select(F.col("item_key").alias("target"), "rank", "weight", F.col("neighbour_key").alias("item_key"))
    itself = nodes.select(
        F.col("item_key").alias("target"), F.lit(-1).alias("rank"), F.lit(0.0).cast("float").alias("weight"), "item_key"
    )
    needed = around.unionByName(itself)
    paths = needed.join(edges.withColumnRenamed("rank", "inner").withColumnRenamed("weight", "share"), on="item_key")
    leaves = nodes.select(F.col("item_key").alias("neighbour_key"), "node_embedding")
    far = paths.join(leaves, on="neighbour_key").select("target", "rank", "inner", "share", "node_embedding")
    told = far.mapInArrow(
        _messages(scorer), "target long, rank int, inner int, share float, message binary"
    )  # fmt: skip
    entry = F.struct(F.col("inner").alias("rank"), F.col("share").alias("weight"), F.col("message").alias("value"))
    lists = told.groupBy("target", "rank").agg(F.sort_array(F.collect_list(entry)).alias("told"))
    whole = needed.join(lists, on=["target", "rank"], how="left")
    whole = whole.join(nodes.select("item_key", "node_embedding"), on="item_key", how="inner")
    return whole.mapInArrow(
        _first_layers(scorer), "target long, rank int, weight float, hidden binary, message binary"
    )  # fmt: skip


def _messages(scorer: GraphScorer):  # type: ignore[no-untyped-def]
    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            keyed = pa.RecordBatch.from_arrays(
                [batch.column("target"), batch.column("node_embedding")], ["item_key", "node_embedding"]
            )
            (told,) = scorer.first_messages([keyed])
            names = ["target", "rank", "inner", "share"]
            yield pa.RecordBatch.from_arrays([*map(batch.column, names), told.column("message")], [*names, "message"])

    return run


def _first_layers(scorer: GraphScorer):  # type: ignore[no-untyped-def]
    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            nothing = pa.array(np.zeros(len(batch), np.int64))
            columns = [pa.array([""] * len(batch)), batch.column("item_key"), batch.column("node_embedding")]
            names = ["item_id", "item_key", "node_embedding", "told", SOURCE_HASH]
            (made,) = scorer.first_layer([pa.RecordBatch.from_arrays([*columns, batch.column("told"), nothing], names)])
            kept, new = ["target", "rank", "weight"], ["hidden", "message"]
            columns = [*map(batch.column, kept), *map(made.column, new)]
            yield pa.RecordBatch.from_arrays(columns, [*kept, *new])

    return run


def _sample(spark: SparkSession, scratch: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The vectors of the first items."""
    vectors = table_io.read(spark, str(scratch / "vectors"), ITEM_GRAPH_IMAGES)
    some = vectors.where(F.col("item_id") < "item-000000050").orderBy("item_id").collect()
    return np.array([row["image_embedding"] for row in some], np.float32)


if __name__ == "__main__":
    main("benchmarks.graph")
