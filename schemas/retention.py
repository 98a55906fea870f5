"""Why the files of a version are gone, and how long they would have had to be kept."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime, timezone

from schemas.errors import TableError
from schemas.stages import remade
from schemas.storage import changes_no_row, commits_of, version_files

_MS_PER_HOUR = 3_600_000


def require_files(table: str, uri: str, version: int) -> None:
    """Refuse a version of which files are gone, before anything is read of it.

    Files of an object store are not asked for one by one.

    Raises:
        TableError: a file is gone; says since when nobody was to need it, and which retention would have kept it.
    """
    files = (file.path for file in version_files(uri, version).files)
    if missing := first_gone(files):
        raise version_gone(table, uri, version, missing)


def first_gone(files: Iterable[str]) -> str | None:
    """The first of some local files that is not there; files of an object store are not asked for one by one."""
    return next((file for file in files if file.startswith("/") and not os.path.exists(file)), None)


def version_gone(table: str, uri: str, version: int, missing: str) -> TableError:
    """The error of a version of which a file is gone."""
    return TableError(
        table,
        "(files)",
        expected=f"the file {missing}, which version {version} of the table has",
        found=f"no such file: {why_gone(uri, version)}",
        cure=remade(table),
    )


def why_gone(uri: str, version: int) -> str:
    """What the table's log says of a version of which files are gone: when it was replaced, and when VACUUM ran."""
    history = commits_of(uri)
    later = sorted((one for one in history if int(one["version"]) > version), key=lambda one: int(one["version"]))
    replaced = next((int(one["timestamp"]) for one in later if not changes_no_row(one)), None)
    if replaced is None:
        return f"version {version} is the newest one, whose files no VACUUM removes: somebody deleted it"
    vacuums = [int(one["timestamp"]) for one in later if one["operation"].startswith("VACUUM")]
    vacuums = [when for when in vacuums if when >= replaced]
    if not vacuums:
        return f"version {version} was replaced {_said(replaced)}, and the log knows of no VACUUM since"
    hours = (vacuums[-1] - replaced) // _MS_PER_HOUR + 1
    return (
        f"version {version} was replaced {_said(replaced)}, and VACUUM has removed its files, last "
        f"{_said(vacuums[-1])}: a retention of {hours} hours would have kept it (maintenance.retention_hours; of "
        "another VACUUM, delta.deletedFileRetentionDuration)"
    )


def _said(timestamp_ms: int) -> str:
    return f"on {datetime.fromtimestamp(timestamp_ms / 1_000, timezone.utc):%Y-%m-%d %H:%M} UTC"
