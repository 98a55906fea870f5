"""The 64-bit keys by which items and queries are counted, masked and told apart: the only definition of them."""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F

from schemas.tables import SOURCE_HASH

NO_ITEM = 0
"""The query_item_key of a query that shows no item."""


def item_key(item_id: str | Column) -> Column:
    """xxHash64 of an item's id."""
    return F.xxhash64(item_id)


def query_key(query_id: str | Column) -> Column:
    """xxHash64 of a query's id."""
    return F.xxhash64(query_id)


def query_item_key(item_id: str | Column) -> Column:
    """The key of the item that a query shows; `NO_ITEM` where it shows none."""
    shown = F.col(item_id) if isinstance(item_id, str) else item_id
    return F.coalesce(F.when(shown.isNotNull(), item_key(shown)), F.lit(NO_ITEM).cast("long"))


def source_hash(*columns: str) -> Column:
    """SOURCE_HASH of a row that is made of these columns; a null is unlike anything else."""
    parts: list[Column] = []
    for name in columns:
        parts += [F.col(name), F.col(name).isNull()]
    return F.xxhash64(*parts).alias(SOURCE_HASH)
