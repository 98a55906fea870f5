"""Pictures of items that the pipeline embeds itself (jobs/embed_images.py), and a head trained on the shop's log."""

from __future__ import annotations

from pydantic import Field

from schemas.settings.model import LossSettings, TrainSettings
from schemas.settings.section import Section

_DAY = 86_400.0
"""Seconds: no clock of a thread takes ten thousand years."""


class PictureSettings(Section):
    """The frozen picture encoder, and what pictures may be; without a folder item_images is an input, as ever."""

    folder: str = ""
    roots: tuple[str, ...] = ()
    max_pixels: int = Field(default=50_000_000, ge=1)
    max_bytes: int = Field(default=33_554_432, ge=1, le=1_073_741_824)
    timeout_seconds: float = Field(default=20.0, gt=0, le=_DAY)
    budget_seconds: float = Field(default=600.0, gt=0, le=_DAY)
    commit_every: int = Field(default=20_000, ge=1)
    query_kinds: tuple[str, ...] = ()
    head: bool = False


class PictureHeadSettings(Section):
    """The head over the frozen picture encoder: its size and how it is trained (train_pictures)."""

    width: int = Field(default=256, ge=8, le=65_536)
    max_queries: int = Field(default=200, ge=1)
    max_items: int = Field(default=100, ge=2)
    batch_size: int = Field(default=512, ge=2)
    negative_count: int = Field(default=1_024, ge=1)
    steps: int = Field(default=400, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    temperature: float = Field(default=20.0, gt=0, le=100)
    validate_every: int = Field(default=50, ge=0)
    patience: int = Field(default=4, ge=1)
    seed: int = Field(default=1, ge=1)

    @property
    def loss_settings(self) -> LossSettings:
        """The loss of the head: that of the item tower with sampled negatives."""
        return LossSettings(form="mixed", temperature=self.temperature)

    def train_settings(self, common: TrainSettings) -> TrainSettings:
        """How the head is trained: sizes and schedule from here, processes and the rest as the item tower is.

        Args:
            common: The section [train].

        Raises:
            SettingsError: a size cannot be shared out to the processes.
        """
        return common.for_section(
            "picture_head", self, average_decay=0.0,
            validate_every=self.validate_every, patience=self.patience, final_pass=False,
        )  # fmt: skip
