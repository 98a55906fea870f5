"""Give every item the vector that the graph tower makes of its features and of those around it, layer by layer.

Reads:  graph_nodes; the model that train_graph trained.
Writes: graph_layers, item_graph_images.
One row of graph_layers is one product after the first convolution; one of item_graph_images is one product with its
vector, as an image of it.
Safe to rerun because the rows follow from nodes and model alone, and each table is changed in one commit. Where the
model is that of the last run, only nodes whose own row or surroundings have changed are computed and written.

    spark-submit --properties-file spark-defaults.conf jobs/embed_graph.py --settings pipeline.toml
"""

from __future__ import annotations

from collections.abc import Mapping

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from itemsage_model.encoders.graph_tower import GraphTowerSpec
from itemsage_model.encoders.model_files import SavedModel, load_model
from itemsage_model.serving.graph_scorer import GraphScorer
from jobs.runtime import command_line, table_io
from jobs.runtime.changes import ADDED, CHANGED, Changes
from jobs.runtime.incremental import find_kept, maker, merge_worker_rows
from jobs.runtime.job_run import JobRun
from jobs.runtime.worker_rows import WorkerRows
from jobs.transforms.graph_layers import edges_of, first_sources, gathered, second_sources
from schemas.columns import Table
from schemas.contracts import IMAGES, ITEM_TEXT, require_no_later
from schemas.errors import InputError
from schemas.graph_tables import GRAPH_LAYERS, GRAPH_NODES, ITEM_GRAPH_IMAGES
from schemas.metrics import GraphVectorMetrics
from schemas.settings import Settings
from schemas.stages import BUILD_ITEM_GRAPH, EMBED_GRAPH, TRAIN_GRAPH
from schemas.tables import SOURCE_HASH

STAGE = EMBED_GRAPH


def scorer_of(spark: SparkSession, model: SavedModel[GraphTowerSpec]) -> GraphScorer:
    """The model for Spark's workers: its weights travel once."""
    sent = spark.sparkContext.broadcast(model.weights)
    return GraphScorer(lambda: sent.value, model.spec)


def build_first(nodes: DataFrame, edges: DataFrame, wanted: DataFrame, scorer: GraphScorer) -> WorkerRows:
    """Rows of GRAPH_LAYERS for some nodes.

    Args:
        nodes: Rows of GRAPH_NODES, all of them.
        edges: Rows of `edges_of`, all of them.
        wanted: item_id, item_key and SOURCE_HASH of the nodes to make; unique.
        scorer: The model.
    """
    features = nodes.select("item_key", "node_embedding")
    messages = features.mapInArrow(scorer.first_messages, "item_key long, message binary")
    own = wanted.join(features, on="item_key", how="inner")
    told = gathered(_into(edges, wanted), messages, "message")
    whole = own.join(told, on="item_key", how="left")
    return WorkerRows(whole.select("item_id", "item_key", "node_embedding", "told", SOURCE_HASH), scorer.first_layer)


def build_second(
    nodes: DataFrame, edges: DataFrame, layers: DataFrame, wanted: DataFrame, scorer: GraphScorer
) -> WorkerRows:
    """Rows of ITEM_GRAPH_IMAGES for some nodes; see `build_first`.

    Args:
        nodes: Rows of GRAPH_NODES.
        edges: Rows of `edges_of`.
        layers: Rows of GRAPH_LAYERS, all of them.
        wanted: item_id, item_key and SOURCE_HASH of the nodes to make.
        scorer: The model.
    """
    own = wanted.join(nodes.select("item_key", "node_embedding"), on="item_key", how="inner")
    own = own.join(layers.select("item_key", "hidden"), on="item_key", how="inner")
    told = gathered(_into(edges, wanted), layers, "message")
    whole = own.join(told, on="item_key", how="left")
    return WorkerRows(whole.select("item_id", "node_embedding", "hidden", "told", SOURCE_HASH), scorer.second_layer)


