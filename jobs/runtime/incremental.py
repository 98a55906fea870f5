"""What did not change is not made again: rows of a stage's own table stay, where what they are made of stays.

A row carries a hash of its source. Where encoder, settings and code are those that the stage's last record names, rows
of equal hashes stay as they are stored, and one commit changes the others (jobs/runtime/changes.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.runtime import table_io
from jobs.runtime.changes import Changes, deleted_share, find_changes, merge
from jobs.runtime.job_run import JobRun
from jobs.runtime.worker_rows import WorkerRows
from schemas.code_version import code_version
from schemas.columns import Table
from schemas.errors import InputError
from schemas.records import RunRecord, TableVersion, find_record
from schemas.storage import is_unchanged_since
from schemas.tables import SOURCE_HASH

Made = TypeVar("Made")
Some = Callable[[DataFrame], DataFrame]

_MOST = 0.5
"""Where more than this share of the rows has changed, or is marked as deleted, all rows are made and written anew."""


def maker(*parts: str | None) -> str:
    """What makes rows of equal sources equal: encoders, settings, and always the code; for a stage's metrics."""
    return hashlib.sha256(repr([code_version(), *parts]).encode()).hexdigest()[:32]


def find_kept(job: JobRun[Any], table: Table, sources: DataFrame, made_by: str) -> Changes | None:
    """Compare a table of this stage's with what it is to hold.

    Args:
        job: The run.
        table: One with a SOURCE_HASH and one column as its key.
        sources: Its key and SOURCE_HASH: one row for each that it is to hold.
        made_by: See `maker`; `metrics.made_by` of the stage's last record.

    Returns:
        The rows to be made or removed; None = all rows are to be made.
    """
    run = last_run(job, table, made_by)
    return None if run is None else source_changes(job, run.output(table.name), table, sources)


def source_changes(
    job: JobRun[Any], last: TableVersion, table: Table, sources: DataFrame, some: Some | None = None
) -> Changes | None:
    """The same as `find_kept`, of a version whose rows can stay; see `last_run`.

    Args:
        job: The run.
        last: The version.
        table: What it holds.
        sources: As of `find_kept`.
        some: Takes those rows of the table that may have changed, which `sources` are; None = any may.
    """
    (key,) = table.key
    stored = table_io.read(job.spark, last.uri, table, version=last.version)
    stored = some(stored) if some else stored
    new, old = (rows.select(key, F.col(SOURCE_HASH).alias(name)) for rows, name in ((sources, "new"), (stored, "old")))
    changes = find_changes(new.join(old, on=key, how="full_outer"), key)
    if changes.total > _MOST * last.rows or deleted_share(last.uri) > _MOST:
        changes.forget()
        return None
    print(f"  of {last.rows:,} rows of {table.name}: {changes}; the others stay as they are", flush=True)
    return changes


def last_run(job: JobRun[Made], table: Table, made_by: str) -> RunRecord[Made] | None:
    """The stage's last run, where the rows of a table that it wrote can stay; None = they cannot."""
    if job.settings.rerun:
        return None
    try:
        last: RunRecord[Any] | None = find_record(job.settings.layout, job.stage)
    except InputError:  # whoever cannot be read is made anew
        return None
    if last is None or last.metrics.made_by != made_by:
        return None
    return last if is_as_written(job, last.output(table.name)) else None


def is_as_written(job: JobRun[Any], output: TableVersion) -> bool:
    """Whether a table that a run wrote is there, and its rows are those that the run wrote."""
    if output.version is None or table_io.latest_version(job.spark, output.uri) is None:
        return False
    return is_unchanged_since(output.uri, output.version)


def merge_worker_rows(
    job: JobRun[Any], rows: WorkerRows, table: Table, changes: Changes
) -> tuple[dict[str, int], DataFrame]:
    """Make the changed rows of a table in Python workers, and merge them; returns their sums, and all rows."""
    staged = job.stage_worker_rows(rows, table)
    stored = merge_rows(job, table_io.read_files(job.spark, staged.uris, table), table, changes)
    staged.discard()
    return staged.sums, stored


def merge_rows(job: JobRun[Any], new: DataFrame, table: Table, changes: Changes) -> DataFrame:
    """Replace, add and remove rows of one of the stage's tables in one commit; without a change there is none.

    Args:
        job: The run.
        new: The changed and added rows; whatever of `changes` is not among them is removed.
        table: The table.
        changes: See `find_kept`.

    Returns:
        All its rows.
    """
    uri = job.settings.table_uri(table.name)
    if changes.total:
        merge(new, uri, table, changes, job.note())
    version = table_io.latest_version(job.spark, uri)
    stored = table_io.read(job.spark, uri, table, version=version)
    job.count_output(TableVersion(table.name, uri, version, stored.count()))
    changes.forget()
    return stored
