"""Tables through Spark: read one pinned version, replace a table in one atomic commit.

A write is one Delta commit, so a reader sees the old rows or the new ones, never a mixture. NOT NULL is enforced on
every declared column, by Delta or by the workers that write the files. Tables are made without deletion vectors,
because Petastorm reads Parquet files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import deltalake
from delta.tables import DeltaTable
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.runtime.input_tables import read_input
from schemas.columns import Table
from schemas.commits import Note
from schemas.errors import TableError
from schemas.input_tables import find_input
from schemas.lease import require_held
from schemas.retention import require_files
from schemas.spark import conform, struct_type
from schemas.storage import commits_of


@dataclass(frozen=True)
class Written:
    """What one write committed; `sums` are those that were asked for, `checksum` says which files it has."""

    table: str
    uri: str
    version: int
    rows: int
    sums: dict[str, int] = field(default_factory=dict)
    checksum: str = field(default="", compare=False)


def latest_version(spark: SparkSession, uri: str) -> int | None:
    """Newest version of the Delta table at `uri`, or None where it is no Delta table."""
    if not DeltaTable.isDeltaTable(spark, uri):
        return None
    return int(DeltaTable.forPath(spark, uri).history(1).select("version").first()["version"])  # type: ignore[index]


def read(spark: SparkSession, uri: str, table: Table, *, version: int | None = None) -> DataFrame:
    """Read one version of a table in its declared shape.

    Args:
        spark: The session.
        uri: Where the table lies.
        table: What it means.
        version: Delta version; None = what is there now, Delta or Parquet, found as an input table is.

    Raises:
        TableError: there is no table, a column is missing or has another type, or VACUUM removed the version's files.
    """
    if version is None:
        return read_input(spark, find_input(uri, table))
    try:
        raw = spark.read.format("delta").option("versionAsOf", version).load(uri)
    except AnalysisException as error:
        raise TableError(
            table.name,
            "(all)",
            expected=f"a Delta or Parquet table at {uri}",
            found=str(error).splitlines()[0],
            cure="Run the job that writes it, or correct the URI in the settings.",
        ) from error
    require_files(table.name, uri, version)
    return conform(raw, table)


def read_files(spark: SparkSession, uris: Sequence[str], table: Table) -> DataFrame:
    """The rows of files that belong to no version yet."""
    if not uris:
        return spark.createDataFrame([], struct_type(table))
    # The paths are paths, not patterns.
    return conform(spark.read.schema(struct_type(table)).option("__globPaths__", "false").parquet(*uris), table)


def write(df: DataFrame, uri: str, table: Table, *, note: Note) -> Written:
    """Replace a table's rows in one commit.

    Args:
        df: The new rows; conformed to `table` first.
        uri: Where the table lies; made if absent.
        table: What it means; its nullability is enforced.
        note: Written into the commit's userMetadata as JSON, so that the log says which run made a version; with a word
            of this write alone, by which its commit is found again among others.

    Returns:
        The committed version and its row count.

    Raises:
        TableError: a column is missing or mistyped, or a row has a null where none may be.
    """
    spark = df.sparkSession
    schema = struct_type(table)
    creation = DeltaTable.createIfNotExists(spark).location(uri).addColumns(schema)
    properties = {"delta.enableDeletionVectors": "false", "delta.minReaderVersion": "1"}
    for name, value in properties.items():
        creation = creation.property(name, value)
    creation.execute()
    mark = json.dumps({**note, "write": uuid4().hex})
    writer = conform(df, table).write.format("delta").mode("overwrite").option("userMetadata", mark)
    stored = spark.read.format("delta").load(uri).schema
    if stored.simpleString() != schema.simpleString():
        writer = writer.option("overwriteSchema", "true")
    if [field.nullable for field in stored] != [field.nullable for field in schema] or stored.names != schema.names:
        # A changed schema is written as nullable, so Delta itself no longer refuses nulls.
        _refuse_nulls(conform(df, table), table)
    before = deltalake.DeltaTable(uri).version()
    require_held()
    try:
        writer.save(uri)
    except Exception as error:
        # Delta says which column it was only in the text of the failed task.
        if found := re.search(r"NOT NULL constraint violated for column: ([^\s]+?)\.?\s", str(error)):
            raise _null_in(table, found[1]) from error
        raise
    # By its mark, as another run may have committed since.
    history = commits_of(uri, 100)
    commit = next((found for found in history if found.get("userMetadata") == mark), None)
    if commit is None:
        # Delta records no commit that changes nothing: no rows in place of none.
        return Written(table.name, uri, before, 0)
    # Delta leaves the metric out where the plan shows that there is no row.
    return Written(table.name, uri, int(commit["version"]), int(commit["operationMetrics"].get("numOutputRows", 0)))


def _refuse_nulls(df: DataFrame, table: Table) -> None:
    counts = df.agg(
        *[F.count_if(F.col(c.name).isNull()).alias(c.name) for c in table.columns if not c.nullable]
    ).first()
    for name, count in (counts.asDict() if counts else {}).items():
        if count:
            raise _null_in(table, name)


def _null_in(table: Table, column: str) -> TableError:
    return TableError(
        table.name,
        column,
        expected="a value in every row",
        found="a null",
        cure="Nothing was written. Look for the null in the inputs of the job.",
    )
