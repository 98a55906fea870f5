"""The columns of an input table: where each declared one comes from in some files, and what is refused of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from schemas.arrow import arrow_type
from schemas.columns import Column, Table
from schemas.errors import TableError
from schemas.source_types import absent, is_taken, mistyped, spark_name, spelled


@dataclass(frozen=True)
class Source:
    """Where a declared column of some files comes from.

    Attributes:
        name: The column's name there.
        type: Its type there; instants that are stored as INT96 count as microseconds in UTC.
        is_folder: Whether it is no column but part of the folders' names, as in `engagement=click/`: a text.
    """

    name: str
    type: pa.DataType
    is_folder: bool = False


Sources = Mapping[str, Source]
"""By declared name, the columns that are there and not of nulls alone."""


def sources_of(
    schema: pa.Schema, table: Table, folders: Mapping[str, Any], instants: frozenset[str], where: str = ""
) -> dict[str, Source]:
    """Where the declared columns come from; those that are of no type, as nulls alone are, count as absent.

    Args:
        schema: What a footer or a log says.
        table: The table.
        folders: Values of `key=value` folders by key.
        instants: Columns that are stored as INT96, which Arrow shows as times without a zone.
        where: What an error says of the place.

    Raises:
        TableError: two names differ by upper and lower case only.
    """
    found = {}
    for column in table.columns:
        name = spelled(schema.names, table, column, where)
        if name is not None:
            kind = pa.timestamp("us", "UTC") if name in instants else schema.field(name).type
            if not _says_nothing(kind):
                found[column.name] = Source(name, kind)
        elif column.name in folders:
            found[column.name] = Source(column.name, pa.string(), is_folder=True)
    return found


def _says_nothing(kind: pa.DataType) -> bool:
    """Whether no row of a column of this type can hold a value: only nulls, or only lists without a value."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(pa.types.is_null(kind) or (is_list and pa.types.is_null(kind.value_type)))


def column_faults(table: Table, places: Sequence[tuple[Sources, tuple[str, ...], str]]) -> Iterator[TableError]:
    """At most one refusal a column: it is missing, mistyped, or of types in two files that contradict each other.

    Args:
        table: The table.
        places: Of each file, where its columns come from, the names of all, and what an error says of it.
    """
    for column in table.columns:
        if fault := _column_fault(table, column, places):
            yield fault


def _column_fault(
    table: Table, column: Column, places: Sequence[tuple[Sources, tuple[str, ...], str]]
) -> TableError | None:
    expected = str(arrow_type(column))
    stored = [(sources[column.name].type, where) for sources, _, where in places if column.name in sources]
    for kind, where in stored:
        if not is_taken(column.kind, name := spark_name(kind)):
            return mistyped(table, column, expected=expected, found=f"{kind}{where}", name=name)
    texts = [(kind, where) for kind, where in stored if spark_name(kind) == "string"]
    numbers = [(kind, where) for kind, where in stored if spark_name(kind) != "string"]
    # Ids of two systems: "7" and 7 need not be the same product.
    if column.kind == "string" and texts and numbers:
        found = f"{numbers[0][0]}{numbers[0][1]}, and {texts[0][0]}{texts[0][1]}"
        name = spark_name(numbers[0][0])
        return mistyped(table, column, expected=f"{expected} in every file", found=found, name=name)
    if column.optional:
        return None
    for _, names, where in places:
        if column.name not in {name.lower() for name in names}:
            return absent(table, column, expected=expected, names=names, where=where)
    if not stored:
        return mistyped(table, column, expected=expected, found="null: not one value", name="void")
    return None
