"""A warehouse whose published versions a test makes: commits with their notes, and the change feed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake

from schemas.arrow import arrow_schema
from schemas.cells import to_list_column
from schemas.feed import ALL, REMOVED, SOME, begin_version
from schemas.metrics import ScoreMetrics
from schemas.published import PUBLISHED, Published, live
from schemas.settings import Settings
from schemas.tables import EMBEDDING_DIM, ITEM_CHANGES, QUERY_VECTORS

BRANDS = ["boots & co", 'the "best"', "Ünïcode 靴", None]


class PushShop:
    """Versions of item_embeddings.

    Args:
        settings: Where they lie.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.rows = settings, {}
        self.model, self.queries = "model-a", settings.table_uri(QUERY_VECTORS.name)
        self.uri = settings.table_uri("item_embeddings")
        self.run, self._runs = "run", 0

    def vector(self, seed: int) -> np.ndarray:
        vector = np.random.default_rng(seed).normal(size=EMBEDDING_DIM).astype(np.float32)
        return vector / np.linalg.norm(vector)

    def row(self, item: str, seed: int) -> dict[str, Any]:
        return {
            "item_id": item, "embedding": self.vector(seed), "model_id": self.model, "brand": BRANDS[seed % 4],
            "in_stock": None if seed % 5 == 0 else seed % 2 == 0, "price": seed / 7, "sold": 2**40 + seed,
        }  # fmt: skip

    def put(self, *items: str, seed: int = 0) -> None:
        for number, item in enumerate(items):
            self.rows[item] = self.row(item, seed + number)

    def publish(self, changed: list[str] | None = None, removed: list[str] | None = None) -> int:
        """Commit the rows; `changed` and `removed` go into the feed, without both the version is to be read whole."""
        if not Path(self.queries).exists():
            write_deltalake(self.queries, pa.table({"query_id": ["q"], "model_id": [self.model]}))
        is_some = changed is not None or removed is not None
        for item in removed or []:
            self.rows.pop(item, None)
        version = DeltaTable(self.uri).version() + 1 if DeltaTable.is_deltatable(self.uri) else 0
        feed = begin_version(self.settings.layout, version, SOME if is_some else ALL)
        if is_some:
            pairs = [(item, "changed") for item in changed or []] + [(item, REMOVED) for item in removed or []]
            values = {
                "version": [version] * len(pairs),
                "item_id": [i for i, _ in pairs],
                "change": [c for _, c in pairs],
            }
            write_deltalake(feed, pa.table(values, schema=arrow_schema(ITEM_CHANGES)), mode="append")
        self._runs += 1
        metrics = ScoreMetrics(self.model, "float32", published_id=self.model, spaces={"search": "lsa-1"})
        note = {"run_id": f"{self.run} {self._runs}", "as_of": "2026-03-01", PUBLISHED: {
            "metrics": asdict(metrics), "rows": len(self.rows), QUERY_VECTORS.name: {"version": 0, "rows": 1},
        }}  # fmt: skip
        rows = list(self.rows.values())
        table = pa.table({
            "item_id": pa.array([row["item_id"] for row in rows], pa.string()),
            "embedding": to_list_column(np.stack([row["embedding"] for row in rows])),
            "model_id": pa.array([row["model_id"] for row in rows], pa.string()),
            "brand": pa.array([row["brand"] for row in rows], pa.string()),
            "in_stock": pa.array([row["in_stock"] for row in rows], pa.bool_()),
            "price": pa.array([row["price"] for row in rows], pa.float64()),
            "sold": pa.array([row["sold"] for row in rows], pa.int64()),
        })  # fmt: skip
        properties = CommitProperties({"userMetadata": json.dumps(note)})
        write_deltalake(self.uri, table, mode="overwrite", commit_properties=properties)
        return version

    @property
    def live(self) -> Published:
        found = live(self.settings.layout)
        assert found is not None
        return found
