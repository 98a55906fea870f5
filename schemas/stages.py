"""The stages of the pipeline: what each reads, writes and counts, and their order.

Read by the pipeline, by every run (a stage opens exactly the tables that stand here), the summary, the DAG of
examples/airflow_dag.py and the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from schemas import graph_tables as g
from schemas import picture_tables as p
from schemas import query_pair_tables as q
from schemas import tables as t
from schemas.columns import Table
from schemas.metrics import (
    EvaluationMetrics,
    GraphMetrics,
    GraphVectorMetrics,
    IndexMetrics,
    ItemMetrics,
    ItemTextMetrics,
    MaintenanceMetrics,
    NoMetrics,
    PictureMetrics,
    PicturePairMetrics,
    QueryMetrics,
    QueryPairMetrics,
    ScoreMetrics,
    TrainingTableMetrics,
    TrainMetrics,
    ValidateMetrics,
    VocabularyMetrics,
)

Metrics = TypeVar("Metrics")


@dataclass(frozen=True)
class Stage(Generic[Metrics]):
    """One step of the pipeline: a command of its own that turns tables into tables.

    Attributes:
        name: Its name, that of its job file and of its run record.
        reads: The tables it may read; `training_<task>`, for one, stands for those of all tasks.
        writes: The tables it replaces; another stage reads them at the version that this one's record names.
        metrics: What it counts.
        launcher: What starts it.
        is_alone: Whether nothing else may write the warehouse meanwhile.
    """

    name: str
    reads: tuple[Table, ...]
    writes: tuple[Table, ...]
    metrics: type[Metrics]
    launcher: Literal["spark-submit", "python"] = "spark-submit"
    is_alone: bool = False


MAKE_DEMO_WORLD = Stage(
    "make_demo_world",
    (),
    (
        t.ITEMS, t.ITEM_IMAGES, p.ITEM_PICTURES, t.QUERIES, t.ENGAGEMENT_LOGS, t.TRUE_ITEM_VECTORS,
        t.TRUE_QUERY_VECTORS,
    ),
    NoMetrics,
)  # fmt: skip
"""Not of the pipeline: it stands where a shop has its own tables. Writes item_images, or else item_pictures."""

EMBED_QUERIES = Stage(
    "embed_queries", (t.QUERIES, t.ITEMS, t.ITEM_IMAGES), (t.QUERY_EMBEDDINGS, t.REJECTED_QUERIES), QueryMetrics
)  # fmt: skip
"""Reads item_images only where pictures.query_kinds names a kind of queries."""

EMBED_ITEMS = Stage("embed_items", (t.ITEMS,), (t.ITEM_TEXT_EMBEDDINGS,), ItemTextMetrics)
"""Reads the encoder that embed_queries saved, too."""

BUILD_VOCABULARY = Stage("build_vocabulary", (t.ITEMS,), (t.VOCABULARY,), VocabularyMetrics)

EMBED_IMAGES = Stage(
    "embed_images",
    (p.ITEM_PICTURES,),
    (p.PICTURE_EMBEDDINGS, t.ITEM_IMAGES, p.ITEM_PICTURE_HASHES, p.REJECTED_PICTURES),
    PictureMetrics,
)
"""Only where the settings name pictures; elsewhere item_images is the shop's own table, if it has any."""

BUILD_ITEM_FEATURES = Stage(
    "build_item_features",
    (t.ITEMS, t.ITEM_IMAGES, t.VOCABULARY, t.ITEM_TEXT_EMBEDDINGS, g.ITEM_GRAPH_IMAGES),
    (t.ITEM_FEATURES, t.ITEM_FEATURE_CHANGES, t.CHANGED_ITEM_FEATURES, t.REJECTED_ITEMS),
    ItemMetrics,
)

BUILD_TRAINING_TABLES = Stage(
    "build_training_tables",
    (t.ENGAGEMENT_LOGS, t.QUERY_EMBEDDINGS, t.ITEM_FEATURES),
    (t.TRAINING_PAIRS, t.VALIDATION_PAIRS, t.HELD_OUT_PAIRS, t.ITEM_COUNTS, t.REJECTED_EVENTS),
    TrainingTableMetrics,
)

