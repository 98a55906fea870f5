"""A text encoder trained on the shop's own log: its pairs, its tower, and how it is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from schemas.places import opened_by_all
from schemas.settings.section import Section


class SearchTextSettings(Section):
    """The text encoder that train_query_encoder trains on (search text, engaged item) pairs."""

    folder: str = ""
    query_kinds: tuple[str, ...] = ("search",)
    max_pairs_per_text: int = Field(default=0, ge=0)
    max_pairs_per_item: int = Field(default=0, ge=0)
    max_pair_weight: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    pooling: Literal["mean", "cls"] = "mean"
    max_tokens: int = Field(default=64, ge=4, le=512)
    trainable_layers: int = Field(default=-1, ge=-1)
    item_width: int = Field(default=512, ge=8)
    item_text_share: float = Field(default=0.25, ge=0, lt=1)
    form: Literal["sum", "mixed", "corrected", "full"] = "sum"
    distillation: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    batch_size: int = Field(default=256, ge=2)
    negative_count: int = Field(default=1_024, ge=1)
    hard_negatives: int = Field(default=0, ge=0)
    steps: int = Field(default=1_000, ge=1)
    warmup_steps: int = Field(default=50, ge=0)
    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    validate_every: int = Field(default=50, ge=0)
    patience: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _usable(self) -> SearchTextSettings:
        if not self.query_kinds or len(set(self.query_kinds)) != len(self.query_kinds):
            raise ValueError("query_kinds: name at least one kind of query that has texts, each once")
        if self.hard_negatives and self.form == "full":
            raise ValueError('hard_negatives: form = "full" has every item in its denominator; set it to 0')
        if self.folder:
            opened_by_all(self.folder)
        return self
