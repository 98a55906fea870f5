"""Input tables through Spark: the files that `schemas/input_tables.py` has found, all of them and nothing else.

Spark is told which files to read and what their columns are. Left to itself it takes the columns of one file for those
of all, passes folders over beside files, takes brackets in a path for a pattern, and refuses nanoseconds.
"""

from __future__ import annotations

import re
from functools import reduce
from urllib.parse import unquote

from pyspark.sql import Column as Expression
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from schemas.errors import TableError
from schemas.input_columns import Source, Sources
from schemas.input_files import NULL_FOLDER, InputFile
from schemas.input_tables import InputTable
from schemas.source_types import NANOSECONDS, is_widened, spark_name
from schemas.spark import conform, struct_type

_MAX_NAMED = 32
"""Most files of a whole folder that Spark is told one by one: it asks for each anew, beyond these in a task each."""

_COUNT_BY_LOG = "spark.databricks.delta.optimizeMetadataQuery.enabled"


def read_input(spark: SparkSession, found: InputTable, name: str = "") -> DataFrame:
    """The rows of an input table in its declared shape; the union of its files' columns, by name.

    Args:
        spark: The session.
        found: What the table consists of.
        name: Its name, as SQL takes it. A Delta table is then read through the catalog, whose leave it needs; Parquet
            files are read as they were found whatever their table is called.

    Raises:
        TableError: as of `conform`.
    """
    if found.version is not None or found.unproven:
        reader = spark.read.format("delta")
        reader = reader if found.version is None else reader.option("versionAsOf", found.version)
        rows = reader.table(name) if name else reader.load(found.uri)
        return conform(rows if found.unproven else rows.select(*_columns(found, found.sources)), found.table)
    parts = [
        _read_files(spark, found, files, sources).select(*_columns(found, sources)) for sources, files in _kinds(found)
    ]
    return reduce(DataFrame.union, (conform(part, found.table) for part in parts))


def count_rows(spark: SparkSession, rows: DataFrame) -> int:
    """How many rows files hold by their own footers; by itself, Delta would answer from its log."""
    spark.conf.set(_COUNT_BY_LOG, "false")
    return rows.count()


def require_all_rows(spark: SparkSession, found: InputTable, count: int) -> None:
    """Refuse a table of which Spark has read more or fewer rows than its files hold.

    Args:
        spark: The session.
        found: What the table consists of.
        count: The rows that Spark has read.

    Raises:
        TableError: the numbers differ.
    """
    if count == found.rows or found.rows is None:
        return
    place = f"the {found.file_count:,} files at {found.uri} hold by their own footers"
    if found.version is not None:
        place = f"version {found.version} of {found.uri} holds by its log"
    raise TableError(
        found.table.name,
        "(all)",
        expected=f"the {found.rows:,} rows that {place}",
        found=f"{count:,} rows read by Spark{_difference(spark, found)}",
        cure="Run again when nothing writes to the table any more; a file that still differs is damaged.",
    )


def _kinds(found: InputTable) -> list[tuple[dict[str, Source], list[InputFile]]]:
    """Files that Spark can read together, with their columns: most tables are one kind, whatever columns a file lacks.

    What a file has, no other file of its kind has under another name or as another type; a column of nulls alone is of
    a type of its own.
    """
    kinds: list[tuple[dict[str, Source | None], list[InputFile]]] = []
    for file in found.files:
        nothing = dict.fromkeys(name.lower() for name in file.names if name.lower() in found.table.column_names)
        columns: dict[str, Source | None] = {**nothing, **file.sources}
        for known, files in kinds:
            if all(known[name] == source for name, source in columns.items() if name in known):
                known.update(columns)
                files.append(file)
                break
        else:
            kinds.append((columns, [file]))
    return [({name: source for name, source in known.items() if source}, files) for known, files in kinds]


def _read_files(spark: SparkSession, found: InputTable, files: list[InputFile], sources: Sources) -> DataFrame:
    stored = {source.name: _stored_as(source) for source in sources.values() if not source.is_folder}
    columns = ", ".join(f"`{name}` {kind}" for name, kind in stored.items()) or T.StructType()
    # The paths are paths, not patterns; and what their folders are called makes no column.
    reader = spark.read.schema(columns).option("__globPaths__", "false").option("recursiveFileLookup", "true")
    is_whole = len(files) == found.file_count > _MAX_NAMED
    return reader.parquet(*[found.uri] if is_whole else [file.uri for file in files])


def _stored_as(source: Source) -> str:
    name = spark_name(source.type)
    return "bigint" if name == NANOSECONDS else name


def _columns(found: InputTable, sources: Sources) -> list[Expression]:
    nulls = {field.name: F.lit(None).cast(field.dataType) for field in struct_type(found.table)}
    columns = {name: _column(name, source, found) for name, source in sources.items()}
    return [(nulls | columns)[name].alias(name) for name in nulls]


def _column(name: str, source: Source, found: InputTable) -> Expression:
    if source.is_folder:
        return _folder_value(name)
    column, kind = F.col(f"`{source.name}`"), spark_name(source.type)
    if kind == NANOSECONDS and found.version is None:
        # Rounded down, before 1970 too.
        return F.timestamp_micros(F.call_function("div", column - F.pmod(column, F.lit(1000)), F.lit(1000)))
    declared = found.table.column(name).kind
    if is_widened(declared, kind):
        return column
    # What no gate takes as it is, `find_input` has let in as a longer integer, or as a number that is an id.
    return column.try_cast("int") if declared == "int32" else column.cast("string")


def _folder_value(key: str) -> Expression:
    """The value of a file's folder `key=value`: escaped by whoever named the folder, and by Spark in the path."""
    path = F.col("_metadata.file_path")
    value = F.regexp_extract(path, f"(?i)^.*/{re.escape(key)}=([^/]*)/", 1)
    for _ in range(2):
        plain = F.replace(value, F.lit("+"), F.lit("%2B"))
        value = F.coalesce(F.try_url_decode(plain), value)
    return F.when(~value.isin("", NULL_FOLDER), value)


def _difference(spark: SparkSession, found: InputTable) -> str:
    """Which files differ; needs a pass of its own, so only for an error's sake."""
    if found.version is not None:
        return ""
    counted = _read_files(spark, found, list(found.files), {}).groupBy("_metadata.file_path").count().collect()
    rows = {unquote(row["file_path"]).partition(":")[2].lstrip("/"): row["count"] for row in counted}
    expected = {file.uri.partition("://")[2].lstrip("/") or file.uri.lstrip("/"): file.rows for file in found.files}
    differing = [path for path, count in expected.items() if rows.get(path, 0) != count]
    texts = [f"/{path} has {rows.get(path, 0):,} instead of {expected[path]:,}" for path in differing[:3]]
    return f": {'; '.join(texts)}" if texts else ""
