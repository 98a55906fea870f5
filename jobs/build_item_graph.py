"""Join items by what they were engaged with together, walk the graph from every item, and write what it has met.

Reads:  engagement_logs, query_embeddings, items, item_text_embeddings, item_images (unless inputs.has_images is false)
Writes: graph_nodes, graph_pairs, rejected_graph_events
One row of graph_nodes is one product with its frozen features, its neighbours and its hard negatives; one of
graph_pairs is one item in one group, with another item drawn from that group; one of rejected_graph_events is one event
that no window takes, with the reason.
Only events from before the validation window count: nothing that is measured later shows through the graph.
Safe to rerun because every draw is a hash of (seed, item, walk, step), weights are whole numbers, and each table is
replaced in one commit.

    spark-submit --properties-file spark-defaults.conf jobs/build_item_graph.py --settings pipeline.toml
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.runtime import command_line
from jobs.runtime.job_run import JobRun
from jobs.runtime.rejects import require_few_rejects
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.engagements import EVERYDAY_REASONS, TRAINING, checked_engagements
from jobs.transforms.graph_edges import UNIT, alias_rows, capped, graph_edges, reference_time
from jobs.transforms.graph_nodes import found_by_item, node_rows, pack_nodes
from jobs.transforms.graph_walks import drawn_pairs, ranked, visits, walkers_from
from jobs.transforms.hot_keys import hot_keys
from jobs.transforms.item_images import images_by_item, packed_images, split_images
from jobs.transforms.items import split_items
from jobs.transforms.keys import item_key
from jobs.transforms.quarantine import accepted, rejected
from schemas.errors import TableError
from schemas.graph_tables import GRAPH_NODES, GRAPH_PAIRS, REJECTED_GRAPH_EVENTS
from schemas.metrics import GraphMetrics
from schemas.settings import Settings
from schemas.settings.graph import GraphSettings
from schemas.stages import BUILD_ITEM_GRAPH
from schemas.tables import EMBEDDING_DIM, ENGAGEMENT_LOGS, ITEM_IMAGES, ITEM_TEXT_EMBEDDINGS, ITEMS, QUERY_EMBEDDINGS

STAGE = BUILD_ITEM_GRAPH

_KEYS = ("query_id", "item_id")


class Graph(NamedTuple):
    """What the walks go over.

    Attributes:
        edges: Rows of `capped`.
        of_items: Alias rows from items to groups.
        of_groups: Alias rows from groups to items.
    """

    edges: DataFrame
    of_items: DataFrame
    of_groups: DataFrame


def build_edges(events: DataFrame, items: DataFrame, settings: Settings) -> DataFrame:
    """The edges before the caps, of the events before the validation window; see `graph_edges`.

    Args:
        events: Accepted events of the training window, with user_id.
        items: item_key of the usable items.
        settings: The dates, and [graph].
    """
    end, named = settings.dates.validation_start, settings.graph.half_life_days
    half_life_days = settings.half_life_days if named == "auto" else named
    return graph_edges(
        events.where(F.col("event_ts") < F.lit(end)),
        items,
        join_by=settings.graph.join_by,
        reference=reference_time(end, half_life_days),
        half_life_days=half_life_days,
    )


def build_graph(edges: DataFrame) -> Graph:
    """Both sides of the graph as rows to draw from.

    Args:
        edges: Rows of `capped`; read several times: persist them.
    """
    sides = (alias_rows(edges, node=one, other=two) for one, two in (("item", "group"), ("group", "item")))
    # Laid out once as every step's join wants them.
    of_items, of_groups = (rows.repartition("node", "slot").persist(StorageLevel.MEMORY_AND_DISK) for rows in sides)
    return Graph(edges, of_items, of_groups)


def build_found(graph: Graph, settings: GraphSettings) -> DataFrame:
    """What the walkers of each item have met most often; see `found_by_item`."""
    walkers = walkers_from(graph.edges, settings.walks)
    met = visits(
        walkers, graph.of_items, graph.of_groups, hops=settings.hops, restart=settings.restart, seed=settings.seed
    )
    return found_by_item(ranked(met, settings.ranks))


def build_nodes(nodes: DataFrame, settings: GraphSettings) -> WorkerRows:
    """Rows of GRAPH_NODES, from those of `node_rows`, with the number of items without neighbours."""

    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows = pack_nodes(batch, settings.neighbours, settings.hard_from)
            is_alone = pa.array(np.array([not cell for cell in rows.column("neighbour_keys").to_pylist()], np.int64))
            yield pa.RecordBatch.from_arrays(
                [*rows.columns, is_alone], [*rows.schema.names, "items_without_neighbours"]
            )

    return WorkerRows(nodes, pack, ("items_without_neighbours",))


def build_pairs(graph: Graph, settings: GraphSettings) -> WorkerRows:
    """Rows of GRAPH_PAIRS, in an order that looks random: a file's rows are read one behind the other."""
    pairs = drawn_pairs(graph.edges, graph.of_groups, seed=settings.seed)
    weighted = pairs.withColumn("pair_weight", (F.col("weight") / UNIT).cast("float")).drop("weight")
    mixed = weighted.sortWithinPartitions(F.xxhash64("query_item_key", "item_key"), "query_item_key", "item_key")
    return WorkerRows(mixed, iter)


