"""Tables as Spark knows them: Table -> StructType, and `conform`, the gate of every DataFrame on its way in or out."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from schemas.columns import Column, Kind, Table
from schemas.errors import TableError

_TYPES: dict[Kind, T.DataType] = {
    "string": T.StringType(),
    "int32": T.IntegerType(),
    "int64": T.LongType(),
    "float32": T.FloatType(),
    "float64": T.DoubleType(),
    "timestamp": T.TimestampType(),
    "binary": T.BinaryType(),
    # Elements may be null in the schema, because every Parquet writer says so and a cast cannot tighten it; jobs check.
    "vector": T.ArrayType(T.FloatType()),
    "strings": T.ArrayType(T.StringType()),
}

# Only widenings that lose nothing a table means; a vector of doubles is a vector.
_ACCEPTED: dict[Kind, tuple[str, ...]] = {
    "string": ("string", "varchar", "char"),
    "int32": ("int", "smallint", "tinyint"),
    "int64": ("bigint", "int", "smallint", "tinyint"),
    "float32": ("float",),
    "float64": ("double", "float"),
    "timestamp": ("timestamp",),
    "binary": ("binary",),
    "vector": ("array<float>", "array<double>"),
    "strings": ("array<string>", "string"),
}


def struct_type(table: Table) -> T.StructType:
    """The Spark schema of a table, with its nullability."""
    return T.StructType([T.StructField(c.name, _TYPES[c.kind], c.nullable) for c in table.columns])


def conform(df: DataFrame, table: Table) -> DataFrame:
    """Select exactly the declared columns, in order, with the declared types.

    An absent optional column becomes nulls; a type that widens without loss is cast. Columns that the
    table does not declare are left out.

    Raises:
        TableError: a column is missing or has another type.
    """
    return df.select(*[_conform_column(df, table, column) for column in table.columns])


def row_checksum(table: Table) -> F.Column:  # type: ignore[name-defined]
    """The number that `schemas.checksums.row_checksums` makes of a row of a table."""
    parts: list[F.Column] = []  # type: ignore[name-defined]
    for name in table.checksummed:
        kind = table.column(name).kind
        if kind == "int64":
            parts.append(_eight_bytes(F.col(name)))
        elif kind == "float32":
            parts.append(_eight_bytes(F.hash(name)))
        else:
            parts += [_eight_bytes(F.octet_length(name)), F.col(name).cast("binary")]
    return F.crc32(F.concat(*parts))


def _eight_bytes(number: F.Column) -> F.Column:  # type: ignore[name-defined]
    """A whole number's bytes, the highest first; Spark casts none to binary."""
    return F.unhex(F.lpad(F.hex(number.cast("long")), 16, "0"))


def _conform_column(df: DataFrame, table: Table, column: Column) -> F.Column:  # type: ignore[name-defined]
    if column.name not in df.columns:
        if column.optional:
            return F.lit(None).cast(_TYPES[column.kind]).alias(column.name)
        raise TableError(
            table.name,
            column.name,
            expected=f"a column of type {_TYPES[column.kind].simpleString()} ({column.doc})",
            found=f"no such column among {', '.join(sorted(df.columns))}",
            cure="Add or rename the column in the table, or point the settings at another table.",
        )
    found = df.schema[column.name].dataType.simpleString()
    if found.partition("(")[0] not in _ACCEPTED[column.kind]:
        raise TableError(
            table.name,
            column.name,
            expected=f"type {_TYPES[column.kind].simpleString()} ({column.doc})",
            found=f"type {found}",
            cure=f"Cast it where the table is written{_CAST_HINTS.get(found, '')}.",
        )
    if column.kind == "strings" and found == "string":
        return F.when(F.col(column.name).isNotNull(), F.array(column.name)).alias(column.name)
    return F.col(column.name).cast(_TYPES[column.kind]).alias(column.name)


_CAST_HINTS = {
    "timestamp_ntz": "; say which zone the naive time is in, such as to_utc_timestamp(column, 'Europe/London')",
    "date": "; a date has no time of day: use the instant of the event",
}