def _into(edges: DataFrame, wanted: DataFrame) -> DataFrame:
    """The edges from the nodes that are wanted."""
    return edges.join(wanted.select("item_key"), on="item_key", how="left_semi")


def run(spark: SparkSession, settings: Settings) -> None:
    """Read nodes and model, compute what has changed layer by layer, write."""
    with JobRun(spark, settings, STAGE) as job:
        trained = job.record(TRAIN_GRAPH)
        for record in (job.record(BUILD_ITEM_GRAPH), trained):
            require_no_later(STAGE, record, settings.dates)
        model = load_model(trained.metrics.model_uri, GraphTowerSpec)
        _require_same_features(job, model.spec, trained.made_with)
        made_by, scorer = maker(model.model_id), scorer_of(spark, model)
        nodes = job.read(GRAPH_NODES)
        edges = edges_of(nodes)
        first = first_sources(nodes, edges).persist(StorageLevel.MEMORY_AND_DISK)
        changes = find_kept(job, GRAPH_LAYERS, first, made_by)
        wanted = _wanted(first, changes)
        layers, kept_layers = _write(job, build_first(nodes, edges, wanted, scorer), GRAPH_LAYERS, changes)
        second = second_sources(first, edges).persist(StorageLevel.MEMORY_AND_DISK)
        changes = find_kept(job, ITEM_GRAPH_IMAGES, second, made_by)
        wanted = _wanted(second, changes)
        rows = build_second(nodes, edges, layers, wanted, scorer)
        _, kept_rows = _write(job, rows, ITEM_GRAPH_IMAGES, changes)
        job.metrics = GraphVectorMetrics(model.model_id, kept_layers, kept_rows, made_by)
        for cached in (first, second):
            cached.unpersist()


def _require_same_features(
    job: JobRun[GraphVectorMetrics], spec: GraphTowerSpec, trained_with: Mapping[str, str]
) -> None:
    """Refuse nodes with features of other spaces or lengths than those that the tower was trained on, or will make.

    Args:
        job: The run.
        spec: The tower.
        trained_with: made_with of its record.

    Raises:
        InputError: they are, or images now have another length than the tower's vectors.
    """
    graph, cure = job.record(BUILD_ITEM_GRAPH), "Run train_graph again on the graph there is now."
    wanted, found = (
        f"{length} numbers, texts of {space or 'none'}{f', images of {images}' if images else ''}"
        for length, space, images in (
            (spec.node_length, spec.text_space, trained_with.get(IMAGES)),
            (graph.metrics.node_length, graph.made_with.get(ITEM_TEXT, ""), graph.made_with.get(IMAGES)),
        )
    )
    if wanted != found:
        raise InputError(GRAPH_NODES.name, "node_embedding", expected=wanted, found=found, cure=cure)
    if (length := job.settings.model.image_length) != spec.dim:
        wanted, found = f"{length} numbers (model.image_length)", f"a model of vectors of {spec.dim}"
        raise InputError(ITEM_GRAPH_IMAGES.name, "image_embedding", expected=wanted, found=found, cure=cure)


def _wanted(sources: DataFrame, changes: Changes | None) -> DataFrame:
    """The nodes that are to be made: all, or those that have changed."""
    if changes is None:
        return sources
    return sources.join(F.broadcast(changes.to_make.select("item_id")), on="item_id", how="left_semi")


def _write(
    job: JobRun[GraphVectorMetrics], rows: WorkerRows, table: Table, changes: Changes | None
) -> tuple[DataFrame, int]:
    """Replace a table, or merge what has changed; returns all its rows, and how many stayed as they were."""
    if changes is None:
        written = job.write_worker_rows(rows, table)
        return table_io.read(job.spark, written.uri, table, version=written.version), 0
    made = changes.counts[ADDED] + changes.counts[CHANGED]
    _, stored = merge_worker_rows(job, rows, table, changes)
    return stored, stored.count() - made


def main() -> None:
    """Run the job from its command line."""
    command_line.main(STAGE, run, __doc__)


if __name__ == "__main__":
    main()
