"""Commits of files that are written already: they enter a Delta table at once, or none does. Knows no Spark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import deltalake
import pyarrow as pa
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, CommitProperties
from pyarrow import fs

from schemas.arrow import arrow_schema
from schemas.columns import Table
from schemas.errors import TableError
from schemas.lease import require_held
from schemas.storage import commits_of, file_system, files_checksum, is_unchanged_since, reader_features
from schemas.tables import MERGED

Note = Mapping[str, Any]
"""What a commit's userMetadata says, as JSON: see `JobRun.note`."""

_FORMER_CHECKS = {"engagement_count_is_positive", "pair_weight_is_positive", "query_embedding_is_whole"}
"""Constraints that training tables had up to version 0.2; the declaration of the table says the same."""


class OvertakenError(Exception):
    """Another run committed to the table meanwhile; nothing was committed, and a retry starts from what is there."""


@dataclass(frozen=True)
class Staged:
    """Rows whose files lie in a table's folder, and that are no part of the table before they are committed.

    Attributes:
        table: What they mean.
        uri: Where the table lies.
        files: One entry a file, as of `worker_rows.write_parts`.
        base: Version of the table when they were written.
        sums: Sums of `WorkerRows.sums`.
    """

    table: Table
    uri: str
    files: list[dict[str, Any]]
    base: int
    sums: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(int(file["rows"]) for file in self.files)

    @property
    def checksum(self) -> str:
        """What a version that consists of them is known by."""
        return files_checksum((str(file["path"]), int(file["bytes"]), int(file["rows"])) for file in self.files)

    @property
    def uris(self) -> list[str]:
        """Where the files lie, in their order."""
        return [f"{self.uri.rstrip('/')}/{file['path']}" for file in self.files]

    def discard(self) -> None:
        """Remove the files, where something else has taken their rows over."""
        system, folder = file_system(self.uri)
        for file in self.files:
            system.delete_file(f"{folder}/{file['path']}")

    def commit(self, note: Note, before: Callable[[int], None] | None = None) -> int:
        """Replace the table's rows by these, in one commit; returns the version.

        Args:
            note: Written into the commit's userMetadata, as JSON.
            before: Called with that version right before it is committed.

        Raises:
            OvertakenError: another run has committed to the table since they were staged. Nothing was committed.
        """
        stored = deltalake.DeltaTable(self.uri)
        if self.files and _paths(stored) == sorted(str(file["path"]) for file in self.files):
            return int(stored.version())  # `committed`, or an earlier try was ended right after it
        # VACUUM commits too, and changes no row; on top of anything else the commit is refused.
        if stored.version() != self.base and not is_unchanged_since(self.uri, self.base):
            stored = deltalake.DeltaTable(self.uri, version=self.base)
        if before:
            before(stored.version() + 1)
        return replace_files(stored, self.table, self.files, note)

    def append(self, note: Note) -> int:
        """Add these rows to the table's, in one commit; returns the version.

        Args:
            note: Written into the commit's userMetadata, as JSON.

        Raises:
            OvertakenError: as of `commit`.
        """
        return write_files(deltalake.DeltaTable(self.uri, version=self.base), self.table, self.files, note, "append")


def committed(uri: str, table: Table, version: int) -> Staged:
    """The rows of a version as if they were staged once more: to commit them is to name the newest version.

    Args:
        uri: Where the table lies.
        table: What its rows mean.
        version: One without deletion vectors, after which no row has changed.
    """
    actions = pa.table(deltalake.DeltaTable(uri, version=version).get_add_actions(flatten=True))
    names = {"path": "path", "size_bytes": "bytes", "num_records": "rows"}
    files = actions.select(list(names)).rename_columns(list(names.values())).to_pylist()
    return Staged(table, uri, files, version)


