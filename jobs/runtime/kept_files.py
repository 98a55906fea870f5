"""A table whose rows lie in files by a hash of their key, sorted within each: changed rows are merged file by file.

For what Petastorm reads, which knows no deletion vectors, and where training follows the order of the rows: those that
stay are copied as they are stored, between those that are made anew, so that the files hold what they would hold if all
rows were made anew. A copy costs a twentieth of a row of item_features (docs/lab-log.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from jobs.runtime.table_io import Written
from jobs.runtime.worker_rows import WorkerRows
from schemas.records import TableVersion
from schemas.storage import version_files

_ROWS_PER_PART = 65_536
_LEAST_PARTS = 4
_NUMBER = re.compile(r"part-(\d{5})-[^/]*$")


def part_count(row_count: int) -> int:
    """In how many files a table of so many rows lies: a power of two, so that it seldom changes as the table grows."""
    wanted = max(_LEAST_PARTS, -(-row_count // _ROWS_PER_PART))
    return 1 << (wanted - 1).bit_length()


def lies_in_parts(version: TableVersion, parts: int) -> bool:
    """Whether a version of a table lies in one file a part, as our workers wrote it; nobody has compacted it since."""
    return _by_part(version.uri, version.version, parts) is not None


@dataclass(frozen=True)
class Copy:
    """How rows are read and handed on; both run in a worker.

    Attributes:
        read: The rows of a file, in their order, with `item_id` and `item_key`.
        finish: What is done with a merged batch before it is written.
        sums: See `WorkerRows`.
    """

    read: Callable[[str], Iterator[pa.RecordBatch]]
    finish: Callable[[pa.RecordBatch], pa.RecordBatch]
    sums: tuple[str, ...]


def merged_rows(
    spark: SparkSession, stored: TableVersion, made: Written, parts: int, changed: npt.NDArray[np.int64], copy: Copy
) -> WorkerRows:
    """All rows of a table of which some were made anew.

    Args:
        spark: The session.
        stored: The table as it is; see `lies_in_parts`.
        made: The rows made anew, written in as many parts.
        parts: How many these are.
        changed: item_key of every row that is added, changed or removed.
        copy: How rows are read and handed on.
    """
    old, new = (_by_part(one.uri, one.version, parts) for one in (stored, made))
    assert old is not None
    assert new is not None
    shared = spark.sparkContext.broadcast(np.sort(changed))

    def merge(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in (number for batch in batches for number in batch.column("id").to_pylist()):
            own, further = old[number], new[number]
            staying = _without(copy.read(own), shared.value) if own else iter(())
            for batch in merged(staying, list(copy.read(further)) if further else []):
                yield copy.finish(batch)

    # One number in each partition, which is the number of the part's file, too.
    return WorkerRows(spark.range(0, parts, 1, parts).toDF("id"), merge, copy.sums)


def merged(stored: Iterator[pa.RecordBatch], made: Sequence[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Two sequences of rows, each sorted by item_id, as one; bytes are compared, as Spark compares strings.

    Args:
        stored: Rows that stay, batch by batch.
        made: Rows made anew, with the same columns; held in memory.
    """
    rest = pa.Table.from_batches(made).combine_chunks() if made else None
    for batch in stored:
        if rest is None or not len(rest):
            yield batch
            continue
        is_before = pc.less(rest["item_id"].cast(pa.binary()), batch.column("item_id").cast(pa.binary())[-1])
        count = pc.sum(is_before, min_count=0).as_py() if len(batch) else 0
        own, rest = rest.slice(0, count), rest.slice(count)
        both = pa.concat_tables([own.select(batch.schema.names), pa.Table.from_batches([batch])])
        order = pc.sort_indices(both["item_id"].cast(pa.binary()))
        yield from both.take(order).combine_chunks().to_batches()
    if rest is not None:
        yield from rest.combine_chunks().to_batches()


def _without(batches: Iterable[pa.RecordBatch], keys: npt.NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """The rows whose item_key is none of some sorted keys."""
    for batch in batches:
        own = batch.column("item_key").to_numpy()
        place = np.minimum(np.searchsorted(keys, own), max(len(keys) - 1, 0))
        stays = keys[place] != own if len(keys) else np.ones(len(own), bool)
        if stays.any():
            yield batch if stays.all() else batch.filter(pa.array(stays))


def _by_part(uri: str, version: int | None, parts: int) -> list[str | None] | None:
    """The file of each part, None where it has no row; by the numbers in their names."""
    found: list[str | None] = [None] * parts
    for file in version_files(uri, version).files:
        match = _NUMBER.search(file.uri)
        number = int(match.group(1)) if match else parts
        if number >= parts or found[number] is not None:
            return None
        found[number] = file.uri
    return found
