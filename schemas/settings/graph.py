"""The graph of items and what they were engaged with: how it is cut, walked, trained and scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.settings.model import TrainSettings
from schemas.settings.section import Section


class GraphSettings(Section):
    """Items, what joins them, and two graph convolutions over them (jobs/build_item_graph.py, jobs/embed_graph.py)."""

    join_by: Literal["query", "user", "user_day", "event"] = "query"
    half_life_days: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    max_groups: int = Field(default=200, ge=1, le=100_000)
    max_items: int = Field(default=100, ge=2, le=100_000)
    walks: int = Field(default=32, ge=1, le=10_000)
    hops: int = Field(default=3, ge=1, le=16)
    restart: float = Field(default=0.3, ge=0, lt=1)
    neighbours: int = Field(default=10, ge=1, le=255)
    hard_from: int = Field(default=20, ge=1, le=10_000)
    hard_negatives: int = Field(default=10, ge=0, le=10_000)
    width: int = Field(default=256, ge=8, le=16_384)
    hard_share: float = Field(default=0.5, ge=0, le=1)
    alone_share: float = Field(default=0.1, ge=0, lt=1)
    batch_size: int = Field(default=1_024, ge=1)
    negative_count: int = Field(default=1_024, ge=1)
    steps: int = Field(default=400, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    append_to_images: bool = False
    seed: int = Field(default=1, ge=1, lt=1 << 63)

    @model_validator(mode="after")
    def _ranks(self) -> GraphSettings:
        if self.hard_negatives and self.hard_from <= self.neighbours:
            raise ValueError(
                f"hard_from {self.hard_from} is a rank among the neighbours, of which there are {self.neighbours}: an "
                "item is either pooled or a negative; raise hard_from or lower neighbours"
            )
        return self

    @property
    def ranks(self) -> int:
        """Visited items of each item that are kept, nearest first: neighbours, and as far as the hard negatives go."""
        return max(self.neighbours, self.hard_from + self.hard_negatives - 1 if self.hard_negatives else 0)

    def train_settings(self, common: TrainSettings) -> TrainSettings:
        """How the graph tower is trained: sizes and schedule from here, processes and the rest as the item tower is.

        Args:
            common: The section [train].

        Raises:
            SettingsError: the processes cannot share a batch evenly.
        """
        return common.for_section("graph", self, validate_every=0)
