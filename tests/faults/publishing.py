"""Publishing, to be killed, aborted and starved of disk: functions of plain values, without a JVM."""

from __future__ import annotations

import os
import resource
import zlib
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.runtime.worker_rows import write_part
from schemas import candidate as candidates
from schemas.candidate import Candidate, keep_candidate, publish_candidate
from schemas.cells import to_list_column
from schemas.columns import Table
from schemas.commits import Staged, open_or_create
from schemas.lease import hold
from schemas.metrics import ScoreMetrics
from schemas.records import RunRecord, write_record
from schemas.settings import Settings
from schemas.stages import SCORE_CATALOG
from schemas.tables import ITEM_EMBEDDINGS, QUERY_VECTORS

ITEMS, QUERIES, FILES = 300, 60, 2


def items_of(model: str) -> pa.Table:
    """The embeddings that a model gives."""
    return pa.table(
        {
            "item_id": [f"i{number:04}" for number in range(ITEMS)],
            "embedding": _vectors(model, ITEMS),
            "model_id": [model] * ITEMS,
            "features_hash": [f"h{number}" for number in range(ITEMS)],
            "scored_ts": pa.array([0] * ITEMS, pa.timestamp("us", "UTC")),
        }
    )


def queries_of(model: str) -> pa.Table:
    """The query vectors that belong to them."""
    return pa.table(
        {
            "query_id": [f"q{number:04}" for number in range(QUERIES)],
            "query_kind": ["search"] * QUERIES,
            "query_vector": _vectors(model, QUERIES),
            "model_id": [model] * QUERIES,
        }
    )


def _vectors(model: str, rows: int) -> pa.Array:
    return to_list_column(np.random.default_rng(zlib.crc32(model.encode())).normal(size=(rows, 256)).astype(np.float32))


def publish(settings_json: str, model: str) -> None:
    """What score_catalog does with a model's vectors, and `itemsage publish` after it."""
    settings = Settings.model_validate_json(settings_json)
    with hold(settings.layout, SCORE_CATALOG.name, str(settings.dates.as_of)):
        items = _staged(settings, ITEM_EMBEDDINGS, items_of(model))
        answers = _staged(settings, QUERY_VECTORS, queries_of(model))
        metrics = ScoreMetrics(model, "float32", published_id=model)
        made = Candidate(items, answers, {"run_id": f"run of {model}", "as_of": "2026-03-01"}, metrics)
        keep_candidate(settings.layout, made)
        write_record(settings.layout, RunRecord(SCORE_CATALOG.name, metrics, outputs=made.outputs, made_after={}))
        publish_candidate(settings)


def _staged(settings: Settings, table: Table, rows: pa.Table) -> Staged:
    uri = settings.table_uri(table.name)
    base = int(open_or_create(uri, table).version())
    size = -(-len(rows) // FILES)
    parts = [rows.slice(first, size).combine_chunks().to_batches() for first in range(0, len(rows), size)]
    files = [write_part(part, uri, number, table) for number, part in enumerate(parts)]
    return Staged(table, uri, [file for file in files if file], base)


def publish_and_abort(settings_json: str, model: str) -> None:
    """Abort right after both commits, as a native library does at the interpreter's end."""
    candidates.write_record = lambda *_: os.abort()
    publish(settings_json, model)


def publish_on_a_full_disk(settings_json: str, model: str, most_bytes: int) -> None:
    """No file may grow beyond some bytes."""
    limit_files(most_bytes)
    publish(settings_json, model)


def commit_on_a_full_disk(settings_json: str, model: str, most_bytes: int) -> None:
    """The same from where all is written but the commits and the record."""

    def limited(settings: Settings) -> Any:
        limit_files(most_bytes)
        return candidates.publish_candidate(settings)

    globals()["publish_candidate"] = limited
    publish(settings_json, model)


def limit_files(most_bytes: int) -> None:
    """As a full disk does: what goes beyond is an error, and what was written so far stays."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))


items_of("")  # what Arrow imports when it first sees arrays, each child would import anew, and be killed there
