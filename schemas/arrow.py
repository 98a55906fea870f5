"""Tables as Arrow knows them: Table -> pa.Schema, and `conform_batch`, the gate of rows that no DataFrame writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns import Column, Kind, Table
from schemas.errors import TableError

_TYPES: dict[Kind, pa.DataType] = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "timestamp": pa.timestamp("us", "UTC"),
    "binary": pa.binary(),
    "vector": pa.list_(pa.float32()),
    "strings": pa.list_(pa.string()),
}


def arrow_schema(table: Table) -> pa.Schema:
    """The Arrow schema of a table, with its nullability."""
    return pa.schema([pa.field(column.name, _TYPES[column.kind], column.nullable) for column in table.columns])


def conform_batch(batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
    """Select exactly the declared columns, in order; columns that the table does not declare are left out.

    Raises:
        TableError: a column is missing, has another type or a null where none may be, a vector or cell has another
            length, or a number is not positive where all must be.
    """
    columns = [_conform_column(batch, table, column) for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=arrow_schema(table))


def column_fault(schema: pa.Schema, table: Table, column: Column) -> TableError | None:
    """What is wrong with a column of an input table's files, as Spark's `conform` would say it; None = nothing."""
    index = schema.get_field_index(column.name)
    if index < 0:
        if column.optional:
            return None
        expected, found = f"a column of type {_TYPES[column.kind]} ({column.doc})", ", ".join(sorted(schema.names))
        cure = "Add or rename the column in the table, or point the settings at another table."
        return TableError(table.name, column.name, expected=expected, found=f"no such column among {found}", cure=cure)
    kind = schema.field(index).type
    if _ACCEPTED[column.kind](kind):
        return None
    expected = f"type {_TYPES[column.kind]} ({column.doc})"
    cure = "Cast it where the table is written."
    return TableError(table.name, column.name, expected=expected, found=f"type {kind}", cure=cure)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or (
        pa.types.is_dictionary(kind) and _is_text(kind.value_type)
    ))  # fmt: skip


def _is_list_of(kind: pa.DataType, is_element: Callable[[pa.DataType], bool]) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and is_element(kind.value_type))


# What Spark reads these types of files as is what schemas/spark.py accepts.
_ACCEPTED: dict[Kind, Callable[[pa.DataType], bool]] = {
    "string": _is_text,
    "int32": lambda kind: pa.types.is_signed_integer(kind) and kind.bit_width <= 32,
    "int64": pa.types.is_signed_integer,
    "float32": pa.types.is_float32,
    "float64": lambda kind: pa.types.is_float32(kind) or pa.types.is_float64(kind),
    # Nanoseconds without a zone are INT96, which Spark writes and reads as instants; with one it refuses them.
    "timestamp": lambda kind: pa.types.is_timestamp(kind) and (kind.unit == "ns") == (kind.tz is None),
    "binary": lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
    "vector": lambda kind: _is_list_of(kind, lambda of: pa.types.is_float32(of) or pa.types.is_float64(of)),
    "strings": lambda kind: _is_text(kind) or _is_list_of(kind, _is_text),
}


def _conform_column(batch: pa.RecordBatch, table: Table, column: Column) -> pa.Array:
    index = batch.schema.get_field_index(column.name)
    if index < 0:
        raise _refusal(table, column, f"a column of type {_TYPES[column.kind]}", "none of that name")
    values = batch.column(index)
    if values.type != _TYPES[column.kind]:
        raise _refusal(table, column, f"type {_TYPES[column.kind]}", f"type {values.type}")
    if values.null_count and not column.nullable:
        raise _refusal(table, column, "a value in every row", f"{values.null_count} nulls in a batch of {len(values)}")
    if column.kind == "vector" and column.shape:
        lengths = pc.list_value_length(values)
        if (found := _first(lengths, pc.not_equal(lengths, column.shape[0]))) is not None:
            raise _refusal(table, column, f"vectors of length {column.shape[0]}", f"a vector of length {found}")
    if column.cell_bytes:
        lengths = pc.binary_length(values)
        if (found := _first(lengths, pc.not_equal(lengths, column.cell_bytes))) is not None:
            raise _refusal(table, column, f"cells of {column.cell_bytes} bytes", f"a cell of {found}")
    if column.is_positive and (found := _first(values, pc.invert(pc.greater(values, 0)))) is not None:
        raise _refusal(table, column, "numbers above 0", str(found))
    return values


def _first(values: pa.Array, is_bad: pa.Array) -> Any:
    """The first of the values that are bad; None where none is."""
    return values.filter(is_bad)[0].as_py() if pc.any(is_bad).as_py() else None


def _refusal(table: Table, column: Column, expected: str, found: str) -> TableError:
    cure = "Nothing was published. The job that writes the table is at fault, or an input that it did not check."
    return TableError(table.name, column.name, expected=expected, found=found, cure=cure)