TRAIN = Stage(
    "train",
    (t.TRAINING_PAIRS, t.VALIDATION_PAIRS, t.ITEM_FEATURES, t.ITEM_COUNTS),
    (),
    TrainMetrics,
    launcher="python",
)

VALIDATE = Stage(
    "validate",
    (
        t.VALIDATION_PAIRS, t.TRAINING_PAIRS, t.QUERY_EMBEDDINGS, t.QUERIES, t.ITEMS, t.ITEM_FEATURES, t.ITEM_COUNTS,
    ),
    (t.VALIDATION,),
    ValidateMetrics,
)  # fmt: skip

SCORE_CATALOG = Stage(
    "score_catalog",
    (
        t.ITEM_FEATURES, t.ITEM_FEATURE_CHANGES, t.CHANGED_ITEM_FEATURES, t.ITEM_COUNTS, t.QUERY_EMBEDDINGS,
        t.VALIDATION_PAIRS,
    ),
    (t.ITEM_EMBEDDINGS, t.QUERY_VECTORS, t.ITEM_SHORT_VECTORS, t.ITEM_CHANGES),
    ScoreMetrics,
)  # fmt: skip

EVALUATE = Stage(
    "evaluate",
    (
        t.HELD_OUT_PAIRS, t.TRAINING_PAIRS, t.QUERY_EMBEDDINGS, t.QUERIES, t.ITEMS, t.ITEM_FEATURES, t.ITEM_COUNTS,
        t.ITEM_EMBEDDINGS, t.ITEM_SHORT_VECTORS, t.TRUE_ITEM_VECTORS, t.TRUE_QUERY_VECTORS,
    ),
    (t.EVALUATION,),
    EvaluationMetrics,
)  # fmt: skip

MAINTAIN_TABLES = Stage("maintain_tables", (), (), MaintenanceMetrics, is_alone=True)
"""Not of the pipeline: run beside it, such as once a week."""

EXPORT_INDEX = Stage(
    "export_index", (t.ITEM_EMBEDDINGS, t.QUERY_VECTORS, t.ITEM_CHANGES, t.HELD_OUT_PAIRS), (), IndexMetrics
)  # fmt: skip
"""Not of the pipeline: run after it. Reads a version that was published, and what its commit says belongs to it."""

BUILD_ITEM_GRAPH = Stage(
    "build_item_graph",
    (t.ENGAGEMENT_LOGS, t.QUERY_EMBEDDINGS, t.ITEMS, t.ITEM_TEXT_EMBEDDINGS, t.ITEM_IMAGES),
    (g.GRAPH_NODES, g.GRAPH_PAIRS, g.REJECTED_GRAPH_EVENTS),
    GraphMetrics,
)
"""Not of the pipeline: run after embed_items, by a shop that wants graph vectors."""

TRAIN_GRAPH = Stage("train_graph", (g.GRAPH_NODES, g.GRAPH_PAIRS), (), TrainMetrics, launcher="python")
"""Not of the pipeline, like the two beside it."""

EMBED_GRAPH = Stage(
    "embed_graph", (g.GRAPH_NODES,), (g.GRAPH_LAYERS, g.ITEM_GRAPH_IMAGES), GraphVectorMetrics
)  # fmt: skip
"""Not of the pipeline: run before build_item_features, which takes its vectors where graph.append_to_images says so."""

BUILD_QUERY_PAIRS = Stage(
    "build_query_pairs",
    (t.ENGAGEMENT_LOGS, t.QUERIES, t.ITEMS, t.QUERY_EMBEDDINGS, t.ITEM_FEATURES),
    (q.QUERY_PAIRS, q.ITEM_TEXT_PAIRS, q.VALIDATION_QUERY_PAIRS),
    QueryPairMetrics,
)
"""Not of the pipeline: run after it, such as once a week."""

TRAIN_QUERY_ENCODER = Stage(
    "train_query_encoder",
    (q.QUERY_PAIRS, q.ITEM_TEXT_PAIRS, q.VALIDATION_QUERY_PAIRS, t.ITEM_FEATURES),
    (),
    TrainMetrics,
    launcher="python",
)
"""Not of the pipeline: what it has trained, embed_queries uses where query_encoder.kind is "trained"."""

