"""What the columns of a shop's tables may be stored as: one declaration for Spark's gate, for Arrow's and for `doctor`.

Types go by Spark's names here; `spark_name` says what Spark calls a type that a footer or a log shows through Arrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from schemas.columns import Column, Kind, Table
from schemas.errors import TableError

_INTEGERS = ("tinyint", "smallint", "int", "bigint")

WIDENED: dict[Kind, tuple[str, ...]] = {
    "string": ("string", "varchar", "char"),
    "int32": ("int", "smallint", "tinyint"),
    "int64": ("bigint", "int", "smallint", "tinyint"),
    "float32": ("float",),
    "float64": ("double", "float"),
    "boolean": ("boolean",),
    "timestamp": ("timestamp",),
    "binary": ("binary",),
    "vector": ("array<float>", "array<double>"),
    "strings": ("array<string>", "string"),
}
"""What every gate takes for a kind: only widenings that lose nothing a table means; a vector of doubles is a vector."""

NANOSECONDS = "timestamp_ns"
"""Instants in nanoseconds: Spark has no such type, and reads them as numbers."""

CONVERTED: dict[Kind, tuple[str, ...]] = {
    # Whole numbers are ids to whoever numbers its products; fractions are not, as 1.0 and 1 would be two.
    "string": (*_INTEGERS, "decimal(0)"),
    "timestamp": (NANOSECONDS,),
    # pandas and pyarrow make every integer an int64; a number of more than 32 bits is read as null, and rejected.
    "int32": ("bigint", "decimal(0)"),
}
"""What is taken of an input table beside that, and becomes text, microseconds or 32 bits when it is read."""

_HINTS = {
    "timestamp_ntz": "; say which zone the naive time is in, such as to_utc_timestamp(column, 'Europe/London')",
    "date": "; a date has no time of day: use the instant of the event",
    "bigint": "; of numbers of seconds make instants, such as timestamp_seconds(column)",
    "int": "; of numbers of seconds make instants, such as timestamp_seconds(column)",
    "string": "; of texts make instants, such as to_timestamp(column), in UTC",
}
_NUMBER_HINT = "; numbers with a fraction are no ids: cast them to bigint and then to string"


def spark_name(kind: pa.DataType) -> str:
    """What Spark calls a type that Arrow sees in the footer of a Parquet file or in the log of a Delta table."""
    is_ = pa.types
    if is_.is_dictionary(kind):
        return spark_name(kind.value_type)
    if is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind):
        return f"array<{spark_name(kind.value_type)}>"
    if is_.is_timestamp(kind) and kind.tz is not None:
        return NANOSECONDS if kind.unit == "ns" else "timestamp"
    name = str(kind).partition("[")[0].partition("(")[0]
    return f"decimal({kind.precision},{kind.scale})" if is_.is_decimal(kind) else _SPARK_NAMES.get(name, name)


_SPARK_NAMES = {
    "bool": "boolean", "int8": "tinyint", "int16": "smallint", "int32": "int", "int64": "bigint", "uint8": "smallint",
    "uint16": "int", "uint32": "bigint", "uint64": "decimal(20,0)", "float": "float", "double": "double",
    "date32": "date", "null": "void", "timestamp": "timestamp_ntz", "large_string": "string", "large_binary": "binary",
    "fixed_size_binary": "binary",
}  # fmt: skip


def is_widened(kind: Kind, found: str) -> bool:
    """Whether every gate takes what Spark calls `found` for a kind."""
    return found.partition("(")[0] in WIDENED[kind]


def is_taken(kind: Kind, found: str) -> bool:
    """Whether an input table's column of a kind may be stored as what Spark calls `found`."""
    name, _, sizes = found.partition("(")
    whole = f"{name}(0)" if sizes.endswith(",0)") else name
    return is_widened(kind, found) or whole in CONVERTED.get(kind, ())


def mistyped(table: Table, column: Column, *, expected: str, found: str, name: str) -> TableError:
    """The refusal of a column that is stored as another type.

    Args:
        table: The table.
        column: The column.
        expected: The type that it should have, in the words of `found`.
        found: The type that it has, in the words of whoever reads it, and where.
        name: The type that it has, as Spark calls it.
    """
    hint = _HINTS.get(name, "") if column.kind == "timestamp" else ""
    if column.kind == "string" and name.partition("(")[0] in ("float", "double", "decimal"):
        hint = _NUMBER_HINT
    return TableError(
        table.name,
        column.name,
        expected=f"type {expected} ({column.doc})",
        found=f"type {found}",
        cure=f"Cast it where the table is written{hint}.",
    )


def absent(table: Table, column: Column, *, expected: str, names: Sequence[str], where: str = "") -> TableError:
    """The refusal of a table without a column that it must have; `names` are the columns that are there."""
    return TableError(
        table.name,
        column.name,
        expected=f"a column of type {expected} ({column.doc})",
        found=f"no such column among {', '.join(sorted(names))}{where}",
        cure="Add or rename the column in the table, or point the settings at another table.",
    )


def spelled(names: Sequence[str], table: Table, column: Column, where: str = "") -> str | None:
    """How a column is spelled among the names that are there, upper or lower case; None = it is not among them.

    Raises:
        TableError: two names differ by case only.
    """
    found = [name for name in names if name.lower() == column.name]
    if len(found) > 1:
        raise TableError(
            table.name,
            column.name,
            expected="one column of the name; upper and lower case do not matter",
            found=f"{' and '.join(found)}{where}",
            cure="Rename or drop all but one of them.",
        )
    return found[0] if found else None
