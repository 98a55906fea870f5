"""The Parquet files of an input table: each with its rows and columns by its own footer, or the file at fault."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from schemas.columns import Table
from schemas.errors import TableError
from schemas.input_columns import Sources, sources_of
from schemas.storage import stamp_of

CORRECT_URI = "Run the job that writes it, or correct the URI in the settings."

_THREADS = 16
"""Footers that are read at once: on an object store, most of one is waiting."""

NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
"""What a `key=value` folder is called whose value is null."""

_OTHER_FORMATS = {"_delta_log": "a Delta table", ".hoodie": "an Apache Hudi table"}
"""Folders of which each makes the folder that it lies in a table of another kind than plain Parquet files."""

_UNREADABLE_CODECS = ("BROTLI", "LZO")
"""Compressions that pyarrow knows and Spark does not."""


@dataclass(frozen=True)
class InputFile:
    """One file of an input table.

    Attributes:
        uri: What Spark opens: a path, or a URI.
        name: Its path within the table's folder; empty = the table is this one file.
        rows: How many it holds, by its own footer.
        sources: Where the declared columns come from.
        names: All columns that it holds, as they are spelled.
        folders: Values of `key=value` folders by key, in lower case; None = null.
        stamp: Its size and when it was written, by which one that was written anew is told from the old one.
    """

    uri: str
    name: str
    rows: int
    sources: Sources
    names: tuple[str, ...]
    folders: Mapping[str, str | None] = field(default_factory=dict)
    stamp: str = ""

    @property
    def all_names(self) -> tuple[str, ...]:
        """All columns, those that only the folders' names hold among them."""
        return (*self.names, *(key for key in self.folders if key not in self.names))


def parquet_files(
    system: fs.FileSystem, place: fs.FileInfo, uri: str, table: Table
) -> tuple[tuple[InputFile, ...], tuple[str, ...]]:
    """The files of a folder, at any depth, or the one file that a URI names.

    Args:
        system: The file system.
        place: The folder, or the file.
        uri: Its URI.
        table: What the rows mean.

    Returns:
        The files, and the names of those that nobody counts as data.

    Raises:
        TableError: there is no file, one is no Parquet file or of no bytes, or two columns of one have one name.
    """
    listed = _listed(system, place, uri, table)
    taken = {name: info for name, info in listed.items() if not _is_passed_over(name)}
    if not taken:
        raise refusal(table, f"a Delta or Parquet table at {uri}", "no file of data in the folder", CORRECT_URI)
    for name, info in taken.items():
        if info.size == 0:  # its upload broke off
            raise _no_parquet(table, _uri_within(uri, name), "a file of 0 bytes")
    with ThreadPoolExecutor(_THREADS) as threads:
        files = tuple(threads.map(lambda name: _read_footer(system, taken[name], uri, name, table), taken))
    # Hadoop's checksums are no news: it writes one for each file on a local disk.
    return files, tuple(name for name in listed if name not in taken and not name.endswith(".crc"))


def _listed(system: fs.FileSystem, place: fs.FileInfo, uri: str, table: Table) -> dict[str, fs.FileInfo]:
    """All files by their path within the folder."""
    if place.type == fs.FileType.File:
        return {"": place}
    root = place.path.rstrip("/")
    found = {
        info.path[len(root) :].lstrip("/"): info for info in system.get_file_info(fs.FileSelector(root, recursive=True))
    }
    for name in found:
        folder, _, last = name.rpartition("/")
        if last in _OTHER_FORMATS:
            kind = f"{_OTHER_FORMATS[last]} at {folder or uri}"
            cure = "Name a Delta table itself in the settings; export any other as Parquet."
            raise refusal(table, f"one Delta table, or Parquet files alone, at {uri}", kind, cure)
    listed = {name: found[name] for name in sorted(found) if found[name].type == fs.FileType.File}
    if isinstance(system, fs.LocalFileSystem):
        _refuse_links(root, listed, uri, table)
    return listed


