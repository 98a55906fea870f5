"""A shop whose vectors are published day after day, as score_catalog leaves them, without Spark."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake

from schemas.arrow import arrow_schema
from schemas.cells import to_list_column
from schemas.feed import ALL, SOME, begin_version
from schemas.metrics import ScoreMetrics
from schemas.published import PUBLISHED, Published, live
from schemas.tables import ITEM_CHANGES, ITEM_EMBEDDINGS, ITEM_SHORT_VECTORS, QUERY_VECTORS
from schemas.tasks import Task
from schemas.warehouse import Warehouse

DIM, CENTRES = 256, 40
CLICK = Task("search", "click")
SPACES = {"search": "lsa-1", "closeup": "images-1"}


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@dataclass
class Shop:
    """Items around some centres; each has a category, which its centre decides, and is in stock or not, by chance.

    `vectors` is what is published next: item_id -> vector.
    """

    warehouse: Warehouse
    model: str = "model-a"
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    columns: dict[str, dict[str, object]] = field(default_factory=dict)
    made: int = 0

    def __post_init__(self) -> None:
        self.centres = unit(self.random.normal(size=(CENTRES, DIM)))
        folder = Path(self.warehouse.models) / self.model
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(json.dumps({"model": {"query_adapter": False}}))

    def near(self, centre: int) -> np.ndarray:
        return unit(self.centres[centre] + 0.06 * self.random.normal(size=(1, DIM)))[0]

    def add(self, count: int) -> list[str]:
        ids = [f"item-{self.made + number:06}" for number in range(count)]
        self.made += count
        for item_id in ids:
            centre = int(self.random.integers(CENTRES))
            self.vectors[item_id] = self.near(centre)
            stock = bool(self.random.random() < 0.5)
            self.columns[item_id] = {"category": f"c{centre % 10}", "in_stock": stock, "price_band": centre % 4}
        return ids

    def change(self, count: int) -> list[str]:
        ids = [str(one) for one in self.random.choice(sorted(self.vectors), count, replace=False)]
        for item_id in ids:
            self.vectors[item_id] = self.near(int(self.random.integers(CENTRES)))
        return ids

    def remove(self, count: int) -> list[str]:
        ids = [str(one) for one in self.random.choice(sorted(self.vectors), count, replace=False)]
        for item_id in ids:
            del self.vectors[item_id], self.columns[item_id]
        return ids

    def write_queries(self, count: int = 60) -> None:
        for kind in SPACES:
            vectors = unit(np.stack([self.near(int(self.random.integers(CENTRES))) for _ in range(count)]))
            ids = [f"{kind}-{number:04}" for number in range(count)]
            rows = pa.table({
                "query_id": ids, "query_kind": [kind] * count, "query_vector": to_list_column(vectors),
                "model_id": [self.model] * count,
            })  # fmt: skip
            write_deltalake(self.warehouse.table(QUERY_VECTORS.name), rows, mode="append")

    def write_held_out(self, count: int = 30) -> None:
        rows = pa.table({"query_id": [f"search-{number:04}" for number in range(count)], "item_id": ["x"] * count})
        write_deltalake(self.warehouse.table(CLICK.held_out_table), rows)

    def rows(self, *, with_columns: bool = True) -> pa.Table:
        ids = sorted(self.vectors, key=lambda item_id: item_id[::-1])
        cells = to_list_column(np.stack([self.vectors[item_id] for item_id in ids]))
        table = pa.table({"item_id": ids, "embedding": cells, "model_id": [self.model] * len(ids)})
        if with_columns:
            for name in ("category", "in_stock", "price_band"):
                table = table.append_column(name, pa.array([self.columns[item_id][name] for item_id in ids]))
        return table

    def publish(
        self,
        changes: dict[str, list[str]] | None = None,
        *,
        rows: pa.Table | None = None,
        count: int | None = None,
        has_short: bool = False,
    ) -> Published:
        """One commit of item_embeddings; `changes`: added, changed, removed -> ids; None = the feed does not tell.

        With `has_short` it says that short vectors belong to it.
        """
        uri = self.warehouse.table(ITEM_EMBEDDINGS.name)
        queries = DeltaTable(self.warehouse.table(QUERY_VECTORS.name))
        version = DeltaTable(uri).version() + 1 if DeltaTable.is_deltatable(uri) else 0
        feed = begin_version(self.warehouse, version, ALL if changes is None else SOME)
        told = [(version, item_id, change) for change, ids in (changes or {}).items() for item_id in ids]
        if told:
            names = ITEM_CHANGES.column_names
            lines = [dict(zip(names, line, strict=True)) for line in told]
            write_deltalake(feed, pa.Table.from_pylist(lines, schema=arrow_schema(ITEM_CHANGES)), mode="append")
        table = self.rows() if rows is None else rows
        belongs = {"version": queries.version(), "rows": 120}
        metrics = ScoreMetrics(self.model, "float32", published_id=self.model, spaces=SPACES)
        what = {"metrics": asdict(metrics), "rows": len(table) if count is None else count, QUERY_VECTORS.name: belongs}
        if has_short:
            what[ITEM_SHORT_VECTORS.name] = {"version": 0, "rows": len(table)}
        note = {"run_id": f"run-{version}", "as_of": "2026-03-01", PUBLISHED: what}
        properties = CommitProperties({"userMetadata": json.dumps(note)})
        write_deltalake(uri, table, mode="overwrite", schema_mode="overwrite", commit_properties=properties)
        found = live(self.warehouse)
        assert found is not None
        return found


def small_shop(folder: Path, items: int = 2_000) -> Shop:
    """A shop with so many items, its queries and held-out pairs; nothing of its items is published yet."""
    shop = Shop(Warehouse(str(folder / "warehouse")))
    shop.add(items)
    shop.write_queries()
    shop.write_held_out()
    return shop
