"""Rows of an input table without a JVM, in their declared shape: what `doctor` samples and the summary shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import arrow_type
from schemas.columns import Column
from schemas.input_columns import Sources
from schemas.input_tables import InputTable
from schemas.source_types import NANOSECONDS, spark_name
from schemas.storage import file_batches, read_batches

_INT32 = np.iinfo(np.int32)


def input_rows(found: InputTable, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """As `stored_rows`, with texts that Python can show."""
    for batch in stored_rows(found, columns):
        yield pa.RecordBatch.from_arrays([_readable(values) for values in batch.columns], schema=batch.schema)


def readable(rows: pa.Table) -> pa.Table:
    """Rows of `stored_rows` with texts that Python can show."""
    columns = [pa.chunked_array([_readable(part) for part in column.chunks], column.type) for column in rows.columns]
    return pa.Table.from_arrays(columns, schema=rows.schema)


def stored_rows(found: InputTable, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some declared columns of an input table, a piece of a file after the other; what is not there is null.

    A text may hold bytes that are no UTF-8, as it does in the file.

    Args:
        found: What the table consists of.
        columns: Declared names.
    """
    declared = [found.table.column(name) for name in columns]
    if found.version is not None:
        names = [found.sources[name].name for name in columns if name in found.sources]
        for batch in read_batches(found.uri, found.version, names):
            yield _in_shape(batch, declared, found.sources, {})
    for file in found.files:
        names = [file.sources[name].name for name in columns if name in file.sources]
        for batch in file_batches(file.uri, names):
            yield _in_shape(batch, declared, file.sources, file.folders)


def _in_shape(
    batch: pa.RecordBatch, declared: Sequence[Column], sources: Sources, folders: Mapping[str, str | None]
) -> pa.RecordBatch:
    columns = {}
    for column in declared:
        source, kind = sources.get(column.name), arrow_type(column)
        if source is None:
            columns[column.name] = pa.nulls(len(batch), kind)
        elif source.is_folder:
            columns[column.name] = pa.array([folders[column.name]] * len(batch), pa.string()).cast(kind)
        else:
            columns[column.name] = _as_declared(batch.column(source.name), column, source.type)
    return pa.RecordBatch.from_pydict(columns)


def _as_declared(values: pa.Array, column: Column, stored: pa.DataType) -> pa.Array:
    kind = arrow_type(column)
    name = spark_name(stored)
    if name == "string" and column.kind == "strings":
        ends = pc.cumulative_sum(pc.cast(pc.is_valid(values), pa.int32()))
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
        lists = pa.ListArray.from_arrays(offsets, _as_text(values.drop_null()))
        return pc.if_else(pc.is_valid(values), lists, pa.nulls(len(values), kind))
    if name == "string":
        return _as_text(values)
    if name == NANOSECONDS or pa.types.is_timestamp(values.type):
        # Stored as INT96, an instant comes without its zone.
        return values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(kind)
    if column.kind == "int32" and not pa.types.is_null(values.type):
        fits = pc.and_(pc.greater_equal(values, _INT32.min), pc.less_equal(values, _INT32.max))
        values = pc.if_else(fits, values, pa.scalar(None, values.type))
    elif pa.types.is_decimal(values.type):
        values = pa.array([None if value is None else str(int(value)) for value in values.to_pylist()], pa.string())
    return values.cast(kind)


def _as_text(values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.cast(pa.string())


def _readable(values: pa.Array) -> pa.Array:
    """Texts and lists of texts in which what is no UTF-8 is the sign that stands for it; other values as they are."""
    raw = {pa.string(): pa.binary(), pa.list_(pa.string()): pa.list_(pa.binary())}.get(values.type)
    if raw is None:
        return values
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        return pa.array([_decoded(value) for value in values.cast(raw).to_pylist()], values.type)
    return values


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    return value if value is None else value.decode(errors="replace")
