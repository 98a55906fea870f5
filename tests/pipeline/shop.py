"""A small sound shop's input tables as Parquet files, and its settings file; for the tests of the front door."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

END = datetime(2026, 3, 1, tzinfo=timezone.utc)
VECTOR = pa.list_(pa.float32())


def write_shop(folder: Path, **replaced: pa.Table) -> Path:
    """Write the tables, some of them replaced, to `<folder>/in/`; returns the settings file."""
    for name, table in (sound_tables() | replaced).items():
        (folder / "in" / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "in" / name / "part-0.parquet")
    inputs = "".join(f'{name} = "{folder}/in/{name}"\n' for name in sound_tables())
    settings = folder / "shop.toml"
    settings.write_text(
        f'[warehouse]\nuri = "{folder}/warehouse"\n[inputs]\n{inputs}[dates]\nas_of = 2026-03-01\ntrain_days = 50\n'
        'test_days = 8\n[[tasks]]\nquery_kind = "closeup"\nengagement = "click"\n'
    )
    return settings


def sound_tables() -> dict[str, pa.Table]:
    """The four input tables."""
    return {
        "items": pa.table({"item_id": ["p1", "p2"], "title": ["red lamp", "blue chair"]}),
        "item_images": images_of(256),
        "queries": pa.table(
            {
                "query_id": ["q1"], "query_kind": ["closeup"], "embedding_space": ["pinsage-1"],
                "query_embedding": pa.array([np.ones(256).tolist()], VECTOR),
            }
        ),
        "engagement_logs": log_of(END - timedelta(days=3)),
    }  # fmt: skip


def images_of(length: int) -> pa.Table:
    """One image of one item."""
    vectors = pa.array([np.ones(length).tolist()], VECTOR)
    return pa.table({"item_id": ["p1"], "position": pa.array([0], pa.int32()), "image_embedding": vectors})


def log_of(when: datetime, **columns: Any) -> pa.Table:
    """One event; columns may be replaced."""
    values: dict[str, Any] = {
        "event_id": ["e1"], "event_ts": pa.array([when], pa.timestamp("us", "UTC")), "query_id": ["q1"],
        "item_id": ["p1"], "engagement": ["click"],
    }  # fmt: skip
    return pa.table(values | columns)
