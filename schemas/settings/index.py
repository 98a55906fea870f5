"""The index of the published vectors: what it is built with, and what it must be worth (jobs/export_index.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.settings.section import Section


class IndexSettings(Section):
    """Which version is indexed, where, with what, and the recall below which nothing is published."""

    folder: str = ""
    version: Literal["live"] | int = "live"
    engine: Literal["faiss", "usearch"] = "faiss"
    hnsw_m: int = Field(default=32, ge=4, le=256)
    ef_construction: int = Field(default=200, ge=8, le=10_000)
    ef_search: int = Field(default=64, ge=10, le=10_000)
    items_per_shard: int = Field(default=1_000_000, ge=1)
    exact_rows: int = Field(default=10_000, ge=0)
    max_delta_share: float = Field(default=0.2, ge=0, le=1)
    rebuild: bool = False
    min_recall: float = Field(default=0.95, ge=0, le=1)
    queries_per_kind: int = Field(default=1_000, ge=1)
    slices: tuple[Literal["query_kind", "task"], ...] = ("query_kind", "task")
    selectivities: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5, 0.1, 0.01, 0.001)
