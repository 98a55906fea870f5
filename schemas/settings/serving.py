"""What happens with a trained model: scoring and evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.settings.section import Section


class ScoreSettings(Section):
    """How the catalog is scored."""

    rows_per_batch: int = Field(default=256, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = "float32"


class EvaluateSettings(Section):
    """What is measured on the held-out window."""

    k: int = Field(default=10, ge=1)
    max_pairs_per_task: int = Field(default=80_000, ge=1)
    max_distractors: int = Field(default=1_000_000, ge=1)
