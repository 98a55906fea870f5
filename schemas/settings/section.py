"""What every section of the settings file is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from schemas.plain_text import holds_secret


def without_secret(value: Any) -> Any:
    """The value of a setting. Settings are kept in run records, and shown: no place for a key.

    Raises:
        ValueError: it is a URI that holds a key or a password.
    """
    if isinstance(value, str) and holds_secret(value):
        raise ValueError(
            "holds a key or a password; take it out, and give it where Spark, pyarrow and deltalake look for "
            "credentials (environment, instance profile, core-site.xml)"
        )
    return value


class Section(BaseModel):
    """A table of the TOML file: unknown keys and silent type changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    _no_secret = field_validator("*")(without_secret)
