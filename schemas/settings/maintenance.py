"""What jobs/maintain_tables.py removes, and from which age on."""

from __future__ import annotations

from pydantic import Field

from schemas.settings.section import Section


class MaintenanceSettings(Section):
    """How long what nothing reads any more is kept; nothing that a run record names is ever removed."""

    retention_hours: int = Field(default=168, ge=168)
    dry_run: bool = True
