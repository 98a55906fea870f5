"""What a shop's table consists of, found without a JVM: every file with its rows and columns, or the file at fault.

The one door of input tables. Spark reads what is found here (jobs/runtime/input_tables.py), `doctor` and the summary
read it through `schemas/input_rows.py`; what one of them takes or refuses, all do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyarrow import fs

from schemas.columns import Table
from schemas.errors import InputError, TableError
from schemas.input_columns import Sources, column_faults, sources_of
from schemas.storage import DataFile, file_system, version_files

_THREADS = 16
"""Footers that are read at once: on an object store, most of one is waiting."""

_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

_OTHER_FORMATS = {"_delta_log": "a Delta table", ".hoodie": "an Apache Hudi table"}
"""Folders of which each makes the folder that it lies in a table of another kind than plain Parquet files."""

_UNREADABLE_CODECS = ("BROTLI", "LZO")
"""Compressions that pyarrow knows and Spark does not."""


@dataclass(frozen=True)
class InputFile:
    """One file of an input table.

    Attributes:
        uri: What Spark opens: a path, or a URI.
        name: Its path within the table's folder.
        rows: How many it holds, by its own footer.
        sources: Where the declared columns come from.
        names: All columns that it holds, as they are spelled.
        folders: Values of `key=value` folders by key, in lower case; None = null.
    """

    uri: str
    name: str
    rows: int
    sources: Sources
    names: tuple[str, ...]
    folders: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class InputTable:
    """What an input table consists of.

    Attributes:
        table: What its rows mean.
        uri: Where it lies.
        version: Its Delta version; None = a folder of Parquet files, or one file.
        file_count: How many files it has.
        rows: How many rows they hold: by their footers, or by the log and its deletion vectors. None = nobody can say
            without reading them; `unproven` says why.
        names: All columns that are there, as they are spelled.
        sources: Where the declared columns of a Delta table come from.
        files: The files of a table that is no Delta table.
        passed_over: Files whose names begin with _ or . and that nobody counts as data.
        unproven: Why the number of rows is not known.
        faults: What is wrong with its columns.
    """

    table: Table
    uri: str
    version: int | None
    file_count: int
    rows: int | None
    names: tuple[str, ...]
    sources: Sources = field(default_factory=dict)
    files: tuple[InputFile, ...] = ()
    passed_over: tuple[str, ...] = ()
    unproven: str = ""
    faults: tuple[TableError, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """The declared columns that are there, and hold more than nulls as far as the types say."""
        by_file = [self.sources, *(file.sources for file in self.files)]
        return tuple(name for name in self.table.column_names if any(name in sources for sources in by_file))

    @property
    def others(self) -> tuple[str, ...]:
        """The columns that are there and that nothing reads."""
        return tuple(name for name in self.names if name.lower() not in self.table.column_names)

    def __str__(self) -> str:
        declared = len(self.table.columns)
        rows = f"{self.rows:,} rows" if self.rows is not None else f"rows not proven ({self.unproven})"
        kind = "Parquet" if self.version is None else f"Delta version {self.version}"
        text = f"{kind}, {_counted(self.file_count, 'file')}, {rows}, {len(self.known)} of {declared} columns"
        missing = [name for name in self.table.column_names if name not in self.known]
        text += f"; not there: {', '.join(missing)}" if missing else ""
        text += f"; not read: {_shortened(self.others)}" if self.others else ""
        return text + (f"; passed over: {_shortened(self.passed_over)}" if self.passed_over else "")


def find_input(uri: str, table: Table) -> InputTable:
    """Find out what an input table consists of, and refuse one that cannot be read as it is meant.

    Args:
        uri: As of `look_at_input`.
        table: What its rows mean.

    Raises:
        TableError: as of `look_at_input`, or a column is at fault.
        InputError: nothing here opens such a URI.
    """
    found = look_at_input(uri, table)
    for fault in found.faults:
        raise fault
    return found


def look_at_input(uri: str, table: Table) -> InputTable:
    """Find out what an input table consists of, and what is wrong with its columns.

    Args:
        uri: A Delta table, a folder of Parquet files at any depth, or one Parquet file.
        table: What its rows mean.

    Raises:
        TableError: there is nothing, a file is no Parquet file, or two columns have one name.
        InputError: nothing here opens such a URI.
    """
    try:
        system, root = file_system(uri)
    except InputError as error:
        where = (f"table {table.name}", f"inputs.{table.name}")
        raise InputError(*where, expected=error.expected, found=error.found, cure=error.cure) from error
    root = root.rstrip("/")
    place, log = system.get_file_info([root, f"{root}/_delta_log"])
    if log.type != fs.FileType.NotFound:
        return _delta_table(uri, table)
    if place.type == fs.FileType.NotFound:
        raise _refusal(table, f"a Delta or Parquet table at {uri}", "nothing there", _CORRECT_URI)
    _refuse_a_part_of_another_table(system, root, uri, table)
    return _parquet_files(system, place, uri, table)


_CORRECT_URI = "Run the job that writes it, or correct the URI in the settings."


# ---------------------------------------------------------------- Delta


def _delta_table(uri: str, table: Table) -> InputTable:
    try:
        delta = DeltaTable(uri)
        found = version_files(uri, delta.version())
        schema = pa.schema(delta.schema().to_arrow())
    except TableNotFoundError as error:
        cure = "Restore the log, or remove the folder _delta_log if these are plain Parquet files."
        raise _refusal(table, f"a Delta table at {uri}", "a folder _delta_log without a commit", cure) from error
    except DeltaError as error:  # a feature that only Spark knows
        return InputTable(table, uri, None, 0, None, (), unproven=" ".join(str(error).split())[:200])
    sources = sources_of(schema, table, {}, frozenset())
    names, rows = tuple(schema.names), [_rows_of(file) for file in found.files]
    faults = tuple(column_faults(table, [(sources, names, "")]))
    return InputTable(table, uri, found.version, len(rows), sum(rows), names, sources, faults=faults)


def _rows_of(file: DataFile) -> int:
    """Rows of a Delta table's file: as its log says, else as its footer does, less those that are deleted."""
    if file.rows is None:
        system, path = file_system(file.path)
        return int(pq.read_metadata(path, filesystem=system).num_rows) - file.deleted
    return file.rows - file.deleted


