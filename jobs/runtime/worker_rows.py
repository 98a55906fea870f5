"""Rows that Python workers make and write themselves, as Parquet files that one Delta commit then publishes.

A row that a worker hands to the JVM is copied, decoded, checked and encoded once more, which costs as much as most of
our rows cost to make (docs/lab-log.md). A file that no commit names is no part of a table: what a failed or repeated
task leaves behind is litter for VACUUM, never rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame

from schemas.arrow import arrow_schema, conform_batch
from schemas.columns import Table
from schemas.errors import leaving_a_worker
from schemas.storage import file_system

Make = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]

_ROW_GROUP_BYTES = 4 << 20
"""Bytes of a row group in memory: bounds what a worker and a reader hold; 64 MB are no faster."""

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


def write_part(
    made: Iterable[pa.RecordBatch], uri: str, number: int, table: Table, sums: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """Write one file of a table; no commit names it yet.

    Args:
        made: Batches with the table's columns.
        uri: Folder of the table.
        number: Which of the write's files it is.
        table: What the rows mean; each batch is conformed to it.
        sums: Further int64 columns, which are not stored but summed.

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
            yield conform_batch(batch, table)

    small_columns = [column.name for column in table.columns if column.kind not in ("binary", "vector")]
    with (
        filesystem.open_output_stream(target) as stream,
        # Large cells hardly repeat, and statistics would hold the smallest and the largest of them whole.
        pq.ParquetWriter(
            stream, arrow_schema(table), use_dictionary=small_columns, write_statistics=small_columns
        ) as writer,
    ):
        for group in _groups(counted()):
            writer.write_table(group)
    if not totals["rows"]:
        filesystem.delete_file(target)
        return None
    stored = filesystem.get_file_info(target)
    return {"path": path, "bytes": stored.size, "modified_ms": stored.mtime_ns // 1_000_000} | totals


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows of one row group after the other."""
    group: list[pa.RecordBatch] = []
    held_bytes = 0
    for batch in batches:
        group.append(batch)
        held_bytes += batch.nbytes
        if held_bytes >= _ROW_GROUP_BYTES:
            yield pa.Table.from_batches(group)
            group, held_bytes = [], 0
    if group:
        yield pa.Table.from_batches(group)
