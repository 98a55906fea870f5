"""Tables as Spark knows them: Table -> StructType, and `conform`, the gate of every DataFrame on its way in or out."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from schemas.columns import Column, Kind, Table
from schemas.source_types import absent, is_widened, mistyped, spelled

_TYPES: dict[Kind, T.DataType] = {
    "string": T.StringType(),
    "int32": T.IntegerType(),
    "int64": T.LongType(),
    "float32": T.FloatType(),
    "float64": T.DoubleType(),
    "boolean": T.BooleanType(),
    "timestamp": T.TimestampType(),
    "binary": T.BinaryType(),
    # Elements may be null in the schema, because every Parquet writer says so and a cast cannot tighten it; jobs check.
    "vector": T.ArrayType(T.FloatType()),
    "strings": T.ArrayType(T.StringType()),
}


def struct_type(table: Table) -> T.StructType:
    """The Spark schema of a table, with its nullability."""
    return T.StructType([T.StructField(c.name, _TYPES[c.kind], c.nullable) for c in table.columns])


def conform(df: DataFrame, table: Table) -> DataFrame:
    """Select exactly the declared columns, in order, with the declared types.

    An absent optional column becomes nulls, and so does one that is void; a type that widens without loss is cast.
    Upper and lower case of names do not matter. Columns that the table does not declare are left out.

    Raises:
        TableError: a column is missing, is there twice or has another type.
    """
    return df.select(*[_conform_column(df, table, column) for column in table.columns])


def _conform_column(df: DataFrame, table: Table, column: Column) -> F.Column:  # type: ignore[name-defined]
    kind = _TYPES[column.kind]
    name = spelled(df.columns, table, column)
    found = df.schema[name].dataType.simpleString() if name else "void"
    if name is None and not column.optional:
        raise absent(table, column, expected=kind.simpleString(), names=df.columns)
    if found == "void" and column.nullable:
        return F.lit(None).cast(kind).alias(column.name)
    if not is_widened(column.kind, found):
        raise mistyped(table, column, expected=kind.simpleString(), found=found, name=found)
    if column.kind == "strings" and found == "string":
        return F.when(F.col(column.name).isNotNull(), F.array(column.name)).alias(column.name)
    return F.col(column.name).cast(kind).alias(column.name)
