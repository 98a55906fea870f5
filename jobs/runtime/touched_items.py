"""Which items a day's changes of the inputs can have touched, known by Delta's logs: nobody looks at the others.

Two versions of a table share most of their files, and what a shared file holds is the same in both, but for rows that a
deletion vector takes away in one of them. So an item of which no row lies in another file is as it was, and a job that
has read the older version has its row already. A table that is written anew every day shares no file with itself: then
every item is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from jobs.runtime.job_run import JobRun
from schemas.columns import Table
from schemas.errors import InputError
from schemas.records import RunRecord, TableVersion
from schemas.storage import DataFile, VersionFiles, file_system, rows_of, version_files

_MOST = 0.5
"""Where files with more than this share of a table's rows are others, every item is looked at."""


def touched_items(job: JobRun[Any], last: RunRecord[Any], tables: Sequence[Table]) -> DataFrame | None:
    """The item_id of every item of which a row of some inputs may be another than when a stage read them last.

    Args:
        job: The run, which has read the inputs.
        last: The stage's record of that time.
        tables: The inputs, each with an item_id.

    Returns:
        item_id, each once, null where it is null in an input; more items than have changed, never fewer. None = any
        item may have: an input is no Delta table, was made or written anew, has other columns, lost its old files, or
        is known by a name, whose catalog need not give leave to read files by their path.
    """
    found = []
    for table in tables:
        now, before = job.input(table), last.input(table.name)
        is_by_path = not job.settings.input_name(table.name)
        rows = _differing(job.spark, before, now) if before and is_by_path else None
        if rows is None:
            return None
        found.append(rows)
    ids = found[0]
    for rows in found[1:]:
        ids = ids.union(rows)
    return ids.distinct()


def _differing(spark: SparkSession, before: TableVersion, now: TableVersion) -> DataFrame | None:
    """item_id of the rows that only one of two versions of a table has, by where they lie; None = nobody can say."""
    if before.version is None or now.version is None or before.uri != now.uri:
        return None
    try:
        old, new = version_files(before.uri, before.version), version_files(now.uri, now.version)
    except InputError:  # the log no longer reaches back
        return None
    is_the_table = "" != before.checksum == old.checksum
    if not is_the_table or _shape(before) != _shape(now):
        return None
    both = {file.uri for file in old.files if not file.deleted} & {file.uri for file in new.files if not file.deleted}
    sides = [(one, [file for file in one.files if file.uri not in both]) for one in (old, new)]
    paths = {file.uri for file in old.files} & {file.uri for file in new.files}
    rewritten = max(rows_of(file for file in files if file.uri not in paths) for _, files in sides)
    if rewritten > _MOST * max(before.rows, now.rows) or not _are_there(sides[0][1]):
        return None
    has_marks = any(file.deleted for _, files in sides for file in files)
    parts = [_rows_in(spark, now.uri, one, files, has_marks) for one, files in sides]
    if any(part is None for part in parts):
        return None
    rows = parts[0].union(parts[1])  # type: ignore[union-attr, arg-type]
    if has_marks:
        # A row that both versions have lies at one place, and is there twice.
        rows = rows.groupBy("file", "row").agg(F.count("*").alias("times"), F.first("item_id").alias("item_id"))
        rows = rows.where(F.col("times") == 1)
    return rows.select("item_id")


def _are_there(files: Sequence[DataFile]) -> bool:
    """Whether VACUUM has left files of an older version."""
    places = [file_system(file.path) for file in files]
    return all(system.get_file_info(path).is_file for system, path in places)


def _shape(version: TableVersion) -> tuple[Any, ...]:
    """What makes equal files equal rows: columns, their names in the files, and partitions."""
    delta = DeltaTable(version.uri, version=version.version)
    return delta.schema().to_json(), delta.metadata().partition_columns, delta.metadata().id


def _rows_in(
    spark: SparkSession, uri: str, version: VersionFiles, files: list[DataFile], has_marks: bool
) -> DataFrame | None:
    """The rows of some files of a version: item_id, and where they lie; None where Spark finds more or fewer.

    Args:
        spark: The session.
        uri: The table.
        version: The version.
        files: Those of its files.
        has_marks: Whether rows are marked as deleted: else Delta does not count them, and `row` is null.
    """
    table = spark.read.format("delta").option("versionAsOf", version.version).load(uri)
    if table.schema["item_id"].dataType != T.StringType():
        return None
    # The names of a table's files are unique; what comes before them, Spark and Delta's log may spell differently.
    names = [file.uri.rpartition("/")[2] for file in files]
    name = F.element_at(F.split("_metadata.file_path", "/"), -1).alias("file")
    row = F.col("_metadata.row_index") if has_marks else F.lit(None).cast("long")
    rows = table.select("item_id", name, row.alias("row")).where(F.col("file").isin(names))
    return rows if not files or rows.count() == rows_of(files) else None
