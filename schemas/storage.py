"""Storage: which file system a URI means, files replaced whole or not at all, and the files of a table version."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pyarrow import fs

from schemas.errors import InputError

_ROWS_AT_ONCE = 4_096


def absolute_uri(uri: str) -> str:
    """A URI as it is; a plain path made absolute, so that it means the same in every process."""
    return uri if "://" in uri else str(Path(uri).resolve())


def file_system(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow file system of a URI or absolute path, and the path inside it.

    Raises:
        InputError: pyarrow knows no such kind of URI.
    """
    try:
        system, path = fs.FileSystem.from_uri(absolute_uri(uri))
    except pa.ArrowInvalid as error:
        raise InputError(
            "warehouse",
            "uri",
            expected="a path or a URI that pyarrow, deltalake and Spark open alike (file://, s3://, gs://, hdfs://)",
            found=f"{uri}: {error}",
            cure="Write s3:// for s3a://; set spark.hadoop.fs.s3.impl to org.apache.hadoop.fs.s3a.S3AFileSystem.",
        ) from error
    return system, path


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new, never a part.

    Temporary file, fsync, rename, and fsync of the folder, without which a power cut may undo the rename.
    """
    system, path = file_system(uri)
    system.create_dir(path.rpartition("/")[0], recursive=True)
    if not isinstance(system, fs.LocalFileSystem):
        # Object stores publish a file only when it is closed.
        with system.open_output_stream(path) as stream:
            stream.write(content)
        return
    staged = f"{path}.{uuid4().hex}.staged"
    try:
        with open(staged, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except OSError:  # a full disk, which the rest of the file would keep full
        with suppress(OSError):
            os.remove(staged)
        raise
    folder = os.open(path.rpartition("/")[0], os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    system, path = file_system(uri)
    with system.open_input_stream(path) as stream:
        content: bytes = stream.read()
    return content


def is_file(uri: str) -> bool:
    """Whether there is a file at a URI."""
    system, path = file_system(uri)
    return bool(system.get_file_info(path).is_file)


def stamp_of(file: fs.FileInfo) -> str:
    """A file's size and when it was written: of one that was written anew they are others."""
    return f"{file.size} {file.mtime_ns}"


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table.

    Attributes:
        uri: A URI with its scheme, percent-encoded.
        rows: How many it holds; None = the table's log does not say.
        deleted: How many of them a deletion vector takes away.
        partition: What all of its rows hold in the columns that the table is partitioned by.
    """

    uri: str
    rows: int | None
    deleted: int = 0
    partition: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """What pyarrow opens: the path of a local file, else the URI."""
        return unquote(self.uri.removeprefix("file://")) if self.uri.startswith("file://") else self.uri


@dataclass(frozen=True)
class VersionFiles:
    """What one version of a Delta table consists of.

    Attributes:
        version: The version.
        files: Its files.
        reader_features: What a reader must know beside Parquet, such as deletionVectors; see `reader_features`.
        checksum: See `files_checksum`.
    """

    version: int
    files: tuple[DataFile, ...]
    reader_features: frozenset[str]
    checksum: str = ""


_CHANGE_NO_ROW = {"VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "UPGRADE PROTOCOL", "ADD FEATURE"}


def commits_of(table_uri: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The commits of a Delta table with their `version`, the newest first; at most so many.

    deltalake lists the commits that the log has by now, and numbers them from the version that it has opened: if one
    comes in between, every commit gets another's number. Then the list is taken anew.
    """
    while True:
        delta = DeltaTable(table_uri)
        commits: list[dict[str, Any]] = delta.history(limit)
        if DeltaTable(table_uri).version() == delta.version():
            return commits


def is_unchanged_since(table_uri: str, version: int) -> bool:
    """Whether no row of a Delta table has changed since a version: only VACUUM and changes of properties came after."""
    commits = commits_of(table_uri)
    after = [one for one in commits if int(one["version"]) > version]
    newest = int(commits[0]["version"]) if commits else version
    return newest - version == len(after) and all(changes_no_row(one) for one in after)


def changes_no_row(commit: Mapping[str, Any]) -> bool:
    """Whether a commit of a table's history leaves its rows as they were."""
    return commit["operation"] in _CHANGE_NO_ROW


