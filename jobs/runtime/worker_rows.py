"""Rows that Python workers make and write themselves, as Parquet files that one Delta commit then publishes.

A row that a worker hands to the JVM is copied, decoded, checked and encoded once more, which costs as much as most of
our rows cost to make (docs/lab-log.md). A file that no commit names is no part of a table: what a failed or repeated
task leaves behind is litter for VACUUM, never rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame

from schemas.arrow import arrow_schema, conform_batch
from schemas.checksums import with_checksums
from schemas.columns import Table
from schemas.errors import leaving_a_worker
from schemas.storage import file_system

Make = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]

_ROW_GROUP_BYTES = 4 << 20
"""Bytes of a row group in memory: bounds what a worker and a reader hold; 64 MB are no faster."""

_FILE_GROUP_BYTES = 128 << 20
"""The same for files whose size in rows is asked for: one row group each, unless they are very large."""

_PART_COLUMNS = "path string, bytes long, modified_ms long, rows long"


@dataclass(frozen=True)
class WorkerRows:
    """Rows of a table that are not made yet.

    Attributes:
        source: What they are made of.
        make: Turns the batches of one partition of `source` into batches with the table's columns; runs in a worker.
        sums: Further int64 columns of those batches, which are not stored but summed.
    """

    source: DataFrame
    make: Make
    sums: tuple[str, ...] = ()


def write_parts(rows: WorkerRows, uri: str, table: Table) -> pa.Table:
    """Make the rows and write one file a task.

    Args:
        rows: What to make.
        uri: Folder of the table.
        table: What the rows mean; each batch is conformed to it.

    Returns:
        One row per file: path within the folder, bytes, modified_ms, rows, and the sums of the file's rows.
    """
    make, sums = rows.make, rows.sums

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None
        with leaving_a_worker():
            if written := write_part(make(batches), uri, context.partitionId(), table, sums):
                yield pa.RecordBatch.from_pylist([written])

    columns = ", ".join([_PART_COLUMNS, *(f"{name} long" for name in sums)])
    return rows.source.mapInArrow(write, columns).toArrow()


@dataclass(frozen=True)
class Place:
    """One table's files among those of `write_files`, which are numbered through all tables.

    Attributes:
        table: What the rows mean.
        uri: Folder of the table.
        first_file: Number of its first file; the first files of places ascend.
        row_count: Rows of all its files.
    """

    table: Table
    uri: str
    first_file: int
    row_count: int


def write_files(rows: DataFrame, places: Sequence[Place]) -> pa.Table:
    """Write the files of several tables in one Spark job.

    Args:
        rows: The tables' columns and `file`, the number of each row's file; a file's rows follow each other in one
            partition.
        places: The tables.

    Returns:
        One row per file: `place`, its index in `places`; path within the table's folder, bytes, modified_ms, rows.
    """
    first_files = [place.first_file for place in places]

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with leaving_a_worker():
            for number, pieces in groupby(_pieces(batches), key=itemgetter(0)):
                index = bisect_right(first_files, number) - 1
                place = places[index]
                rows_of_file = map(itemgetter(1), pieces)
                in_place = number - place.first_file
                written = write_part(rows_of_file, place.uri, in_place, place.table, group_bytes=_FILE_GROUP_BYTES)
                yield pa.RecordBatch.from_pylist([{"place": index} | (written or {})])

    return rows.mapInArrow(write, f"place long, {_PART_COLUMNS}").toArrow()


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The batches, cut where the number of the file changes; each with that number."""
    for batch in batches:
        files = batch.column("file").to_numpy()
        starts = np.flatnonzero(np.diff(files, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(files)], strict=True):
            yield int(files[start]), batch.slice(start, end - start)


def write_part(
    made: Iterable[pa.RecordBatch],
    uri: str,
    number: int,
    table: Table,
    sums: tuple[str, ...] = (),
    group_bytes: int = _ROW_GROUP_BYTES,
) -> dict[str, Any] | None:
    """Write one file of a table; no commit names it yet.

    Args:
        made: Batches with the table's columns.
        uri: Folder of the table.
        number: Which of the write's files it is.
        table: What the rows mean; each batch is conformed to it.
        sums: Further int64 columns, which are not stored but summed.
        group_bytes: Bytes of a row group in memory.

    Returns:
        The file's path within the folder, bytes, modified_ms, rows, and the sums; None, and no file, without a row.
    """
    filesystem, folder = file_system(uri)
    path = f"part-{number:05}-{uuid4()}.parquet"
    target = f"{folder}/{path}"
    totals = dict.fromkeys(("rows", *sums), 0)

    def counted() -> Iterator[pa.RecordBatch]:
        for batch in made:
            totals["rows"] += len(batch)
            for name in sums:
                totals[name] += pc.sum(batch.column(name), min_count=0).as_py()
            yield conform_batch(with_checksums(batch, table), table)

    small_columns = [column.name for column in table.columns if column.kind not in ("binary", "vector")]
    with (
        filesystem.open_output_stream(target) as stream,
        # Large cells hardly repeat, and statistics would hold the smallest and the largest of them whole.
        pq.ParquetWriter(
            stream, arrow_schema(table), use_dictionary=small_columns, write_statistics=small_columns
        ) as writer,
    ):
        for group in _groups(counted(), group_bytes):
            writer.write_table(group)
    if not totals["rows"]:
        filesystem.delete_file(target)
        return None
    stored = filesystem.get_file_info(target)
    return {"path": path, "bytes": stored.size, "modified_ms": stored.mtime_ns // 1_000_000} | totals


def _groups(batches: Iterable[pa.RecordBatch], group_bytes: int) -> Iterator[pa.Table]:
    """The rows of one row group after the other."""
    group: list[pa.RecordBatch] = []
    held_bytes = 0
    for batch in batches:
        group.append(batch)
        held_bytes += batch.nbytes
        if held_bytes >= group_bytes:
            yield pa.Table.from_batches(group)
            group, held_bytes = [], 0
    if group:
        yield pa.Table.from_batches(group)
