"""What happens with a trained model: scoring and evaluation, and where its vectors are pushed."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from schemas.columns import Kind, Table
from schemas.settings.section import Section
from schemas.short_vectors import ShortVector, short_vector
from schemas.tables import ITEM_EMBEDDINGS, ITEM_FEATURES, TEXT_FEATURES, filtered


class ScoreSettings(Section):
    """How the catalog is scored."""

    rows_per_batch: int = Field(default=256, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    publish: Literal["live", "candidate"] = "live"
    max_changed_share: float = Field(default=0.1, ge=0, le=1)
    filters: dict[str, Literal["string", "boolean", "int64", "float64"]] = Field(default={})
    short_vectors: tuple[str, ...] = ()

    @field_validator("filters")
    @classmethod
    def _usable(cls, filters: dict[str, Kind]) -> dict[str, Kind]:
        taken = {*ITEM_FEATURES.column_names, *ITEM_EMBEDDINGS.column_names}
        for name, kind in filters.items():
            if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in taken:
                raise ValueError(
                    f"{name!r} is no name for a column of item_embeddings: small letters, digits and _, "
                    f"and none of {', '.join(sorted(taken))}"
                )
            if name in TEXT_FEATURES and (TEXT_FEATURES[name] or kind != "string"):
                raise ValueError(
                    f'{name}: a text feature of one value an item is a "string"; one of several is no filter'
                )
        return filters

    def filtered(self, table: Table) -> Table:
        """ITEMS, ITEM_FEATURES or ITEM_EMBEDDINGS with the columns of `filters`."""
        return filtered(table, self.filters)

    @property
    def short_forms(self) -> tuple[ShortVector, ...]:
        """The forms that short_vectors names."""
        return tuple(map(short_vector, self.short_vectors))

    @field_validator("short_vectors")
    @classmethod
    def _known_forms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        spelled = tuple(str(short_vector(name)) for name in names)
        if len(set(spelled)) != len(spelled):
            raise ValueError("name each short form once")
        return spelled


class EvaluateSettings(Section):
    """What is measured on the held-out window."""

    k: int = Field(default=10, ge=1)
    max_pairs_per_task: int = Field(default=80_000, ge=1)
    max_distractors: int = Field(default=1_000_000, ge=1)
    slice_by: Literal[
        "", "google_product_category", "product_types", "brand", "merchant_domain", "colors", "materials", "patterns",
        "size", "size_type",
    ] = ""  # fmt: skip


class GateSettings(Section):
    """What score_catalog compares with the published version before it publishes another; else it stops.

    Shares are of the published version but for coverage, which is of the items in item_counts.
    """

    max_row_loss: float = Field(default=0.2, ge=0, le=1)
    max_row_gain: float = Field(default=0.5, ge=0)
    min_id_overlap: float = Field(default=0.5, ge=0, le=1)
    max_rise_without_text: float = Field(default=0.1, ge=0, le=1)
    max_rise_without_images: float = Field(default=0.1, ge=0, le=1)
    min_log_coverage: float = Field(default=0.8, ge=0, le=1)
    min_spread: float = Field(default=0.001, ge=0, le=1)
    min_dimensions: float = Field(default=1.2, ge=1, le=256)
    max_dimension_loss: float = Field(default=0.5, ge=0, le=1)
    max_rise_near_duplicates: float = Field(default=0.1, ge=0, le=1)
    min_neighbour_overlap: float = Field(default=0.02, ge=0, le=1)
    max_drift: float = Field(default=0.01, ge=0, le=2)
    max_recall_loss_short: float = Field(default=0.1, ge=0, le=1)
    override: bool = False


class CanarySettings(Section):
    """A question with a known answer: what must be among the first results of an item or a query, in every version."""

    item: str = ""
    query: str = ""
    finds: tuple[str, ...] = Field(min_length=1)
    within: int = Field(default=10, ge=1, le=1_000)

    @model_validator(mode="after")
    def _one_question(self) -> CanarySettings:
        if bool(self.item) == bool(self.query):
            raise ValueError("name either an item or a query, by id")
        return self

    @property
    def name(self) -> str:
        """The question, in words."""
        return f"item {self.item}" if self.item else f"query {self.query}"


class FloorSettings(Section):
    """What score_catalog does where the model is below a simple rival on the validation window."""

    gate: Literal["fallback", "refuse", "off"] = "fallback"


class PushSettings(Section):
    """The vector store that `itemsage push` writes what is published into."""

    store: Literal["", "pgvector", "milvus", "lancedb", "opensearch"] = ""
    uri: str = ""
    table: str = Field(default="items", pattern=r"^([A-Za-z_]\w{0,39}\.)?[A-Za-z_]\w{0,39}$")
    hnsw: bool = False
    sample_rows: int = Field(default=10_000, ge=1, le=100_000)
    file_mb: int = Field(default=16, ge=1, le=1_024)
    gzip: bool = False
    lancedb_python: str = ".venv-lancedb/bin/python"

    @model_validator(mode="after")
    def _whole(self) -> PushSettings:
        if bool(self.store) != bool(self.uri):
            raise ValueError("name both push.store and push.uri, or neither")
        if self.store == "pgvector" and urlsplit(self.uri).scheme not in ("postgresql", "postgres"):
            raise ValueError("push.uri of pgvector: write postgresql://user@host:port/database")
        if "." in self.table and self.store != "pgvector":
            raise ValueError("push.table: only a Postgres table has a schema before a dot")
        return self

    @property
    def is_place(self) -> bool:
        """Whether the URI names files, and no server."""
        return self.store in ("lancedb", "opensearch") or (self.store == "milvus" and "://" not in self.uri)
