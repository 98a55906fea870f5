"""Row push: items/s into Postgres by `itemsage push`, verified, against COPY by hand of the same rows.

Everybody reads the same published Delta table and fills a table with a primary key in one real Postgres (the package
pgserver, on a unix socket). By hand: one COPY of text, as one writes it with psycopg; and one COPY of the bytes that
ours sends, which is all that Postgres asks for. Ours has on top: a table beside the live one, a commit a batch, the
ids of all rows and a sample of 10,000 rows read back, and the swap. The other stores are there for information.

    python -m benchmarks.push [--rounds N] [--small]
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from deltalake import write_deltalake
from psycopg import sql

from benchmarks.contest import Contender, Row, Turn, compete, judge, require
from benchmarks.report import Options, main, print_outcome
from retrieval.push import open_store, push_into
from retrieval.stores.pgvector import HEADER, TRAILER, encoded
from schemas.cells import to_list_column
from schemas.metrics import ScoreMetrics
from schemas.published import Published
from schemas.settings import PushSettings
from schemas.tables import EMBEDDING_DIM, ITEM_EMBEDDINGS, QUERY_VECTORS
from schemas.warehouse import Warehouse

OURS, TEXT, BARE = "itemsage push, pgvector", "COPY by hand, text", "COPY by hand, our bytes"
OTHERS = {"itemsage push, milvus-lite": "milvus", "itemsage push, OpenSearch files": "opensearch"}
SAMPLE = 10_000
_AT_ONCE = 50_000


def rows(options: Options) -> Iterator[Row]:
    """Time all."""
    items = options.choose(100_000, 5_000)
    make_published(options.scratch, items)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a folder that containers lack
        import pgserver  # noqa: PLC0415 (slow, and of this benchmark alone)

        server = pgserver.get_server(options.scratch / "postgres")
    try:
        uri = f"postgresql://postgres@/postgres?host={options.scratch / 'postgres'}"
        with psycopg.connect(uri) as connection:
            connection.execute("CREATE EXTENSION vector")
        contenders = [
            Contender(OURS, push_turn, (options.scratch, items, "pgvector", uri)),
            Contender(TEXT, text_turn, (options.scratch, items, uri)),
            Contender(BARE, bare_turn, (options.scratch, items, uri)),
            *(Contender(name, push_turn, (options.scratch, items, kind, "")) for name, kind in OTHERS.items()),
        ]
        outcome = compete(contenders, options.rounds or 4)
    finally:
        server.cleanup()
    print_outcome(f"{items:,} items of {EMBEDDING_DIM} floats", "items", outcome)
    yield judge("push", "push into Postgres, verified", TEXT, outcome.ratios(OURS, TEXT), at_least=1)
    yield judge("push", "push into Postgres, verified", BARE, outcome.ratios(OURS, BARE))


def make_published(scratch: Path, items: int) -> None:
    """A published table of random unit vectors."""
    generator = np.random.default_rng(0)
    uri = Warehouse(str(scratch / "warehouse")).table(ITEM_EMBEDDINGS.name)
    for start in range(0, items, _AT_ONCE):
        count = min(_AT_ONCE, items - start)
        vectors = generator.normal(size=(count, EMBEDDING_DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        columns = {
            "item_id": pa.array([f"product-{number}" for number in range(start, start + count)]),
            "embedding": to_list_column(vectors),
            "model_id": pa.array(["m"] * count),
        }
        write_deltalake(uri, pa.table(columns), mode="append" if start else "overwrite")


def published(scratch: Path, items: int) -> Published:
    """The table of `make_published`, as its commit would name it."""
    note: dict[str, Any] = {
        "run_id": "r", "as_of": "2026-03-01",
        "published": {"rows": items, QUERY_VECTORS.name: {"version": 0, "rows": 0}},
    }  # fmt: skip
    version = (items - 1) // _AT_ONCE
    metrics = ScoreMetrics("m", "float32", published_id="m")
    return Published(Warehouse(str(scratch / "warehouse")), version, datetime.now(timezone.utc), note, metrics)


def push_turn(scratch: Path, items: int, kind: Any, uri: str) -> Turn:
    """Ours, into a new table each time."""
    numbers = itertools.count()

    def turn() -> dict[str, Any]:
        number = next(numbers)
        place = uri or str(scratch / (f"{kind}{number}" + (".db" if kind == "milvus" else "")))
        settings = PushSettings(store=kind, uri=place, table=f"{kind}{number}", sample_rows=SAMPLE)
        started = time.perf_counter()
        with open_store(settings) as store:
            done = push_into(store, published(scratch, items), SAMPLE)
        seconds = time.perf_counter() - started
        require(done.upserts == items, "not all items were pushed")
        return {"units": items, "seconds": seconds}

    return turn


def text_turn(scratch: Path, items: int, uri: str) -> Turn:
    """One COPY of text, a row after the other."""

    def copy(cursor: Any, table: sql.Identifier) -> None:
        with cursor.copy(sql.SQL("COPY {} (item_id, embedding) FROM STDIN").format(table)) as copying:
            for batch in published(scratch, items).items(["item_id", "embedding"]):
                for row in batch.to_pylist():
                    copying.write_row((row["item_id"], str(row["embedding"])))

    return _by_hand(copy, items, uri, "by_hand_text")


def bare_turn(scratch: Path, items: int, uri: str) -> Turn:
    """One COPY of the bytes that ours sends."""

    def copy(cursor: Any, table: sql.Identifier) -> None:
        with cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(table)) as copying:
            copying.write(HEADER)
            for batch in published(scratch, items).items(["item_id", "embedding"]):
                copying.write(encoded(batch, {}))
            copying.write(TRAILER)

    return _by_hand(copy, items, uri, "by_hand_bytes")


def _by_hand(copy: Any, items: int, uri: str, name: str) -> Turn:
    numbers = itertools.count()

    def turn() -> dict[str, Any]:
        table = sql.Identifier(f"{name}{next(numbers)}")
        started = time.perf_counter()
        with psycopg.connect(uri) as connection, connection.cursor() as cursor:
            cursor.execute(
                sql.SQL("CREATE TABLE {} (item_id text PRIMARY KEY, embedding vector({}))").format(table, EMBEDDING_DIM)
            )
            copy(cursor, table)
        seconds = time.perf_counter() - started
        with psycopg.connect(uri) as connection:
            found = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table)).fetchone()
            connection.execute(sql.SQL("DROP TABLE {}").format(table))
        require(found == (items,), "not all items were copied")
        return {"units": items, "seconds": seconds}

    return turn


if __name__ == "__main__":
    main("benchmarks.push")
