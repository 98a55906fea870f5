"""Which items are not as they are published, and one commit that changes those rows alone.

The rest of the table is not written: Delta marks the old rows of changed and removed items as deleted, in deletion
vectors, and adds files with the new ones (docs/decisions.md says what else was measured).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from uuid import uuid4

import deltalake
import numpy as np
import numpy.typing as npt
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.commits import Note, OvertakenError, commit_note
from schemas.feed import SOME, begin_version
from schemas.lease import require_held
from schemas.spark import struct_type
from schemas.storage import version_files
from schemas.tables import FEATURES_HASH, ITEM_EMBEDDINGS
from schemas.warehouse import Warehouse

ADDED, CHANGED, REMOVED = "added", "changed", "removed"
_NOTE_OF_COMMIT = "spark.databricks.delta.commitInfo.userMetadata"
_DELETION_VECTORS = "delta.enableDeletionVectors"


@dataclass(frozen=True)
class Changes:
    """Items that are not as they are published.

    Attributes:
        rows: item_id, item_key (null where removed) and change, one row an item; kept by Spark until `forget`.
        counts: Change -> items.
        keys: item_key of those to be scored, sorted [item].
    """

    rows: DataFrame
    counts: dict[str, int]
    keys: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        """How many they are."""
        return sum(self.counts.values())

    def forget(self) -> None:
        """Let Spark drop them."""
        self.rows.unpersist()

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in self.counts.items())


def find_changes(features: DataFrame, published: DataFrame) -> Changes:
    """Compare what would be scored with what is published, by id and features_hash.

    Args:
        features: Rows of ITEM_FEATURES.
        published: Rows of ITEM_EMBEDDINGS.
    """
    new = features.select("item_id", "item_key", F.col(FEATURES_HASH).alias("new"))
    old = published.select("item_id", F.col(FEATURES_HASH).alias("old"))
    both = new.join(old, on="item_id", how="full_outer")
    change = F.when(F.col("old").isNull(), ADDED).when(F.col("new").isNull(), REMOVED).otherwise(CHANGED)
    differ = both.where(~F.col("new").eqNullSafe(F.col("old")))
    rows = differ.select("item_id", "item_key", change.alias("change")).persist()
    found = {row["change"]: int(row["count"]) for row in rows.groupBy("change").count().collect()}
    keys = rows.where(F.col("change") != REMOVED).select("item_key").toArrow()["item_key"].to_numpy()
    return Changes(rows, {name: found.get(name, 0) for name in (ADDED, CHANGED, REMOVED)}, np.sort(keys))


def with_changes(published: DataFrame, changes: Changes, scored: DataFrame) -> DataFrame:
    """The rows as they will be: those that are published, but for what has changed."""
    return published.join(changes.rows, on="item_id", how="left_anti").unionByName(scored)


def merge(spark: SparkSession, warehouse: Warehouse, changes: Changes, scored: DataFrame, note: Note) -> int:
    """Replace, add and remove rows of ITEM_EMBEDDINGS in one commit, of which the change feed tells.

    Args:
        spark: The session.
        warehouse: Where the tables lie.
        changes: What has changed since its newest version.
        scored: The new rows of added and changed items.
        note: Written into the commit's userMetadata, as JSON.

    Returns:
        The committed version.

    Raises:
        OvertakenError: somebody else has committed meanwhile.
    """
    uri = warehouse.table(ITEM_EMBEDDINGS.name)
    if changes.total:
        allow_deletion_vectors(spark, uri)
    expected = int(deltalake.DeltaTable(uri).version()) + 1
    feed = begin_version(warehouse, expected, SOME)
    if not changes.total:
        return commit_note(uri, note)
    of_version = changes.rows.select(F.lit(expected).cast("long").alias("version"), "item_id", "change")
    of_version.write.format("delta").mode("append").save(feed)
    mark = uuid4().hex
    schema = struct_type(ITEM_EMBEDDINGS)
    gone = changes.rows.where(F.col("change") == REMOVED).select(
        *[F.col("item_id") if name == "item_id" else F.lit(None).cast(schema[name].dataType).alias(name)
          for name in schema.names]
    )  # fmt: skip
    source = reduce(DataFrame.unionByName, (scored, gone)).alias("new")
    require_held()
    with _noted(spark, json.dumps({**note, "write": mark})):
        (
            DeltaTable.forPath(spark, uri)
            .alias("old")
            .merge(source, F.col("old.item_id") == F.col("new.item_id"))
            .whenMatchedDelete(F.col("new.embedding").isNull())
            .whenMatchedUpdateAll()
            .whenNotMatchedInsertAll(F.col("new.embedding").isNotNull())
            .execute()
        )
    history = deltalake.DeltaTable(uri).history(100)
    version = next(int(one["version"]) for one in history if mark in (one.get("userMetadata") or ""))
    if version != expected:
        raise OvertakenError(
            f"table {ITEM_EMBEDDINGS.name}: expected to commit version {expected}; found that it is {version}, as "
            "somebody else has committed meanwhile. The change feed does not tell of it: score the catalog with "
            "`--set score.max_changed_share=0` once."
        )
    return version


def deleted_share(warehouse: Warehouse) -> float:
    """Share of the rows in the files of ITEM_EMBEDDINGS that are marked as deleted, 0 to 1."""
    files = version_files(warehouse.table(ITEM_EMBEDDINGS.name)).files
    deleted, rows = sum(file.deleted for file in files), sum(file.rows or 0 for file in files)
    return deleted / max(rows, 1)


def allow_deletion_vectors(spark: SparkSession, uri: str) -> None:
    """Let Delta mark rows as deleted, where the table does not say so yet; by Spark, which names no other feature."""
    if deltalake.DeltaTable(uri).metadata().configuration.get(_DELETION_VECTORS) != "true":
        table = f"delta.`{uri}`"
        statement = "ALTER TABLE IDENTIFIER(:table) SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')"
        spark.sql(statement, args={"table": table})


@contextmanager
def _noted(spark: SparkSession, note: str) -> Iterator[None]:
    spark.conf.set(_NOTE_OF_COMMIT, note)
    try:
        yield
    finally:
        spark.conf.unset(_NOTE_OF_COMMIT)
