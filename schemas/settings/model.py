"""The model and how it is trained: sizes, loss, batches, optimiser."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from schemas.errors import SettingsError
from schemas.settings.section import Section
from schemas.tables import EMBEDDING_DIM, MAX_IMAGES


class ModelSettings(Section):
    """The item tower. The defaults are the paper's, or assumed where it leaves them open (docs/paper-map.md)."""

    sequence: tuple[Literal["text", "images", "frozen_text", "item_id"], ...] = ("text", "images")
    width: int = Field(default=512, ge=8)
    layers: int = Field(default=1, ge=1)
    heads: int = Field(default=8, ge=1)
    feed_forward_width: int = Field(default=2_048, ge=1)
    head_width: int = Field(default=1_024, ge=1)
    hash_rows: int = Field(default=100_000, ge=1)
    hash_functions: int = Field(default=2, ge=1)
    missing: Literal["mask", "zeros"] = "mask"
    max_images: int = Field(default=MAX_IMAGES, ge=1, le=MAX_IMAGES)
    image_length: int = Field(default=EMBEDDING_DIM, ge=1, le=8_192)
    item_vector: bool = False
    id_rows: int = Field(default=50_000, ge=1)
    id_dropout: float = Field(default=0.2, ge=0, lt=1)
    residual: bool = False
    item_map: bool = False
    query_adapter: bool = False
    query_id_rows: int = Field(default=0, ge=0)

    @property
    def knows_items(self) -> bool:
        """Whether the tower has a vector for each item that it was trained on."""
        return self.item_vector or "item_id" in self.sequence

    @model_validator(mode="after")
    def _combinations(self) -> ModelSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}: change one of them")
        if len(set(self.sequence)) != len(self.sequence):
            raise ValueError("sequence may hold text, images, frozen_text and item_id, each once")
        if not self.sequence and not self.residual:
            raise ValueError("sequence is empty, which only residual = true allows: name text, images or another part")
        for name in ("item_map", "item_vector"):
            if getattr(self, name) and not self.residual:
                raise ValueError(f"{name} belongs to the residual path: also set residual = true")
        if self.item_vector and "item_id" in self.sequence:
            raise ValueError("item_vector and item_id are two places for one identity: take item_id out of sequence")
        return self


class LossSettings(Section):
    """The loss; see itemsage_model/training/loss.py for the formulas."""

    form: Literal["sum", "literal", "mixed", "corrected", "full", "bucketed"] = "sum"
    buckets: int = Field(default=32, ge=1)
    bucket_items: int = Field(default=512, ge=1)
    frequency: Literal["sketch", "exact"] = "sketch"
    sketch_depth: int = Field(default=2, ge=1, le=8)
    sketch_width: int = Field(default=1 << 22, ge=1 << 10)
    mask_same_query: bool = True
    mask_query_item: bool = True
    temperature: float = Field(default=1 / 0.07, gt=0)
    max_temperature: float = Field(default=100.0, gt=0)
    distillation: float = Field(default=0.0, ge=0)
    distillation_scale: float = Field(default=20.0, gt=0)
    prefixes: tuple[Annotated[int, Field(ge=1, lt=EMBEDDING_DIM)], ...] = ()
    prefix_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _cap_above_start(self) -> LossSettings:
        if self.temperature > self.max_temperature:
            raise ValueError("temperature is above max_temperature: lower the one or raise the other")
        return self


class TrainSettings(Section):
    """Batches, optimiser, schedule and processes."""

    batch_size: int = Field(default=4_096, ge=1)
    negative_count: int = Field(default=4_096, ge=1)
    negatives_from: Literal["catalog", "engaged"] = "catalog"
    start: Literal["random", "spectral"] = "random"
    steps: int = Field(default=10_000, ge=1)
    warmup_steps: int = Field(default=300, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    table_learning_rate: float = Field(default=1e-3, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    average_decay: float = Field(default=0.0, ge=0, lt=1)
    validate_every: int = Field(default=0, ge=0)
    patience: int = Field(default=4, ge=1)
    final_pass: bool = True
    unseen_as_frozen: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    shuffle_rows: int = Field(default=32_768, ge=1)
    prefetch_batches: int = Field(default=4, ge=1)
    processes: int = Field(default=1, ge=1)
    threads: int = Field(default=0, ge=0)
    log_every: int = Field(default=50, ge=1)
    checkpoint_every: int = Field(default=1_000, ge=1)
    seed: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> TrainSettings:
        for name in ("batch_size", "negative_count"):
            if getattr(self, name) % self.processes:
                raise ValueError(f"{name} must be a multiple of processes ({self.processes}): change one of them")
        return self

    def for_section(self, name: str, section: Section, **others: Any) -> TrainSettings:
        """How another tower is trained: sizes and schedule from its own section, processes and the rest from here.

        Args:
            name: The section's, for the error.
            section: Has batch_size, negative_count, steps, learning_rate and seed.
            others: Further values.

        Raises:
            SettingsError: the processes cannot share a batch evenly.
        """
        own = {key: getattr(section, key) for key in ("batch_size", "negative_count", "steps", "learning_rate", "seed")}
        for size in ("batch_size", "negative_count"):
            if own[size] % self.processes:
                shared = f"must be a multiple of train.processes ({self.processes}): change one of them"
                raise SettingsError(f"{name}.{size} {shared} (found {own[size]})")
        fixed = {
            "warmup_steps": own["steps"] // 10, "clip_norm": 1.0, "start": "random", "negatives_from": "catalog",
        }  # fmt: skip
        return TrainSettings.model_validate(self.model_dump() | own | fixed | others)
