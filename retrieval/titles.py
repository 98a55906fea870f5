"""Titles of items, for people who look at answers."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from schemas.input_rows import input_rows
from schemas.input_tables import find_input
from schemas.settings import Settings
from schemas.tables import ITEMS


def titles_of(settings: Settings, item_ids: Iterable[str]) -> dict[str, str]:
    """Titles of some items, as the jobs read them; of the items that have one."""
    wanted = pa.array(sorted(set(item_ids)), pa.string())
    titles: dict[str, str] = {}
    for batch in input_rows(find_input(settings.table_uri(ITEMS.name), ITEMS), ("item_id", "title")):
        rows = batch.filter(pc.is_in(batch.column("item_id"), wanted))
        pairs = zip(rows.column("item_id").to_pylist(), rows.column("title").to_pylist(), strict=True)
        titles |= {item: title for item, title in pairs if title}
    return titles
