"""How long one part of the pipeline waits for another before it ends with an error that names what did not come."""

from __future__ import annotations

from pydantic import Field

from schemas.settings.section import Section


class DeadlineSettings(Section):
    """Seconds; a run whose deadline passes ends with exit code 1, as a retry may help."""

    read_seconds: int = Field(default=240, ge=1)
    rank_seconds: int = Field(default=300, ge=1, le=3_600)
    task_seconds: int = Field(default=3_600, ge=0)