def files_checksum(files: Iterable[tuple[str, int, int | None]]) -> str:
    """What a version of a table is known by beside its number: hash of its files' paths, bytes and rows.

    A table that was removed and made anew may have the number, and has other files, whose names are drawn at random.
    """
    text = json.dumps(sorted(files), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def version_files(table_uri: str, version: int | None = None) -> VersionFiles:
    """Resolve one version of a Delta table to its files; None = the newest.

    Raises:
        TableNotFoundError: there is no Delta table at the URI (deltalake's own error).
        InputError: a file of the table's log is damaged or missing, or the log no longer reaches back to the version.
    """
    try:
        delta = DeltaTable(table_uri, version=version)
    except DeltaError as error:
        if fault := _fault_of_log(table_uri, version):
            raise InputError(
                "table",
                table_uri,
                expected="the newest version" if version is None else f"version {version}, which a run record names",
                found=fault,
                cure=f"Restore it, or move {table_uri} away and run the stage that writes it (FROM=<stage>).",
            ) from error
        raise
    return files_of(delta)


def files_of(delta: DeltaTable) -> VersionFiles:
    """The files of an opened Delta table."""
    keys = [f"partition.{name}" for name in delta.metadata().partition_columns]
    wanted = ["path", "size_bytes", "num_records", *keys]
    actions = pa.table(delta.get_add_actions(flatten=True)).select(wanted).to_pylist()
    # Both in the order of names, which the folder before them does not change.
    actions.sort(key=lambda action: unquote(action["path"]))
    uris = sorted((_uri_of(found) for found in delta.file_uris()), key=unquote)
    kept = _kept_rows(delta)
    files = []
    for uri, action in zip(uris, actions, strict=True):
        deleted = int(pc.sum(pc.invert(kept[unquote(uri)])).as_py()) if unquote(uri) in kept else 0
        values = {key.removeprefix("partition."): action[key] for key in keys}
        files.append(DataFile(uri, action["num_records"], deleted, values))
    checksum = files_checksum((unquote(a["path"]), a["size_bytes"], a["num_records"]) for a in actions)
    return VersionFiles(delta.version(), tuple(files), reader_features(delta), checksum)


def reader_features(delta: DeltaTable) -> frozenset[str]:
    """What a reader of a table must know beside Parquet; tables of before features name column mapping otherwise."""
    features = set(delta.protocol().reader_features or [])
    if delta.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        features.add("columnMapping")
    return frozenset(features)


def _uri_of(found: str) -> str:
    """The URI of a file that delta-rs names: a local one comes as its path, percent-encoded."""
    return found if "://" in found else f"file://{found}"


def _kept_rows(delta: DeltaTable) -> dict[str, pa.Array]:
    """By URI, which rows of a file with a deletion vector are left; other files are not among them."""
    if "deletionVectors" not in (delta.protocol().reader_features or []):
        return {}
    vectors = pa.table(delta.deletion_vectors())
    names = [unquote(name) for name in vectors["filepath"].to_pylist()]
    return {name: row.values for name, row in zip(names, vectors["selection_vector"], strict=True)}


def _fault_of_log(table_uri: str, version: int | None) -> str:
    """The first file of a table's log that is damaged or missing, as the end of a sentence; empty where none is."""
    system, folder = file_system(table_uri)
    listed = system.get_file_info(fs.FileSelector(f"{folder}/_delta_log", allow_not_found=True))
    files = sorted((info.base_name, info.path) for info in listed if info.is_file)
    versions = [int(name[:20]) for name, _ in files if re.fullmatch(r"\d{20}\.json", name)]
    checkpoints = {int(name[:20]) for name, _ in files if re.fullmatch(r"\d{20}\.checkpoint.*\.parquet", name)}
    for name, path in files:
        try:
            with system.open_input_file(path) as file:
                if name.endswith(".parquet"):
                    pq.ParquetFile(file).read()
                elif name.endswith(".json"):
                    for line in file.read().splitlines():
                        json.loads(line)
        except MemoryError:  # pyarrow's is an ArrowException too
            raise
        except (ValueError, OSError, pa.ArrowException) as error:
            return f"a damaged file of its log, {path} ({' '.join(str(error).split())[:200]})"
    if not versions:
        return ""
    wanted = versions[-1] if version is None else version
    start = max((number for number in checkpoints if number <= wanted), default=0)
    if missing := sorted({*range(start, wanted + 1)} - {*versions, *checkpoints}):
        return (
            f"no file {missing[0]:020}.json in its log, which goes from {versions[0]} to {versions[-1]}: it was lost, "
            "or the log was cleaned up (VACUUM, delta.logRetentionDuration)"
        )
    return ""


def rows_of(files: Iterable[DataFile]) -> int:
    """Rows of a table's files: as its log says, else as their footers do, less those that are deleted."""
    return sum(_stored_rows(file) - file.deleted for file in files)


def _stored_rows(file: DataFile) -> int:
    if file.rows is not None:
        return file.rows
    system, path = file_system(file.path)
    return int(pq.read_metadata(path, filesystem=system).num_rows)


def data_files(table_uri: str, version: int | None = None) -> list[str]:
    """Paths or URIs of the Parquet files of one version of a Delta table; None = the newest."""
    return [file.path for file in version_files(table_uri, version).files]


def read_first_rows(table_uri: str, version: int | None, columns: list[str], rows: int) -> pa.Table:
    """The first rows of what `read_columns` returns, at most so many; what comes after them is not read."""
    parts: list[pa.RecordBatch] = []
    missing = rows
    for batch in read_batches(table_uri, version, columns):
        parts.append(batch.slice(0, missing))
        missing -= len(parts[-1])
        if not missing:
            break
    return pa.Table.from_batches(parts) if parts else read_columns(table_uri, version, columns)


def read_columns(table_uri: str, version: int | None, columns: list[str]) -> pa.Table:
    """Some columns of one version of a Delta table, whole, without a JVM; None = the newest."""
    delta = DeltaTable(table_uri, version=version)
    schema = pa.schema(delta.schema().to_arrow())
    wanted = pa.schema([schema.field(name) for name in columns])
    batches = list(read_batches(table_uri, delta.version(), columns))
    return pa.concat_tables(
        [pa.Table.from_batches([batch]).cast(wanted) for batch in batches] or [wanted.empty_table()]
    )


def read_batches(table_uri: str, version: int | None, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of one version of a Delta table, a piece of a file after the other; None = the newest.

    Columns are found under the names that the table's files have for them (column mapping); rows that a deletion
    vector takes away are left out; a file that is older than a column has nulls for it.
    """
    delta = DeltaTable(table_uri, version=version)
    schema = pa.schema(delta.schema().to_arrow())
    fields = {entry["name"]: entry["metadata"] for entry in json.loads(delta.schema().to_json())["fields"]}
    stored = {name: fields[name].get("delta.columnMapping.physicalName", name) for name in columns}
    kept = _kept_rows(delta)
    for file in files_of(delta).files:
        values, keep, start = file.partition, kept.get(unquote(file.uri)), 0
        for rows in file_batches(file.path, [stored[name] for name in columns if name not in values]):
            found = {
                name: _repeated(values[name], schema.field(name).type, len(rows)) if name in values
                else rows.column(stored[name]) if stored[name] in rows.schema.names
                else pa.nulls(len(rows), schema.field(name).type)
                for name in columns
            }  # fmt: skip
            batch = pa.RecordBatch.from_pydict(found)
            yield batch if keep is None else batch.filter(_as_long(keep.slice(start, len(rows)), len(rows)))
            start += len(rows)


def _as_long(keep: pa.Array, count: int) -> pa.Array:
    """A selection may end with the last row that it takes away."""
    return pa.concat_arrays([keep, pa.array([True] * (count - len(keep)), pa.bool_())])


def file_batches(uri: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Those of some columns that a Parquet file has, a piece after the other; batches without any still have rows."""
    system, path = file_system(uri)
    with pq.ParquetFile(path, filesystem=system) as file:
        if present := [name for name in columns if name in file.schema_arrow.names]:
            yield from file.iter_batches(_ROWS_AT_ONCE, columns=present)
        else:
            nothing = pa.array([{}] * file.metadata.num_rows, pa.struct([]))
            yield pa.RecordBatch.from_struct_array(nothing)


def _repeated(value: Any, kind: pa.DataType, count: int) -> pa.Array:
    return pa.array([value] * count, pa.string() if isinstance(value, str) else kind).cast(kind)
