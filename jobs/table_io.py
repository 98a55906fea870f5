"""The only door to storage: read one pinned version of a table, replace a table in one atomic commit.

A write is one Delta commit, so a reader sees the old rows or the new ones, never a mixture. NOT NULL is enforced on
every declared column, by Delta or by the workers that write the files. Tables are made without deletion vectors,
because Petastorm reads Parquet files.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import deltalake
from delta.tables import DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, CommitProperties
from pyspark.errors import AnalysisException, PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.worker_rows import WorkerRows, write_parts
from schemas.arrow import arrow_schema
from schemas.columns import Table, TableError
from schemas.records import file_system
from schemas.spark import conform, struct_type


class OvertakenError(Exception):
    """Another run committed to the table meanwhile; nothing was committed, and a retry starts from what is there."""


@dataclass(frozen=True)
class Written:
    """What one write committed; `sums` are those that were asked for."""

    table: str
    uri: str
    version: int
    rows: int
    sums: dict[str, int] = field(default_factory=dict)


def latest_version(spark: SparkSession, uri: str) -> int | None:
    """Newest version of the Delta table at `uri`, or None where it is no Delta table."""
    if not DeltaTable.isDeltaTable(spark, uri):
        return None
    return int(DeltaTable.forPath(spark, uri).history(1).select("version").first()["version"])  # type: ignore[index]


def read(spark: SparkSession, uri: str, table: Table, *, version: int | None = None) -> DataFrame:
    """Read one version of a table (Delta), or its files (Parquet), in its declared shape.

    Args:
        spark: The session.
        uri: Where the table lies.
        table: What it means.
        version: Delta version; None pins the newest at the time of the call.

    Raises:
        TableError: there is no table, a column is missing or has another type.
    """
    pinned = version if version is not None else latest_version(spark, uri)
    try:
        if pinned is None:
            raw = spark.read.parquet(uri)
        else:
            raw = spark.read.format("delta").option("versionAsOf", pinned).load(uri)
    except AnalysisException as error:
        raise TableError(
            table.name,
            "(all)",
            expected=f"a Delta or Parquet table at {uri}",
            found=str(error).splitlines()[0],
            cure="Run the job that writes it, or correct the URI in the settings.",
        ) from error
    return conform(raw, table)


def write(
    df: DataFrame,
    uri: str,
    table: Table,
    *,
    run_id: str,
    rows_per_file: int = 0,
    checks: dict[str, str] | None = None,
) -> Written:
    """Replace a table's rows in one commit.

    Args:
        df: The new rows; conformed to `table` first.
        uri: Where the table lies; made if absent.
        table: What it means; its nullability is enforced.
        run_id: Written into the commit's userMetadata, so that the log says which run made a version.
        rows_per_file: Most rows of one Parquet file; 0 leaves it to Spark.
        checks: Named SQL conditions that every row must meet, kept in the table as CHECK constraints.

    Returns:
        The committed version and its row count.

    Raises:
        TableError: a column is missing or mistyped, or a row has a null where none may be or fails a check.
    """
    spark = df.sparkSession
    schema = struct_type(table)
    creation = DeltaTable.createIfNotExists(spark).location(uri).addColumns(schema)
    properties = {"delta.enableDeletionVectors": "false", "delta.minReaderVersion": "1"}
    properties |= {f"delta.constraints.{name}": condition for name, condition in (checks or {}).items()}
    for name, value in properties.items():
        creation = creation.property(name, value)
    creation.execute()
    writer = conform(df, table).write.format("delta").mode("overwrite").option("userMetadata", run_id)
    if rows_per_file:
        writer = writer.option("maxRecordsPerFile", rows_per_file)
    stored = spark.read.format("delta").load(uri).schema
    if stored.simpleString() != schema.simpleString():
        writer = writer.option("overwriteSchema", "true")
    if [field.nullable for field in stored] != [field.nullable for field in schema] or stored.names != schema.names:
        # A changed schema is written as nullable, so Delta itself no longer refuses nulls.
        _refuse_nulls(conform(df, table), table)
    try:
        writer.save(uri)
    except Exception as error:
        # Delta says which rule a row broke only in the text of the failed task.
        if refusal := _broken_rule(str(error), table):
            raise refusal from error
        raise
    commit = DeltaTable.forPath(spark, uri).history(1).select("version", "operationMetrics").first()
    assert commit is not None
    # Delta leaves the metric out where the plan shows that there is no row.
    rows = commit["operationMetrics"].get("numOutputRows", 0)
    return Written(table.name, uri, int(commit["version"]), int(rows))


def write_worker_rows(
    rows: WorkerRows, uri: str, table: Table, *, run_id: str, row_count: int | None = None
) -> Written:
    """Replace a table's rows, in one commit, by those that Python workers make and write.

    Args:
        rows: The new rows; conformed to `table` as they are written.
        uri: Where the table lies; made if absent. Workers write files through pyarrow, the driver commits through
            deltalake: both must reach the same place under this URI.
        table: What it means; its nullability is enforced.
        run_id: Written into the commit's userMetadata.
        row_count: How many rows there must be; None = any number.

    Returns:
        The committed version, its row count and the sums of `rows`.

    Raises:
        TableError: a row breaks the declaration of `table`, what makes the rows refuses an input, their number is
            another, or the stored table has partitions or rules that these files would not keep. Nothing was committed.
        OvertakenError: another run has committed to the table since this one began. Nothing was committed.
    """
    file_system(uri)  # refused here, if at all, before there is a table
    schema = deltalake.Schema.from_arrow(arrow_schema(table))
    # Before any file: files in a folder without a Delta log would be a table of their own.
    stored = deltalake.DeltaTable.create(
        uri, schema, mode="ignore", configuration={"delta.enableDeletionVectors": "false"}
    )
    _refuse_rules(stored, table)
    try:
        files = write_parts(rows, uri, table).to_pylist()
    except PythonException as error:
        if refusal := TableError.from_text(str(error)):
            raise refusal from error
        raise
    written = sum(file["rows"] for file in files)
    if row_count not in (None, written):
        cure = "Nothing was committed. Files of its input were changed since their commit, or the job is at fault."
        raise TableError(table.name, "(all)", expected=f"{row_count} rows", found=f"{written}", cure=cure)
    try:
        version = _commit_files(stored, schema, files, run_id)
    except CommitFailedError as error:
        raise OvertakenError(
            f"table {table.name} at {uri}: expected version {stored.version()}, as when this run began; found a newer "
            "one, of another run. Nothing was committed. See that no two runs write one warehouse; run the job again."
        ) from error
    sums = {name: sum(file[name] for file in files) for name in rows.sums}
    return Written(table.name, uri, version, written, sums)


def _commit_files(
    stored: deltalake.DeltaTable, schema: deltalake.Schema, files: list[dict[str, Any]], run_id: str
) -> int:
    """Replace all files of a table; returns the version. Fails where anything was committed since it was opened."""
    actions = [
        AddAction(file["path"], file["bytes"], {}, file["modified_ms"], True, json.dumps({"numRecords": file["rows"]}))
        for file in files
    ]
    totals = {
        "numFiles": len(files),
        "numOutputRows": sum(file["rows"] for file in files),
        "numOutputBytes": sum(file["bytes"] for file in files),
    }
    commit_id = str(uuid4())
    properties = {
        "userMetadata": run_id,
        "txnId": commit_id,
        "operationMetrics": {name: str(total) for name, total in totals.items()},
    }
    # A repeated commit would go on top of another run's: of a table that was empty, both runs' rows would stay.
    once = CommitProperties(properties, max_commit_retries=0)
    stored.create_write_transaction(actions, "overwrite", schema, commit_properties=once)
    stored.update_incremental()
    return next(int(commit["version"]) for commit in stored.history(100) if commit.get("txnId") == commit_id)


def _refuse_rules(stored: deltalake.DeltaTable, table: Table) -> None:
    """Partitions and rules that somebody gave the stored table, and that files written by workers would not keep."""
    metadata, protocol = stored.metadata(), stored.protocol()
    features = {*(protocol.reader_features or []), *(protocol.writer_features or [])}
    found = [f"partitioned by {name}" for name in metadata.partition_columns]
    found += [name for name in sorted(metadata.configuration) if name.startswith("delta.constraints.")]
    found += sorted(features & {"columnMapping", "deletionVectors"})
    if found:
        raise TableError(
            table.name,
            "(all)",
            expected="a table without partitions, CHECK constraints, column mapping and deletion vectors",
            found=", ".join(found),
            cure="Nothing was written. Drop the constraints (ALTER TABLE ... DROP CONSTRAINT), or move the table away.",
        )


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


def _broken_rule(text: str, table: Table) -> TableError | None:
    """The broken rule that a failed write's message names, if it names one."""
    if found := re.search(r"NOT NULL constraint violated for column: ([^\s]+?)\.?\s", text):
        return _null_in(table, found[1])
    if found := re.search(r"CHECK constraint (\w+) (.+) violated by row with values:((?:\s+- .+)*)", text):
        return TableError(
            table.name,
            found[1],
            expected=found[2],
            found=f"a row with{' '.join(found[3].split())[:300]}",
            cure="Nothing was written. Look for such a row in the inputs of the job.",
        )
    return None
