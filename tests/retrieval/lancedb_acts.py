"""What tests/retrieval/test_push_lancedb.py has run in LanceDB's own environment: its asserts, a line if they hold.

python -m tests.retrieval.lancedb_acts <settings as JSON>
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.push import push
from retrieval.stores.lancedb import TAG, Lance
from retrieval.stores.store import VerificationError
from schemas.settings import Settings
from tests.retrieval.push_shop import PushShop

QUOTED = 'it\'s "q" \\ 靴'


def main() -> None:
    """End a push half-way, go on, push changes through a store that lies, and push them again."""
    settings = Settings.model_validate_json(sys.argv[1])
    shop = PushShop(settings)
    shop.put(*(f"P{number}" for number in range(60)), QUOTED)
    shop.publish()
    Lance.rows_at_once = 16
    honest, calls = Lance.upsert, []

    def end(self: Lance, rows: pa.RecordBatch) -> None:
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        honest(self, rows)

    def count(self: Lance, rows: pa.RecordBatch) -> None:
        calls.append(len(rows))
        honest(self, rows)

    assert failing(end, settings, KeyboardInterrupt)
    assert rows_of(settings) == (32, None)
    calls.clear()
    Lance.upsert = count  # type: ignore[method-assign]
    push(settings)
    assert calls == [16, 13], f"what was written before is written again: {calls}"
    assert rows_of(settings) == (61, expected(shop.rows))
    before = dict(shop.rows)
    shop.put("P3", "N1", seed=900)
    shop.publish(["P3", "N1"], ["P7", QUOTED])

    def drop(self: Lance, rows: pa.RecordBatch) -> None:
        honest(self, rows.filter(pc.not_equal(rows.column("item_id"), "N1")))

    def change(self: Lance, rows: pa.RecordBatch) -> None:
        vectors = np.asarray(rows.column("embedding").flatten()).copy()
        vectors[0] += 1e-4
        arrays = {name: rows.column(name) for name in rows.schema.names}
        lists = pa.ListArray.from_arrays(rows.column("embedding").offsets, pa.array(vectors))
        honest(self, pa.RecordBatch.from_pydict(arrays | {"embedding": lists}))

    assert "missing: N1" in failing(drop, settings, VerificationError)
    assert rows_of(settings) == (61, expected(before))
    assert "embedding differs by 0.0001" in failing(change, settings, VerificationError)
    assert rows_of(settings) == (61, expected(before))
    Lance.upsert = honest  # type: ignore[method-assign]
    done = push(settings)
    assert (done.since, done.upserts, done.deletes) == (0, 2, 2)
    assert rows_of(settings) == (60, expected(shop.rows))
    print("all acts held")


def failing(upsert: Callable[..., None], settings: Settings, kind: type[BaseException]) -> str:
    """What a push says that must fail."""
    Lance.upsert = upsert  # type: ignore[method-assign]
    try:
        push(settings)
    except kind as error:
        return str(error) or "ended"
    raise AssertionError("the push did not fail")


def rows_of(settings: Settings) -> tuple[int, dict[str, Any] | None]:
    """How many rows the newest version has, and the rows of the tagged one; None = there is none."""
    table = lancedb.connect(settings.push.uri).open_table(settings.push.table)
    newest = table.count_rows()
    if TAG not in table.tags.list():
        return newest, None
    table.checkout(TAG)
    rows = {row.pop("item_id"): row for row in table.to_arrow().to_pylist()}
    return newest, {item: row | {"embedding": np.float32(row["embedding"]).tobytes()} for item, row in rows.items()}


def expected(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows of the shop as `rows_of` has them."""
    left_out = ("item_id", "model_id", "embedding")
    return {
        item: {name: value for name, value in row.items() if name not in left_out}
        | {"embedding": row["embedding"].tobytes()}
        for item, row in rows.items()
    }


if __name__ == "__main__":
    main()
