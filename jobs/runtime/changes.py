"""Which rows of a table are not as they should be, and one commit that changes those rows alone.

The rest of the table is not written: Delta marks the old rows as deleted, in deletion vectors, and adds files with the
new ones (docs/decisions.md says what else was measured). Never for a table that Petastorm reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import deltalake
from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.runtime.key_buckets import changed_buckets, is_in_buckets
from schemas.columns import Table
from schemas.commits import Note, OvertakenError, commit_note
from schemas.lease import require_held
from schemas.spark import conform, struct_type
from schemas.storage import commits_of, version_files

ADDED, CHANGED, REMOVED = "added", "changed", "removed"
_NOTE_OF_COMMIT = "spark.databricks.delta.commitInfo.userMetadata"
_DELETION_VECTORS = "delta.enableDeletionVectors"
_CONFLICT = re.compile(r"\bDELTA_(CONCURRENT_\w+|METADATA_CHANGED|PROTOCOL_CHANGED)\b")


@dataclass(frozen=True)
class Changes:
    """Rows that are not as they should be.

    Attributes:
        key: The column that tells rows apart.
        rows: That column, `change`, and what `find_changes` was given beside them; kept by Spark until `forget`.
        counts: Change -> rows.
    """

    key: str
    rows: DataFrame
    counts: dict[str, int]

    @property
    def total(self) -> int:
        """How many they are."""
        return sum(self.counts.values())

    @property
    def to_make(self) -> DataFrame:
        """The rows that are to be made: those that are not only to be removed."""
        return self.rows.where(F.col("change") != REMOVED)

    def forget(self) -> None:
        """Let Spark drop them."""
        self.rows.unpersist()

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in self.counts.items())


def find_changes(compared: DataFrame, key: str) -> Changes:
    """The rows that differ.

    Args:
        compared: One row a key: the key, `new` and `old`, the hashes of the row as it should be and as it is, null
            where it is not; further columns stay.
        key: The column that tells rows apart.
    """
    change = F.when(F.col("old").isNull(), ADDED).when(F.col("new").isNull(), REMOVED).otherwise(CHANGED)
    differ = compared.where(~F.col("new").eqNullSafe(F.col("old"))).withColumn("change", change)
    rows = differ.drop("new", "old").persist()
    found = {row["change"]: int(row["count"]) for row in rows.groupBy("change").count().collect()}
    return Changes(key, rows, {name: found.get(name, 0) for name in (ADDED, CHANGED, REMOVED)})


def with_changes(stored: DataFrame, changes: Changes, new: DataFrame) -> DataFrame:
    """The rows as they will be: those that are stored, but for what has changed."""
    return stored.join(changes.rows, on=changes.key, how="left_anti").unionByName(new)


def merge(
    new: DataFrame, uri: str, table: Table, changes: Changes, note: Note, before: Callable[[int], None] | None = None
) -> int:
    """Replace, add and remove rows in one commit, or say in one that nothing has changed.

    Args:
        new: The changed and added rows as they should be, all of them among `changes`; one of `changes` that is not
            among them is removed.
        uri: Where the table lies.
        table: What it means.
        changes: What is not as it should be in its newest version.
        note: Written into the commit's userMetadata, as JSON.
        before: Called with the version right before it is committed.

    Returns:
        The committed version.

    Raises:
        OvertakenError: somebody else has committed meanwhile.
    """
    spark = new.sparkSession
    if changes.total:
        allow_deletion_vectors(spark, uri)
    is_same = _is_same_row(table, changes)
    expected = int(deltalake.DeltaTable(uri).version()) + 1
    if before:
        before(expected)
    if not changes.total:
        return commit_note(uri, note)
    mark = uuid4().hex
    value = next(column.name for column in table.columns if not column.nullable and column.name != changes.key)
    is_there = F.col(f"new.{value}").isNotNull()
    require_held()
    prepared = (
        DeltaTable.forPath(spark, uri)
        .alias("old")
        .merge(_source(new, table, changes).alias("new"), is_same)
        .whenMatchedDelete(~is_there)
        .whenMatchedUpdateAll()
        .whenNotMatchedInsertAll(is_there)
    )
    with _noted(spark, json.dumps({**note, "write": mark})), _overtaken_by_others(table, expected):
        prepared.execute()
    history = commits_of(uri, 100)
    version = next((int(one["version"]) for one in history if mark in (one.get("userMetadata") or "")), None)
    if version is None:  # Delta commits nothing where nothing was to be done
        return commit_note(uri, note)
    if version != expected:
        raise OvertakenError(
            f"table {table.name}: expected to commit version {expected}; found that it is {version}, as somebody else "
            "has committed meanwhile. The change feed does not tell of it: score the catalog with "
            "`--set score.max_changed_share=0` once."
        )
    return version


def _source(new: DataFrame, table: Table, changes: Changes) -> DataFrame:
    """The new rows, and of each that is to go its key, with nulls beside it."""
    schema, key = struct_type(table), changes.key
    nothing = {name: F.lit(None).cast(schema[name].dataType) for name in schema.names if name != key}
    gone = changes.rows.select(key).join(new.select(key), on=key, how="left_anti").withColumns(nothing)
    return conform(new, table).unionByName(gone.select(*schema.names))


def _is_same_row(table: Table, changes: Changes) -> Column:
    """Whether an old and a new row have one key; old rows outside of all changed buckets are not even compared."""
    key = changes.key
    declared = struct_type(table)[key].dataType
    is_same = F.col(f"old.{key}") == F.col(f"new.{key}")
    # Hashes of equal numbers of two widths differ.
    buckets = changed_buckets(changes.rows.select(F.col(key).cast(declared)), changes.total)
    return is_same if buckets is None else is_same & is_in_buckets(F.col(f"old.{key}").cast(declared), buckets)


def deleted_share(uri: str) -> float:
    """Share of the rows in the files of a table that are marked as deleted, 0 to 1."""
    files = version_files(uri).files
    deleted, rows = sum(file.deleted for file in files), sum(file.rows or 0 for file in files)
    return deleted / max(rows, 1)


def allow_deletion_vectors(spark: SparkSession, uri: str) -> None:
    """Let Delta mark rows as deleted, where the table does not say so yet; by Spark, which names no other feature."""
    if deltalake.DeltaTable(uri).metadata().configuration.get(_DELETION_VECTORS) != "true":
        table = f"delta.`{uri}`"
        statement = "ALTER TABLE IDENTIFIER(:table) SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')"
        spark.sql(statement, args={"table": table})


@contextmanager
def _overtaken_by_others(table: Table, expected: int) -> Iterator[None]:
    """Say of Delta's refusals of a commit that another one came first, as all other writers here do."""
    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        if not _CONFLICT.search(str(error)):
            raise
        raise OvertakenError(
            f"table {table.name}: expected to commit version {expected}; found that somebody else has committed "
            "meanwhile. Nothing was committed. See that no two runs write one warehouse; run the job again."
        ) from error


@contextmanager
def _noted(spark: SparkSession, note: str) -> Iterator[None]:
    spark.conf.set(_NOTE_OF_COMMIT, note)
    try:
        yield
    finally:
        spark.conf.unset(_NOTE_OF_COMMIT)