def writer_of(uri: str) -> str | None:
    """The stage that wrote the newest rows of a table, by its note; empty = somebody else; None = nothing is there."""
    system, path = file_system(uri)
    if system.get_file_info(path).type == fs.FileType.NotFound:
        return None
    if not deltalake.DeltaTable.is_deltatable(uri):
        return ""
    table = deltalake.DeltaTable(uri)
    notes = [note for commit in table.history(100) if (note := commit.get("userMetadata"))]
    if notes:
        with suppress(ValueError, AttributeError):
            return str(json.loads(notes[0]).get("stage", ""))
        return ""
    return "" if table.file_uris() else None


def commit_note(uri: str, note: Note) -> int:
    """A commit that changes no row and says something; returns the version."""
    table, mark = deltalake.DeltaTable(uri), str(uuid4())
    require_held()
    properties = CommitProperties({"userMetadata": json.dumps(dict(note)), "txnId": mark}, max_commit_retries=0)
    table.create_write_transaction([], "append", table.schema(), commit_properties=properties)
    return next(int(one["version"]) for one in commits_of(uri, 100) if one.get("txnId") == mark)


def _paths(table: deltalake.DeltaTable) -> list[str]:
    return sorted(pa.table(table.get_add_actions(flatten=True))["path"].to_pylist())


def open_or_create(uri: str, table: Table) -> deltalake.DeltaTable:
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


def replace_files(stored: deltalake.DeltaTable, table: Table, files: list[dict[str, Any]], note: Note) -> int:
    """Replace all files of a table; returns the version.

    Raises:
        OvertakenError: as of `write_files`.
    """
    return write_files(stored, table, files, note, "overwrite")


def write_files(
    stored: deltalake.DeltaTable,
    table: Table,
    files: list[dict[str, Any]],
    note: Note,
    mode: Literal["append", "overwrite"],
) -> int:
    """Add files to those of a table, or replace all of them; returns the version.

    Raises:
        OvertakenError: anything was committed since it was opened.
    """
    try:
        return _write_files(stored, deltalake.Schema.from_arrow(arrow_schema(table)), files, note, mode)
    except CommitFailedError as error:
        if deltalake.DeltaTable(stored.table_uri).version() == stored.version():
            raise  # not for another run's sake: such as for want of room
        raise OvertakenError(
            f"table {table.name} at {stored.table_uri}: expected version {stored.version()}, as when this run began; "
            "found a newer one, of another run. Nothing was committed. See that no two runs write one warehouse; run "
            "the job again."
        ) from error


def _write_files(
    stored: deltalake.DeltaTable,
    schema: deltalake.Schema,
    files: list[dict[str, Any]],
    note: Note,
    mode: Literal["append", "overwrite"],
) -> int:
    """Commit the files; fails where anything was committed since the table was opened."""
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
        "userMetadata": json.dumps(dict(note)),
        "txnId": commit_id,
        "operationMetrics": {name: str(total) for name, total in totals.items()},
    }
    # A repeated commit would go on top of another run's: of a table that was empty, both runs' rows would stay.
    once = CommitProperties(properties, max_commit_retries=0)
    stored.create_write_transaction(actions, mode, schema, commit_properties=once)
    commits = commits_of(stored.table_uri, 100)
    return next(int(commit["version"]) for commit in commits if commit.get("txnId") == commit_id)


def _refuse_rules(stored: deltalake.DeltaTable, table: Table) -> None:
    """Partitions and rules that somebody gave the stored table, and that files written by workers would not keep."""
    metadata = stored.metadata()
    features = {*reader_features(stored), *(stored.protocol().writer_features or [])}
    found = [f"partitioned by {name}" for name in metadata.partition_columns]
    found += [name for name in sorted(metadata.configuration) if name.startswith("delta.constraints.")]
    # Whoever replaces all files of a table whose rows were deleted by vectors leaves none.
    refused = {"columnMapping"} if table.name in MERGED else {"columnMapping", "deletionVectors"}
    found += sorted(features & refused)
    if found:
        raise TableError(
            table.name,
            "(all)",
            expected="a table without partitions, CHECK constraints, column mapping and deletion vectors",
            found=", ".join(found),
            cure="Nothing was written. Drop the constraints (ALTER TABLE ... DROP CONSTRAINT), or move the table away.",
        )
