"""Which rows of a table are not as they should be, and one commit that changes those rows alone.

The rest of the table is not written: Delta marks the old rows as deleted, in deletion vectors, and adds files with the
new ones (docs/decisions.md says what else was measured). Never for a table that Petastorm reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from uuid import uuid4

import deltalake
import numpy as np
import numpy.typing as npt
from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from schemas.columns import Table
from schemas.commits import Note, OvertakenError, commit_note
from schemas.lease import require_held
from schemas.spark import conform, struct_type
from schemas.storage import commits_of, version_files

ADDED, CHANGED, REMOVED = "added", "changed", "removed"
_NOTE_OF_COMMIT = "spark.databricks.delta.commitInfo.userMetadata"
_DELETION_VECTORS = "delta.enableDeletionVectors"

_BUCKETS_A_CHANGE, _LEAST_BUCKETS, _MOST_BUCKETS = 8, 1 << 6, 1 << 18
"""Delta writes a merge's condition into its log: at most 80 KB of it are buckets."""


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
    spark, key, schema = new.sparkSession, changes.key, struct_type(table)
    if changes.total:
        allow_deletion_vectors(spark, uri)
    buckets = changed_buckets(changes.rows.select(F.col(key).cast(schema[key].dataType)), changes.total)
    expected = int(deltalake.DeltaTable(uri).version()) + 1
    if before:
        before(expected)
    if not changes.total:
        return commit_note(uri, note)
    mark = uuid4().hex
    nothing = {name: F.lit(None).cast(schema[name].dataType) for name in schema.names if name != key}
    gone = changes.rows.select(key).join(new.select(key), on=key, how="left_anti").withColumns(nothing)
    source = reduce(DataFrame.unionByName, (conform(new, table), gone.select(*schema.names))).alias("new")
    value = next(column.name for column in table.columns if not column.nullable and column.name != key)
    is_there = F.col(f"new.{value}").isNotNull()
    is_same = F.col(f"old.{key}") == F.col(f"new.{key}")
    if buckets is not None:
        # Hashes of equal numbers of two widths differ.
        is_same &= is_in_buckets(F.col(f"old.{key}").cast(schema[key].dataType), buckets)
    require_held()
    with _noted(spark, json.dumps({**note, "write": mark})):
        (
            DeltaTable.forPath(spark, uri)
            .alias("old")
            .merge(source, is_same)
            .whenMatchedDelete(~is_there)
            .whenMatchedUpdateAll()
            .whenNotMatchedInsertAll(is_there)
            .execute()
        )
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


def changed_buckets(keys: DataFrame, count: int) -> npt.NDArray[np.int64] | None:
    """Which buckets of hashes the keys of changed rows fall into; None = none, or too many for that to say much.

    Delta's MERGE shuffles whole rows of the table to find the few that it marks as deleted, unless a condition on the
    table alone leaves out most of them where they are read: 17 CPU seconds in place of 36 to 41 for 30,000 of 3,000,000
    embeddings (docs/lab-log.md).

    Args:
        keys: One column of the type that the table's key has.
        count: How many they are.

    Returns:
        A bit a bucket, 64 in each number [words]; a power of two of buckets.
    """
    wanted = max(_LEAST_BUCKETS, _BUCKETS_A_CHANGE * count)
    size = min(1 << (wanted - 1).bit_length(), _MOST_BUCKETS)
    if not count or 2 * count > size:
        return None
    hashed = F.pmod(F.xxhash64(*keys.columns), F.lit(size)).alias("bucket")
    bits = np.zeros(size, np.bool_)
    bits[keys.select(hashed).distinct().toArrow()["bucket"].to_numpy()] = True
    return np.packbits(bits, bitorder="little").view("<i8")


def is_in_buckets(key: Column, buckets: npt.NDArray[np.int64]) -> Column:
    """Whether a key falls into one of these buckets: true for all that they were made of, and for a few others."""
    bucket = F.pmod(F.xxhash64(key), F.lit(64 * len(buckets)))
    word = F.get(F.lit(buckets), F.shiftright(bucket, 6).cast("int"))
    return F.getbit(word, bucket.bitwiseAND(63).cast("int")) == 1


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
def _noted(spark: SparkSession, note: str) -> Iterator[None]:
    spark.conf.set(_NOTE_OF_COMMIT, note)
    try:
        yield
    finally:
        spark.conf.unset(_NOTE_OF_COMMIT)
