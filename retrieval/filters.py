"""Filters of a search: which rows of a shard have allowed values in all of the columns that a filter names.

Filter columns are those that item_embeddings has beside its own: categories, price bands, whether an item is in stock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from retrieval.shards import Allowed
from schemas.errors import InputError
from schemas.tables import ITEM_EMBEDDINGS

Where: TypeAlias = Mapping[str, Sequence[Any]]
"""Column -> its allowed values; an item passes where every column has one of them. None among them = unknown."""


def is_filter_type(kind: pa.DataType) -> bool:
    """Whether values of a column can be named in a filter: texts, booleans, integers and floats."""
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(is_number or pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def filter_columns(uri: str, version: int) -> dict[str, str]:
    """The filter columns of a version of item_embeddings, and their Arrow types."""
    schema = pa.schema(DeltaTable(uri, version=version).schema().to_arrow())
    own = set(ITEM_EMBEDDINGS.column_names)
    return {field.name: str(field.type) for field in schema if field.name not in own and is_filter_type(field.type)}


def allowed_values(where: Where, columns: Mapping[str, str]) -> dict[str, pa.Array]:
    """The values of a filter in the types of its columns.

    Args:
        where: The filter.
        columns: Filter column -> Arrow type, of the index.

    Raises:
        InputError: there is no such column, or a value is of another type.
    """
    found = {}
    for name, values in where.items():
        if name not in columns:
            known = f"one of its filter columns: {', '.join(sorted(columns)) or 'it has none'}"
            cure = "Name another, or add the column to score.filters and publish again."
            raise InputError("filter", name, expected=known, found=f"the column {name}", cure=cure)
        kind = pa.type_for_alias(columns[name])
        several = isinstance(values, Iterable) and not isinstance(values, str | bytes)
        listed = [one.item() if isinstance(one, np.generic) else one for one in (values if several else [values])]
        wrong = [value for value in listed if value is not None and not _fits(value, kind)]
        if wrong:
            cure = "Name values as the column has them."
            raise InputError("filter", name, expected=f"values of the type {kind}", found=repr(wrong[0]), cure=cure)
        try:
            found[name] = pa.array(listed, kind)
        except (pa.ArrowInvalid, OverflowError) as error:
            cure = "Name values as the column has them."
            raise InputError(
                "filter", name, expected=f"values of the type {kind}", found=str(error), cure=cure
            ) from error
    return found


def passing(rows: pa.Table, values: Mapping[str, pa.Array]) -> Allowed:
    """Which rows pass.

    Args:
        rows: Of a shard.
        values: Of `allowed_values`.
    """
    keep = np.ones(rows.num_rows, bool)
    for name, allowed in values.items():
        keep &= np.asarray(pc.is_in(rows[name], value_set=allowed))
    return keep


def _fits(value: Any, kind: pa.DataType) -> bool:
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    if pa.types.is_integer(kind):
        return isinstance(value, int) and not isinstance(value, bool)
    if pa.types.is_floating(kind):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str)
