"""The files of one version of a Delta table, with their row counts: what every reader of ours starts from."""

from __future__ import annotations

from dataclasses import dataclass

from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from schemas.errors import TableError


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
        delta = DeltaTable(uri, version=version)
    except TableNotFoundError as error:
        raise unreadable(table, uri, "a Delta table", "none", "Run the job that writes it.") from error
    if "deletionVectors" in (delta.protocol().reader_features or []):
        raise unreadable(table, uri, "no deletion vectors", "a table that has them", "Rewrite it without them.")
    actions = delta.get_add_actions(flatten=True)
    columns = {name: actions.column(name).to_pylist() for name in ("path", "num_records")}
    by_path = dict(zip(columns["path"], columns["num_records"], strict=True))
    if any(count is None for count in by_path.values()):
        raise unreadable(table, uri, "row counts in the Delta log", "files without", "Write it with Delta statistics.")
    uris = dict(zip(sorted(by_path), sorted(delta.file_uris()), strict=True))
    kept = sorted(name for name, count in by_path.items() if count)
    if not kept:
        raise unreadable(table, uri, "at least one row", "an empty table", "Check [dates] and [[tasks]].")
    urls = tuple(uris[name] if "://" in uris[name] else f"file://{uris[name]}" for name in kept)
    return TableFiles(table, delta.version(), urls, tuple(int(by_path[name]) for name in kept))


def unreadable(table: str, uri: str, expected: str, found: str, cure: str) -> TableError:
    """The error of a table whose files cannot be read as they should."""
    return TableError(table, "(files)", expected=expected, found=f"{found} {uri}".strip(), cure=cure)
