"""What a shop's table consists of, found without a JVM: every file with its rows and columns, or the file at fault.

The one door of input tables. Spark reads what is found here (jobs/runtime/input_tables.py), `doctor` and the summary
read it through `schemas/input_rows.py`; what one of them takes or refuses, all do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyarrow import fs

from schemas.columns import Table
from schemas.errors import InputError, TableError
from schemas.input_columns import Sources, column_faults, sources_of
from schemas.input_files import CORRECT_URI, InputFile, parquet_files, refusal
from schemas.storage import file_system, files_of, rows_of


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
        table_id: What its Delta log calls it; one that is made anew gets another. Of Parquet files a hash of their
            names, sizes and times.
        checksum: Which files its Delta version has; see `storage.files_checksum`.
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
    table_id: str = ""
    checksum: str = ""
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
        if self.unproven:
            return f"Delta, the number of its rows not proven, as only Spark can open it: {self.unproven}"
        kind = "Parquet" if self.version is None else f"Delta version {self.version}"
        counts = f"{_counted(self.file_count, 'file')}, {_counted(self.rows or 0, 'row')}"
        text = f"{kind}, {counts}, {len(self.known)} of {len(self.table.columns)} columns"
        lists = {
            "not in every file": [name for name in self.known if not all(name in file.sources for file in self.files)],
            "not there": [name for name in self.table.column_names if name not in self.known],
            "not read": self.others,
            "passed over": self.passed_over,
        }
        return text + "".join(f"; {what}: {_shortened(names)}" for what, names in lists.items() if names)


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
        raise refusal(table, f"a Delta or Parquet table at {uri}", "nothing there", CORRECT_URI)
    _refuse_a_part_of_another_table(system, root, uri, table)
    return _parquet_table(system, place, uri, table)


# ---------------------------------------------------------------- Delta


def _delta_table(uri: str, table: Table) -> InputTable:
    try:
        delta = DeltaTable(uri)
        found = files_of(delta)
        schema = pa.schema(delta.schema().to_arrow())
    except TableNotFoundError as error:
        cure = "Restore the log, or remove the folder _delta_log if these are plain Parquet files."
        raise refusal(table, f"a Delta table at {uri}", "a folder _delta_log without a commit", cure) from error
    except DeltaError as error:  # a feature that only Spark knows
        return InputTable(table, uri, None, 0, None, (), unproven=" ".join(str(error).split())[:200])
    sources = sources_of(schema, table, {}, frozenset())
    names, rows = tuple(schema.names), rows_of(found.files)
    faults = tuple(column_faults(table, [(sources, names, "")]))
    return InputTable(
        table,
        uri,
        found.version,
        len(found.files),
        rows,
        names,
        sources,
        table_id=delta.metadata().id,
        checksum=found.checksum,
        faults=faults,
    )


# ---------------------------------------------------------------- folders of Parquet files


def _refuse_a_part_of_another_table(system: fs.FileSystem, root: str, uri: str, table: Table) -> None:
    """A folder within a Delta table holds files that its log has removed, too."""
    parents = root.split("/")
    above = ["/".join(parents[:count]) for count in range(len(parents) - 1, 1, -1)]
    try:
        logs = system.get_file_info([f"{path}/_delta_log" for path in above])
    except OSError:  # what lies above need not be ours to see
        return
    for folder, info in zip(above, logs, strict=True):
        if info.type == fs.FileType.Directory:
            found = f"{uri}, a part of the Delta table {folder}, whose files also hold rows that were removed"
            raise refusal(table, "a table of its own", found, "Name the whole table in the settings.")


def _parquet_table(system: fs.FileSystem, place: fs.FileInfo, uri: str, table: Table) -> InputTable:
    files, passed_over = parquet_files(system, place, uri, table)
    places = [(file.sources, file.all_names, f" in {file.name}" if len(files) > 1 else "") for file in files]
    stamps = "\n".join(f"{file.name} {file.stamp}" for file in files)
    return InputTable(
        table,
        uri,
        version=None,
        file_count=len(files),
        rows=sum(file.rows for file in files),
        names=tuple(dict.fromkeys(name for file in files for name in file.all_names)),
        files=files,
        passed_over=passed_over,
        table_id=hashlib.sha256(stamps.encode()).hexdigest()[:32],
        faults=tuple(column_faults(table, places)),
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _shortened(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
