"""What every section of the settings file is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from schemas.plain_text import holds_secret


class Section(BaseModel):
    """A table of the TOML file: unknown keys and silent type changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _no_secret(cls, value: Any) -> Any:
        """Settings are kept in run records, and shown: no place for a key."""
        if isinstance(value, str) and holds_secret(value):
            raise ValueError(
                "holds a key or a password; take it out, and give it where Spark, pyarrow and deltalake look for "
                "credentials (environment, instance profile, core-site.xml)"
            )
        return value