def _refuse_links(root: str, listed: dict[str, fs.FileInfo], uri: str, table: Table) -> None:
    """Links that lead nowhere, which pyarrow does not list, and links to a file that is there already."""
    cure = "Remove the link."
    for folder, _, names in os.walk(root):
        for path in (f"{folder}/{name}" for name in names if not name.startswith((".", "_"))):
            if os.path.islink(path) and not os.path.exists(path):
                raise refusal(table, f"files that can be read at {uri}", f"a link to nothing: {path}", cure)
    places: dict[str, str] = {}
    for name, info in listed.items():
        place = os.path.realpath(info.path)
        if place in places:
            twice = f"{_uri_within(uri, name)}, which is {_uri_within(uri, places[place])} once more"
            raise refusal(table, f"each file once at {uri}", twice, cure)
        places[place] = name


def _uri_within(uri: str, name: str) -> str:
    """The URI of a file of a folder; of no name is the one file that a URI names itself."""
    return f"{uri.rstrip('/')}/{name}" if name else uri


def _is_passed_over(name: str) -> bool:
    """Whether everybody passes a file over, for its own name or a folder's; `_key=value` is a folder of data."""
    parts = name.split("/")
    is_hidden = any(part.startswith((".", "_")) and not (part.startswith("_") and "=" in part) for part in parts)
    return is_hidden or name.endswith("_$folder$")  # Hadoop's mark of a folder on an object store


def _read_footer(system: fs.FileSystem, file: fs.FileInfo, uri: str, name: str, table: Table) -> InputFile:
    path = file.path
    try:
        with pq.ParquetFile(path, filesystem=system) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
    except MemoryError:  # pyarrow's is an ArrowException too
        raise
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(table, _uri_within(uri, name), _beginning(system, path, error)) from error
    group = metadata.row_group(0) if metadata.num_row_groups else None
    codecs = {group.column(number).compression for number in range(group.num_columns)} if group else set()
    if unreadable := codecs.intersection(_UNREADABLE_CODECS):
        found = f"{', '.join(unreadable)} in {_uri_within(uri, name)}"
        raise refusal(table, "files that Spark can decompress", found, "Write it with zstd or snappy.")
    leaves = (metadata.schema.column(number) for number in range(metadata.num_columns))
    instants = frozenset(leaf.path for leaf in leaves if leaf.physical_type == "INT96")
    folders = _folders(name)
    sources = sources_of(schema, table, folders, instants, f" in {_uri_within(uri, name)}")
    names, stamp = tuple(schema.names), stamp_of(file)
    return InputFile(_uri_within(uri, name), name, metadata.num_rows, sources, names, folders, stamp)


def _beginning(system: fs.FileSystem, path: str, error: Exception) -> str:
    """What a file is that is no Parquet file."""
    with system.open_input_stream(path) as stream:
        start = stream.read(12)
    if start.startswith(b"PAR"):
        return f"a damaged one: {' '.join(str(error).split())[:200]}"
    return f"a file that begins with {start!r}"


def _folders(name: str) -> dict[str, str | None]:
    """The `key=value` folders of a file, as Hive lays out partitions."""
    pairs = [part.split("=", 1) for part in name.split("/")[:-1] if "=" in part]
    return {key.lower(): None if value in ("", NULL_FOLDER) else unquote(value) for key, value in pairs if key}


def _no_parquet(table: Table, file: str, found: str) -> TableError:
    cure = (
        "Move it elsewhere if it is no part of the table; else write it again, as Parquet (CSV and JSON are not read)."
    )
    return refusal(table, "Parquet files alone, or a Delta table", f"{file}, {found}", cure)


def refusal(table: Table, expected: str, found: str, cure: str) -> TableError:
    """The refusal of a table for no column's sake."""
    return TableError(table.name, "(all)", expected=expected, found=found, cure=cure)
