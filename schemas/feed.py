"""The change feed of item_embeddings: what an index must do to go from one version to another, read without Spark.

Rows of a version are written before its commit, so those above the live version count for nothing; whoever commits that
version at last replaces them.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake

from schemas.arrow import arrow_schema
from schemas.commits import open_or_create
from schemas.storage import read_batches
from schemas.tables import ITEM_CHANGES
from schemas.warehouse import Warehouse

ALL, SOME, REMOVED = "all", "some", "removed"


def begin_version(warehouse: Warehouse, version: int, head: str) -> str:
    """Write the head row of a version that is about to be committed; returns the URI of the feed.

    Args:
        warehouse: Where it lies.
        version: Of item_embeddings.
        head: ALL, or SOME: then the rows of its items are appended after this.
    """
    uri = warehouse.table(ITEM_CHANGES.name)
    table = open_or_create(uri, ITEM_CHANGES)
    if table.version():
        table.delete(f"version >= {version:d}")
    row: dict[str, list[Any]] = {"version": [version], "item_id": [""], "change": [head]}
    write_deltalake(uri, pa.table(row, schema=arrow_schema(ITEM_CHANGES)), mode="append")
    return uri


def recorded_changes(warehouse: Warehouse, since: int, until: int) -> dict[int, list[tuple[str, str]]]:
    """Version -> (item_id, change) of its rows, the head row among them; of versions above `since` up to `until`."""
    uri = warehouse.table(ITEM_CHANGES.name)
    found: dict[int, list[tuple[str, str]]] = {}
    if not DeltaTable.is_deltatable(uri):
        return found
    for batch in read_batches(uri, None, list(ITEM_CHANGES.column_names)):
        version = batch.column("version")
        chosen = batch.filter(pc.and_(pc.greater(version, since), pc.less_equal(version, until)))
        for row in chosen.to_pylist():
            found.setdefault(row["version"], []).append((row["item_id"], row["change"]))
    return found
