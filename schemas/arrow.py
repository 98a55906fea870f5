"""Tables as Arrow knows them: Table -> pa.Schema, and `conform_batch`, the gate of rows that no DataFrame writes."""

from __future__ import annotations

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
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", "UTC"),
    "binary": pa.binary(),
    "vector": pa.list_(pa.float32()),
    "strings": pa.list_(pa.string()),
}


def arrow_type(column: Column) -> pa.DataType:
    """The Arrow type of a column."""
    return _TYPES[column.kind]


def arrow_schema(table: Table) -> pa.Schema:
    """The Arrow schema of a table, with its nullability."""
    return pa.schema([pa.field(column.name, arrow_type(column), column.nullable) for column in table.columns])


def conform_batch(batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
    """Select exactly the declared columns, in order; columns that the table does not declare are left out.

    Raises:
        TableError: a column is missing, has another type or a null where none may be, a vector or cell has another
            length, or a number is not positive where all must be.
    """
    columns = [_conform_column(batch, table, column) for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=arrow_schema(table))


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
