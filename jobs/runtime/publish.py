"""Publishing rows that Python wrote: their files enter a Delta table in one commit, or none does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import deltalake
import pyarrow as pa
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, CommitProperties
from pyspark.errors import PythonException
from pyspark.sql import DataFrame

from jobs.runtime.table_io import Written
from jobs.runtime.worker_rows import Place, WorkerRows, write_files, write_part, write_parts
from schemas.arrow import arrow_schema
from schemas.columns import Table
from schemas.errors import TableError, from_worker
from schemas.lease import require_held
from schemas.storage import file_system

_ROWS_PER_BATCH = 2_048

_FORMER_CHECKS = {"engagement_count_is_positive", "pair_weight_is_positive", "query_embedding_is_whole"}
"""Constraints that training tables had up to version 0.2; the declaration of the table says the same."""


class OvertakenError(Exception):
    """Another run committed to the table meanwhile; nothing was committed, and a retry starts from what is there."""


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
    stored = _open_or_create(uri, table)
    with _refusals_of_workers():
        files = write_parts(rows, uri, table).to_pylist()
    written = sum(file["rows"] for file in files)
    if row_count is not None:
        _require_rows(table, row_count, written)
    version = _commit_files(stored, table, files, run_id)
    return Written(table.name, uri, version, written, {name: sum(file[name] for file in files) for name in rows.sums})


def write_tables(rows: DataFrame, places: Sequence[Place], *, run_id: str) -> list[Written]:
    """Replace several tables by rows that Python workers write in one Spark job; then one commit each.

    Args:
        rows: See `worker_rows.write_files`.
        places: The tables, and how many rows each must have.
        run_id: Written into the commits' userMetadata.

    Raises:
        TableError: as of `write_worker_rows`. Nothing was committed.
        OvertakenError: as of `write_worker_rows`; tables before this one are committed.
    """
    stored = [_open_or_create(place.uri, place.table) for place in places]
    with _refusals_of_workers():
        written = write_files(rows, places).to_pylist()
    files = [[file for file in written if file["place"] == index] for index in range(len(places))]
    for place, of_place in zip(places, files, strict=True):
        _require_rows(place.table, place.row_count, sum(file["rows"] for file in of_place))
    return [
        Written(place.table.name, place.uri, _commit_files(delta, place.table, of_place, run_id), place.row_count)
        for place, delta, of_place in zip(places, stored, files, strict=True)
    ]


def write_arrow(rows: pa.Table, uri: str, table: Table, *, run_id: str, file_count: int = 1) -> Written:
    """Replace a table's rows, in one commit, by rows in this process's memory; the JVM does not see them.

    Args:
        rows: The new rows; conformed to `table`.
        uri: Where the table lies; made if absent.
        table: What it means; its nullability is enforced.
        run_id: Written into the commit's userMetadata.
        file_count: Files to write, of as many batches of 2,048 rows each but for the last.

    Raises:
        TableError: as of `write_worker_rows`.
        OvertakenError: as of `write_worker_rows`.
    """
    stored = _open_or_create(uri, table)
    # Whole batches of 2,048 rows, as Spark cuts an Arrow table into partitions.
    batches = rows.combine_chunks().to_batches(max_chunksize=_ROWS_PER_BATCH)
    per_file = -(-len(batches) // file_count) if batches else 1
    parts = [batches[first : first + per_file] for first in range(0, len(batches), per_file)]
    found = [write_part(part, uri, number, table) for number, part in enumerate(parts)]
    files = [file for file in found if file]
    return Written(table.name, uri, _commit_files(stored, table, files, run_id), len(rows))


@contextmanager
def _refusals_of_workers() -> Iterator[None]:
    """An InputError that a worker raised, as itself."""
    try:
        yield
    except PythonException as error:
        if refusal := from_worker(str(error)):
            raise refusal from error
        raise


def _require_rows(table: Table, expected: int, found: int) -> None:
    if expected != found:
        cure = "Nothing was committed. Files of its input were changed since their commit, or the job is at fault."
        raise TableError(table.name, "(all)", expected=f"{expected} rows", found=f"{found}", cure=cure)


def _open_or_create(uri: str, table: Table) -> deltalake.DeltaTable:
    """The table, empty if there was none.

    Made before any file: files in a folder without a Delta log would be a table of their own.

    Raises:
        TableError: it has partitions or rules that files not written by Spark would not keep.
    """
    file_system(uri)  # refused here, if at all, before there is a table
    stored = deltalake.DeltaTable.create(
        uri,
        deltalake.Schema.from_arrow(arrow_schema(table)),
        mode="ignore",
        configuration={"delta.enableDeletionVectors": "false"},
    )
    for name in _FORMER_CHECKS & {key.removeprefix("delta.constraints.") for key in stored.metadata().configuration}:
        stored.alter.drop_constraint(name)
    _refuse_rules(stored, table)
    return stored


def _commit_files(stored: deltalake.DeltaTable, table: Table, files: list[dict[str, Any]], run_id: str) -> int:
    """Replace all files of a table; returns the version.

    Raises:
        OvertakenError: anything was committed since it was opened.
    """
    try:
        return _replace_files(stored, deltalake.Schema.from_arrow(arrow_schema(table)), files, run_id)
    except CommitFailedError as error:
        raise OvertakenError(
            f"table {table.name} at {stored.table_uri}: expected version {stored.version()}, as when this run began; "
            "found a newer one, of another run. Nothing was committed. See that no two runs write one warehouse; run "
            "the job again."
        ) from error


def _replace_files(
    stored: deltalake.DeltaTable, schema: deltalake.Schema, files: list[dict[str, Any]], run_id: str
) -> int:
    """Commit the files in place of all others; fails where anything was committed since the table was opened."""
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
    require_held()
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
