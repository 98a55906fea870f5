"""A table pinned to the files of one version, with their row counts: what the trainer and the scorer start from."""

from __future__ import annotations

from dataclasses import dataclass

from deltalake.exceptions import TableNotFoundError

from schemas.errors import TableError
from schemas.storage import version_files


@dataclass(frozen=True)
class TableFiles:
    """The files of one version of a Delta table."""

    table: str
    version: int
    uris: tuple[str, ...]
    rows: tuple[int, ...]

    @property
    def row_count(self) -> int:
        """Rows of the whole table."""
        return sum(self.rows)


def pin_files(table: str, uri: str, version: int | None = None) -> TableFiles:
    """Resolve one version of a Delta table, the newest by default, to its files.

    Raises:
        TableError: there is no such table, it is empty, has deletion vectors, or its log names no row counts.
    """
    try:
        found = version_files(uri, version)
    except TableNotFoundError as error:
        raise unreadable(table, uri, "a Delta table", "none", "Run the job that writes it.") from error
    if "deletionVectors" in found.reader_features:
        raise unreadable(table, uri, "no deletion vectors", "a table that has them", "Rewrite it without them.")
    if any(file.rows is None for file in found.files):
        raise unreadable(table, uri, "row counts in the Delta log", "files without", "Write it with Delta statistics.")
    kept = [(file.uri, file.rows) for file in found.files if file.rows]
    if not kept:
        raise unreadable(table, uri, "at least one row", "an empty table", "Check [dates] and [[tasks]].")
    return TableFiles(table, found.version, tuple(name for name, _ in kept), tuple(rows for _, rows in kept))


def unreadable(table: str, uri: str, expected: str, found: str, cure: str) -> TableError:
    """The error of a table whose files cannot be read as they should."""
    return TableError(table, "(files)", expected=expected, found=f"{found} {uri}".strip(), cure=cure)
