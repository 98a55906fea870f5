"""Publishing rows that Python wrote: their files enter a Delta table in one commit, or none does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
from pyspark.errors import PythonException
from pyspark.sql import DataFrame

from jobs.runtime.table_io import Written
from jobs.runtime.worker_rows import Place, WorkerRows, write_files, write_part, write_parts
from schemas.columns import Table
from schemas.commits import Note, Staged, open_or_create
from schemas.errors import TableError, from_worker

_ROWS_PER_BATCH = 2_048


def write_worker_rows(rows: WorkerRows, uri: str, table: Table, *, note: Note, row_count: int | None = None) -> Written:
    """Replace a table's rows, in one commit, by those that Python workers make and write.

    Args:
        rows: The new rows; conformed to `table` as they are written.
        uri: Where the table lies; made if absent. Workers write files through pyarrow, the driver commits through
            deltalake: both must reach the same place under this URI.
        table: What it means; its nullability is enforced.
        note: Written into the commit's userMetadata, as JSON.
        row_count: How many rows there must be; None = any number.

    Returns:
        The committed version, its row count and the sums of `rows`.

    Raises:
        TableError: a row breaks the declaration of `table`, what makes the rows refuses an input, their number is
            another, or the stored table has partitions or rules that these files would not keep. Nothing was committed.
        OvertakenError: another run has committed to the table since this one began. Nothing was committed.
    """
    return commit(stage_worker_rows(rows, uri, table, row_count=row_count), note)


def stage_worker_rows(rows: WorkerRows, uri: str, table: Table, *, row_count: int | None = None) -> Staged:
    """Write the files of `write_worker_rows`, and commit nothing: they can be looked at before they count.

    Raises:
        TableError: as of `write_worker_rows`.
    """
    stored = open_or_create(uri, table)
    with _refusals_of_workers():
        files = write_parts(rows, uri, table).to_pylist()
    sums = {name: sum(file[name] for file in files) for name in rows.sums}
    staged = Staged(table, uri, files, stored.version(), sums)
    if row_count is not None:
        _require_rows(table, row_count, staged.rows)
    return staged


def commit(staged: Staged, note: Note) -> Written:
    """Replace a table's rows by staged ones, in one commit.

    Raises:
        OvertakenError: as of `write_worker_rows`.
    """
    version = staged.commit(note)
    return Written(staged.table.name, staged.uri, version, staged.rows, staged.sums, staged.checksum)


def write_tables(rows: DataFrame, places: Sequence[Place], *, note: Note) -> list[Written]:
    """Replace several tables by rows that Python workers write in one Spark job; then one commit each.

    Args:
        rows: See `worker_rows.write_files`.
        places: The tables, and how many rows each must have.
        note: Written into the commits' userMetadata, as JSON.

    Raises:
        TableError: as of `write_worker_rows`. Nothing was committed.
        OvertakenError: as of `write_worker_rows`; tables before this one are committed.
    """
    stored = [open_or_create(place.uri, place.table) for place in places]
    with _refusals_of_workers():
        written = write_files(rows, places).to_pylist()
    files = [[file for file in written if file["place"] == index] for index in range(len(places))]
    for place, of_place in zip(places, files, strict=True):
        _require_rows(place.table, place.row_count, sum(file["rows"] for file in of_place))
    return [
        commit(Staged(place.table, place.uri, of_place, delta.version()), note)
        for place, delta, of_place in zip(places, stored, files, strict=True)
    ]


def write_arrow(rows: pa.Table, uri: str, table: Table, *, note: Note, file_count: int = 1) -> Written:
    """Replace a table's rows, in one commit, by rows in this process's memory; the JVM does not see them.

    Args:
        rows: The new rows; conformed to `table`.
        uri: Where the table lies; made if absent.
        table: What it means; its nullability is enforced.
        note: Written into the commit's userMetadata, as JSON.
        file_count: Files to write, of as many batches of 2,048 rows each but for the last.

    Raises:
        TableError: as of `write_worker_rows`.
        OvertakenError: as of `write_worker_rows`.
    """
    stored = open_or_create(uri, table)
    # Whole batches of 2,048 rows, as Spark cuts an Arrow table into partitions.
    batches = rows.combine_chunks().to_batches(max_chunksize=_ROWS_PER_BATCH)
    per_file = -(-len(batches) // file_count) if batches else 1
    parts = [batches[first : first + per_file] for first in range(0, len(batches), per_file)]
    found = [write_part(part, uri, number, table) for number, part in enumerate(parts)]
    files = [file for file in found if file]
    return commit(Staged(table, uri, files, stored.version()), note)


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
