"""What of a catalog must be scored, and what can stay as it is published.

Rows of equal features stay where model, query spaces, precision and code are those of what is live; vectors of queries
stay where their query_embeddings are. Everything else is scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.runtime import table_io
from jobs.runtime.changes import REMOVED, Changes, deleted_share, find_changes, merge
from jobs.runtime.gates import IdCounts
from jobs.runtime.job_run import JobRun
from jobs.runtime.worker_rows import WorkerRows
from schemas.code_version import code_version
from schemas.columns import Table
from schemas.commits import Note, Staged, committed
from schemas.feed import SOME, begin_version
from schemas.metrics import ItemMetrics, ScoreMetrics
from schemas.published import Published, is_newest, live
from schemas.records import RunRecord, TableVersion
from schemas.settings import Settings
from schemas.stages import BUILD_TRAINING_TABLES
from schemas.storage import is_unchanged_since
from schemas.tables import (
    CHANGED_ITEM_FEATURES,
    FEATURES_HASH,
    ITEM_COUNTS,
    ITEM_EMBEDDINGS,
    ITEM_FEATURE_CHANGES,
    ITEM_FEATURES,
    QUERY_EMBEDDINGS,
    QUERY_VECTORS,
)
from schemas.warehouse import Warehouse


@dataclass(frozen=True)
class Comparison:
    """What would be published, beside what is.

    Attributes:
        published: The rows that are published; None where none are, or where an override says that they do not matter.
        ids: Ids of both, and of the log, counted.
        changes: What is to be scored; None = all: no row can stay, or so many have changed that all shall be written.
        features: Where the features of what is to be scored lie.
    """

    published: DataFrame | None
    ids: IdCounts
    changes: Changes | None
    features: TableVersion

    @property
    def keys(self) -> npt.NDArray[np.int64] | None:
        """item_key of what is to be scored, sorted [item]; None = all."""
        if self.changes is None:
            return None
        return np.sort(self.changes.to_make.select("item_key").toArrow()["item_key"].to_numpy())


def scoring_of(identity: str, precision: str, filters: Mapping[str, str]) -> str:
    """What rows of equal features must share to be equal: model, query spaces, fallback, precision, columns, code."""
    columns = " ".join(f"{name}:{kind}" for name, kind in sorted(filters.items()))
    return hashlib.sha256(f"{identity} {precision} {code_version()} {columns}".encode()).hexdigest()[:32]


def kept_version(settings: Settings, scoring: str, precision: str, fallback: str) -> Published | None:
    """What is live, where its rows are what scoring them again would make.

    Not in bfloat16, where it shows which items share a batch, nor with a fallback, which may take up other items.

    Args:
        settings: The settings.
        scoring: See `scoring_of`.
        precision: What vectors are computed in.
        fallback: What takes the place of the model's vectors.
    """
    is_exact = precision == "float32" and not fallback
    wanted = settings.score.publish == "live" and settings.score.max_changed_share > 0
    if not is_exact or not wanted or settings.gates.override or settings.rerun:
        return None
    found = live(settings.layout)
    return found if found is not None and found.metrics.scoring == scoring and is_newest(found) else None


def by_id(
    features: DataFrame, published: DataFrame | None, logged: DataFrame, filters: Sequence[str] = ()
) -> DataFrame:
    """Lay three tables side by side, by item_id, in one shuffle of ids and hashes.

    Args:
        features: Rows of ITEM_FEATURES: what would be published.
        published: Rows of ITEM_EMBEDDINGS; None = nothing is published.
        logged: item_id of the items that the log names, repeated or not.
        filters: Columns that results are filtered by, which both have: a row with another value has changed.

    Returns:
        item_id, item_key, a hash of the row in `new` (null where it is not among the features) and in `old` (null where
        it is not published), is_logged.
    """
    row_hash = _row_hash(filters)
    key = number = F.lit(None).cast("long")
    sides = [
        features.select("item_id", "item_key", row_hash, number, F.lit(False)),
        logged.select("item_id", key, number, number, F.lit(True)),
    ]
    if published is not None:
        sides.append(published.select("item_id", key, number, row_hash, F.lit(False)))
    names = ("item_id", "item_key", "new", "old", "is_logged")
    whole = reduce(DataFrame.union, [side.toDF(*names) for side in sides])
    return whole.groupBy("item_id").agg(*[F.max(name).alias(name) for name in names[1:]])


def _row_hash(filters: Sequence[str]) -> Column:
    """Hash of what a row of ITEM_FEATURES and one of ITEM_EMBEDDINGS have in common."""
    # As a number: the largest of texts is found by sorting all rows, that of numbers is not.
    return F.xxhash64(FEATURES_HASH, *([F.to_json(F.struct(*filters))] if filters else []))


def count_ids(compared: DataFrame) -> IdCounts:
    """Count the ids in rows of `by_id`."""
    is_new, is_old, is_logged = F.col("new").isNotNull(), F.col("old").isNotNull(), F.col("is_logged")
    row = compared.agg(
        F.count_if(is_old).alias("previous"),
        F.count_if(is_old & is_new).alias("previous_kept"),
        F.count_if(is_logged).alias("logged"),
        F.count_if(is_logged & is_new).alias("logged_kept"),
    ).first()
    return IdCounts(**row.asDict()) if row else IdCounts()


def compare(
    job: JobRun[ScoreMetrics],
    made: RunRecord[ItemMetrics],
    previous: RunRecord[ScoreMetrics] | None,
    kept: Published | None,
) -> Comparison:
    """Compare what would be scored with what is published, and with the log.

    Where item_features goes on from the version that was scored last, only rows that build_item_features has made anew
    are looked at; else all.

    Args:
        job: The run.
        made: The run of build_item_features that made what would be scored.
        previous: The run whose vectors are live.
        kept: See `kept_version`.
    """
    counts, features = job.record(BUILD_TRAINING_TABLES).output(ITEM_COUNTS.name), made.output(ITEM_FEATURES.name)
    job.count_input(counts)
    logged = table_io.read(job.spark, counts.uri, ITEM_COUNTS, version=counts.version)
    score = job.settings.score
    features_table, published_table = score.filtered(ITEM_FEATURES), score.filtered(ITEM_EMBEDDINGS)
    new = table_io.read(job.spark, features.uri, features_table, version=features.version)
    # What is published with other columns is not kept, and may lack some of these.
    published = _published_rows(job, previous, published_table if kept else ITEM_EMBEDDINGS)
    if kept is None or published is None:
        return Comparison(published, count_ids(by_id(new, published, logged)), None, features)
    filters = tuple(score.filters)
    scored = kept.metrics.features_checksum
    if scored and made.metrics.made_by and scored in (features.checksum, made.metrics.kept_from):
        changes, features = _changes_told(job, made, published, filters)
        ids = count_ids_told(changes, kept.outputs[0].rows, new, logged)
    else:
        compared = by_id(new, published, logged, filters)
        ids, changes = count_ids(compared), find_changes(compared.drop("is_logged"), "item_id")
    rows, most = made.output(ITEM_FEATURES.name).rows, score.max_changed_share
    share = changes.total / max(rows, 1)
    if share > most or share + deleted_share(kept.outputs[0].uri) > 2 * most:
        changes.forget()
        return Comparison(published, ids, None, made.output(ITEM_FEATURES.name))
    print(f"  of {rows:,} items: {changes}; the others stay as they are published", flush=True)
    return Comparison(published, ids, changes, features)


def _changes_told(
    job: JobRun[ScoreMetrics], made: RunRecord[ItemMetrics], published: DataFrame, filters: tuple[str, ...]
) -> tuple[Changes, TableVersion]:
    """What of the rows that build_item_features has made anew is not as it is published, and where they lie.

    Equal features may have been made of another text: their rows stay. So they do where build_item_features has told
    before what has changed.
    """
    table = job.settings.score.filtered(CHANGED_ITEM_FEATURES)
    rows = job.read(table, may_be_empty=True)
    told = job.read(ITEM_FEATURE_CHANGES, may_be_empty=True).select("item_id", "item_key")
    return find_changes(told_by_id(told, rows, published, filters), "item_id"), made.output(table.name)


def told_by_id(told: DataFrame, rows: DataFrame, published: DataFrame, filters: Sequence[str] = ()) -> DataFrame:
    """Lay what build_item_features has made anew beside what is published, by item_id.

    Args:
        told: item_id and item_key of what it says has changed, unique by item_id.
        rows: Of these, the rows of ITEM_FEATURES that it has made.
        published: Rows of ITEM_EMBEDDINGS.
        filters: Columns that results are filtered by.

    Returns:
        item_id, item_key, and a hash of the row in `new` and in `old`, as in `by_id`.
    """
    row_hash = _row_hash(filters)
    old = published.join(F.broadcast(told.select("item_id")), on="item_id", how="left_semi")
    # Each side is unique by item_id.
    return told.join(rows.select("item_id", row_hash.alias("new")), on="item_id", how="left").join(
        old.select("item_id", row_hash.alias("old")), on="item_id", how="left"
    )


def count_ids_told(changes: Changes, published: int, features: DataFrame, logged: DataFrame) -> IdCounts:
    """Count the ids, where it is known which items have changed.

    Args:
        changes: What has.
        published: Rows that are published.
        features: Rows of ITEM_FEATURES: what would be published.
        logged: Rows of ITEM_COUNTS.
    """
    keys = logged.select("item_key").distinct()
    # Unique by item_key.
    found = keys.join(features.select("item_key", F.lit(1).alias("is_there")), on="item_key", how="left")
    row = found.agg(F.count("*").alias("logged"), F.count("is_there").alias("logged_kept")).first()
    assert row is not None
    return IdCounts(published, published - changes.counts[REMOVED], **row.asDict())


def merge_published(warehouse: Warehouse, table: Table, changes: Changes, scored: DataFrame, note: Note) -> int:
    """Replace, add and remove rows of ITEM_EMBEDDINGS in one commit, of which the change feed tells.

    Args:
        warehouse: Where the tables lie.
        table: ITEM_EMBEDDINGS, with the columns that results are filtered by.
        changes: What has changed since its newest version.
        scored: The new rows of added and changed items.
        note: Written into the commit's userMetadata, as JSON.

    Returns:
        The committed version.

    Raises:
        OvertakenError: somebody else has committed meanwhile.
    """

    def tell(version: int) -> None:
        feed = begin_version(warehouse, version, SOME)
        if changes.total:
            rows = changes.rows.select(F.lit(version).cast("long").alias("version"), "item_id", "change")
            rows.write.format("delta").mode("append").save(feed)

    return merge(scored, warehouse.table(table.name), table, changes, note, tell)


def query_vectors(job: JobRun[ScoreMetrics], queries: WorkerRows, kinds: set[str], kept: Published | None) -> Staged:
    """The vectors of the queries: made anew, or those that belong to `kept`, if nothing that they follow from differs.

    Args:
        job: The run, which has read query_embeddings.
        queries: What makes them.
        kinds: Kinds of these queries.
        kept: See `kept_version`.
    """
    if kept is not None and set(kept.metrics.spaces) == kinds:
        answers, made_of = kept.outputs[1], job.note()["made_of"][QUERY_EMBEDDINGS.name]
        is_same = kept.note["made_of"].get(QUERY_EMBEDDINGS.name) == made_of
        if is_same and answers.version is not None and is_unchanged_since(answers.uri, answers.version):
            return committed(answers.uri, QUERY_VECTORS, answers.version)
    return job.stage_worker_rows(queries, QUERY_VECTORS)


def _published_rows(
    job: JobRun[ScoreMetrics], previous: RunRecord[ScoreMetrics] | None, table: Table
) -> DataFrame | None:
    """The rows that are published; None where none are, or where an override says that they do not matter."""
    published = previous.output(ITEM_EMBEDDINGS.name) if previous and not job.settings.gates.override else None
    if published is None or table_io.latest_version(job.spark, published.uri) is None:  # removed since
        return None
    return table_io.read(job.spark, published.uri, table, version=published.version)