def run(spark: SparkSession, settings: Settings) -> None:
    """Read the log, queries and items; write nodes, pairs and rejects."""
    with JobRun(spark, settings, STAGE) as job:
        items = split_items(job.read(ITEMS))[0].persist(StorageLevel.MEMORY_AND_DISK)
        known = items.select("item_id", item_key("item_id").alias("item_key"))
        engagements = _engagements(job, known).persist(StorageLevel.MEMORY_AND_DISK)
        job.write_rejected(rejected(engagements, REJECTED_GRAPH_EVENTS), REJECTED_GRAPH_EVENTS)
        require_few_rejects(job, ENGAGEMENT_LOGS, REJECTED_GRAPH_EVENTS, harmless=EVERYDAY_REASONS)
        usable = accepted(engagements).where(F.col("window") == TRAINING)
        events = usable.where(F.col("event_ts") < F.lit(settings.dates.validation_start))
        whole = build_edges(usable, known, settings).persist(StorageLevel.MEMORY_AND_DISK)
        limits = {"max_groups": settings.graph.max_groups, "max_items": settings.graph.max_items}
        edges = capped(whole, **limits).persist(StorageLevel.MEMORY_AND_DISK)
        metrics = _counted(job, events, whole, edges)
        graph = build_graph(edges)
        pairs = job.write_worker_rows(build_pairs(graph, settings.graph), GRAPH_PAIRS)
        nodes = node_rows(
            items.select("item_id"),
            job.read(ITEM_TEXT_EMBEDDINGS),
            _images(job, items),
            build_found(graph, settings.graph),
            image_length=metrics.node_length - EMBEDDING_DIM,
        )
        written = job.write_worker_rows(build_nodes(nodes, settings.graph), GRAPH_NODES)
        alone = written.sums["items_without_neighbours"]
        job.metrics = replace(metrics, pairs=pairs.rows, items_without_neighbours=alone)
        for cached in (graph.of_items, graph.of_groups, edges, whole, engagements, items):
            cached.unpersist()


def _engagements(job: JobRun[GraphMetrics], known: DataFrame) -> DataFrame:
    """Every event with its window and its verdict, by the checks of build_training_tables."""
    logs, queries = job.read(ENGAGEMENT_LOGS), job.read(QUERY_EMBEDDINGS)
    hot = hot_keys(logs, _KEYS, row_count=job.row_count(ENGAGEMENT_LOGS))
    return checked_engagements(logs, queries, known, settings=job.settings, hot=hot, kept=("user_id",))


def _has_images(settings: Settings) -> bool:
    """Whether the shop has images of its own: graph vectors that take their place are no features of the graph."""
    return settings.inputs.has_images and not settings.has_graph_vectors_alone


def _images(job: JobRun[GraphMetrics], items: DataFrame) -> DataFrame | None:
    """The usable images of each item; build_item_features says which are not, and why."""
    if not _has_images(job.settings):
        return None
    model = job.settings.model
    usable, _ = split_images(packed_images(job.read(ITEM_IMAGES), model.image_length), items, model.image_length)
    return images_by_item(usable, model.max_images)


def _counted(job: JobRun[GraphMetrics], events: DataFrame, whole: DataFrame, edges: DataFrame) -> GraphMetrics:
    """What the graph is made of.

    Raises:
        TableError: no two items are in one group.
    """
    settings, read, used = job.settings, job.row_count(ENGAGEMENT_LOGS), events.count()
    before = whole.count()
    left = edges.agg(F.count("*").alias("edges"), F.count_distinct("group_key").alias("groups")).first()
    assert left is not None
    if not left["edges"]:
        raise TableError(
            ENGAGEMENT_LOGS.name,
            "(all)",
            expected=f"two items in one group (graph.join_by = {settings.graph.join_by}) before "
            f"{settings.dates.validation_start}",
            found=f"{before:,} items in groups of one, of {used:,} events",
            cure="Join by something coarser, such as user, or raise dates.train_days.",
        )
    length = EMBEDDING_DIM + (settings.model.image_length if _has_images(settings) else 0)
    later = read - used - sum(job.rejected.values())
    return GraphMetrics(
        settings.graph.join_by, read, used, later, left["groups"], left["edges"], before - left["edges"], 0, 0, length
    )


def main() -> None:
    """Run the job from its command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