BUILD_PICTURE_PAIRS = Stage(
    "build_picture_pairs",
    (t.ENGAGEMENT_LOGS, t.QUERY_EMBEDDINGS, t.ITEMS, p.ITEM_PICTURE_HASHES, p.PICTURE_EMBEDDINGS),
    (p.PICTURE_FEATURES, p.PICTURE_PAIRS, p.VALIDATION_PICTURE_PAIRS),
    PicturePairMetrics,
)
"""Not of the pipeline: run after embed_queries, by a shop that wants its pictures to learn from its log."""

TRAIN_PICTURES = Stage(
    "train_pictures",
    (p.PICTURE_FEATURES, p.PICTURE_PAIRS, p.VALIDATION_PICTURE_PAIRS),
    (),
    TrainMetrics,
    launcher="python",
)
"""Not of the pipeline: what it has trained, embed_images applies where pictures.head says so."""

BESIDE: tuple[Stage[Any], ...] = (
    MAINTAIN_TABLES, EXPORT_INDEX, BUILD_QUERY_PAIRS, TRAIN_QUERY_ENCODER, BUILD_ITEM_GRAPH, TRAIN_GRAPH, EMBED_GRAPH,
    BUILD_PICTURE_PAIRS, TRAIN_PICTURES,
)  # fmt: skip
"""Stages that are not of the pipeline, and leave a record like those that are."""

WHOLE: tuple[Stage[Any], ...] = (
    EMBED_IMAGES,
    EMBED_QUERIES,
    EMBED_ITEMS,
    BUILD_VOCABULARY,
    BUILD_ITEM_FEATURES,
    BUILD_TRAINING_TABLES,
    TRAIN,
    VALIDATE,
    SCORE_CATALOG,
    EVALUATE,
)
"""All stages, in the order in which they run."""

OPTIONAL: tuple[Stage[Any], ...] = (EMBED_IMAGES,)
"""Stages that run only where a shop's settings ask for them."""

PIPELINE = tuple(stage for stage in WHOLE if stage not in OPTIONAL)
"""The stages that every shop runs, in order."""


def stages_of(chosen: Collection[str]) -> tuple[Stage[Any], ...]:
    """The stages that a shop runs, in order: those of every shop, and those of OPTIONAL that it has chosen, by name."""
    return tuple(stage for stage in WHOLE if stage not in OPTIONAL or stage.name in chosen)


def is_among(name: str, declared: Sequence[Table]) -> bool:
    """Whether a table is one of those declared, or one task's of a family such as `training_<task>`."""
    families = [table.name.removesuffix("<task>") for table in declared if table.name.endswith("<task>")]
    return any(table.name == name for table in declared) or any(name.startswith(family) for family in families)


def maker_of(name: str, stages: Sequence[Stage[Any]] = ()) -> Stage[Any] | None:
    """The stage that writes a table, of the pipeline or beside it; None for a table that the shop supplies.

    Args:
        name: The table's.
        stages: Those of the pipeline that the shop runs. Where they are not known, any may write a table, but for one
            that a shop may supply itself.
    """
    if not stages and is_among(name, t.INPUTS):
        return None
    return next((stage for stage in (*(stages or WHOLE), *BESIDE) if is_among(name, stage.writes)), None)


def rerun(name: str) -> str:
    """The command that makes a table anew, and all that follows from it; words for one that the shop supplies."""
    maker = maker_of(name)
    if maker in BESIDE:
        return f"`itemsage {maker.name.replace('_', '-')} --settings ...`"
    return f"`make pipeline SETTINGS=... FROM={maker.name}`" if maker else "write it again"


def remade(name: str) -> str:
    """The cure of a table that is damaged or gone, as a sentence."""
    return f"Restore it from a copy, or make the table anew: {rerun(name)}."


def stage_named(name: str) -> Stage[Any]:
    """The stage with this name, of the pipeline or beside it.

    Raises:
        KeyError: there is none.
    """
    for stage in (*WHOLE, *BESIDE):
        if stage.name == name:
            return stage
    raise KeyError(f"no stage {name!r}; the stages are {', '.join(stage.name for stage in WHOLE)}")
