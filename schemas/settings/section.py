"""What every section of the settings file is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the TOML file: unknown keys and silent type changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