# ---------------------------------------------------------------- folders of Parquet files


def _refuse_a_part_of_another_table(system: fs.FileSystem, root: str, uri: str, table: Table) -> None:
    """A folder within a Delta table holds files that its log has removed, too."""
    parents = root.split("/")
    above = ["/".join(parents[:count]) for count in range(len(parents) - 1, 1, -1)]
    for folder, info in zip(above, system.get_file_info([f"{path}/_delta_log" for path in above]), strict=True):
        if info.type == fs.FileType.Directory:
            found = f"{uri}, a part of the Delta table {folder}, whose files also hold rows that were removed"
            raise _refusal(table, "a table of its own", found, "Name the whole table in the settings.")


def _parquet_files(system: fs.FileSystem, place: fs.FileInfo, uri: str, table: Table) -> InputTable:
    root = place.path.rstrip("/")
    if place.type == fs.FileType.File:
        listed, names = [place], [place.base_name]
    else:
        found = sorted(system.get_file_info(fs.FileSelector(root, recursive=True)), key=lambda info: info.path)
        relative = {info.path: info.path[len(root) :].lstrip("/") for info in found}
        _refuse_other_formats(list(relative.values()), uri, table)
        listed = [info for info in found if info.type == fs.FileType.File]
        names = [relative[info.path] for info in listed]
    taken = [(info, name) for info, name in zip(listed, names, strict=True) if not _is_passed_over(name)]
    if not taken:
        raise _refusal(table, f"a Delta or Parquet table at {uri}", "no file of data in the folder", _CORRECT_URI)
    # Of no bytes are files whose upload broke off.
    for info, name in taken:
        if info.size == 0:
            raise _no_parquet(table, uri, name, "a file of 0 bytes")

    def read(entry: tuple[fs.FileInfo, str]) -> InputFile:
        info, name = entry
        opened = uri if place.type == fs.FileType.File else f"{uri.rstrip('/')}/{name}"
        return _read_footer(system, info.path, InputFile(opened, name, 0, {}, ()), table)

    with ThreadPoolExecutor(_THREADS) as threads:
        files = tuple(threads.map(read, taken))
    places = [(file.sources, _all_names(file), f" in {file.name}" if len(files) > 1 else "") for file in files]
    columns = tuple(dict.fromkeys(name for file in files for name in _all_names(file)))
    passed_over = tuple(name for name in names if _is_passed_over(name))
    rows = sum(file.rows for file in files)
    return InputTable(
        table,
        uri,
        None,
        len(files),
        rows,
        columns,
        files=files,
        passed_over=passed_over,
        faults=tuple(column_faults(table, places)),
    )


def _refuse_other_formats(names: list[str], uri: str, table: Table) -> None:
    for name in names:
        folder, _, last = name.rpartition("/")
        if last in _OTHER_FORMATS:
            found = f"{_OTHER_FORMATS[last]} at {folder or uri}"
            raise _refusal(table, f"one Delta table or Parquet files at {uri}", found,
                           "Name a Delta table itself in the settings; export any other as Parquet.")  # fmt: skip


def _is_passed_over(name: str) -> bool:
    """Whether everybody passes a file over, for its own name or a folder's; `_key=value` is a folder of data."""
    parts = name.split("/")
    is_hidden = any(part.startswith((".", "_")) and not (part.startswith("_") and "=" in part) for part in parts)
    return is_hidden or name.endswith("_$folder$")  # Hadoop's mark of a folder on an object store


def _read_footer(system: fs.FileSystem, path: str, file: InputFile, table: Table) -> InputFile:
    try:
        with pq.ParquetFile(path, filesystem=system) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(table, file.uri, file.name, _beginning(system, path, error)) from error
    group = metadata.row_group(0) if metadata.num_row_groups else None
    codecs = {group.column(number).compression for number in range(group.num_columns)} if group else set()
    if unreadable := codecs.intersection(_UNREADABLE_CODECS):
        raise _refusal(table, "files that Spark can decompress", f"{', '.join(unreadable)} in {file.name}",
                       "Write it with zstd or snappy.")  # fmt: skip
    leaves = (metadata.schema.column(number) for number in range(metadata.num_columns))
    instants = frozenset(leaf.path for leaf in leaves if leaf.physical_type == "INT96")
    folders = _folders(file.name)
    sources = sources_of(schema, table, folders, instants, f" in {file.name}")
    return InputFile(file.uri, file.name, metadata.num_rows, sources, tuple(schema.names), folders)


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
    return {key.lower(): None if value == _NULL_PARTITION else unquote(value) for key, value in pairs if key}


def _all_names(file: InputFile) -> tuple[str, ...]:
    return (*file.names, *(key for key in file.folders if key not in file.names))


# ---------------------------------------------------------------- words


def _no_parquet(table: Table, uri: str, name: str, found: str) -> TableError:
    place = "" if uri.endswith(name) else f" at {uri}"
    cure = "Remove it from the folder if it is no part of the table; else write it again, as Parquet."
    return _refusal(table, f"Parquet files alone{place}", f"{name}, {found}", cure)


def _refusal(table: Table, expected: str, found: str, cure: str) -> TableError:
    return TableError(table.name, "(all)", expected=expected, found=found, cure=cure)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _shortened(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
