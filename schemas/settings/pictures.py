"""Pictures of items that the pipeline embeds itself (jobs/embed_images.py): by which model, from where, how large."""

from __future__ import annotations

from pydantic import Field

from schemas.settings.section import Section


class PictureSettings(Section):
    """The frozen picture encoder, and what pictures may be; without a folder item_images is an input, as ever."""

    folder: str = ""
    roots: tuple[str, ...] = ()
    max_pixels: int = Field(default=50_000_000, ge=1)
    max_bytes: int = Field(default=33_554_432, ge=1, le=1_073_741_824)
    timeout_seconds: float = Field(default=20.0, gt=0)
    budget_seconds: float = Field(default=600.0, gt=0)
    commit_every: int = Field(default=20_000, ge=1)
