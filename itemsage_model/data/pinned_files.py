"""A table pinned to the files of one version, with their row counts: what the trainer and the scorer start from."""

from __future__ import annotations

from dataclasses import dataclass

from deltalake.exceptions import TableNotFoundError

from schemas.elements import IMAGES
from schemas.errors import InputError, TableError
from schemas.metrics import ItemMetrics
from schemas.stages import rerun
from schemas.storage import version_files
from schemas.tables import ITEM_FEATURES


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
        InputError: a file of its log is damaged or gone.
    """
    try:
        found = version_files(uri, version)
    except InputError as error:
        cure = f"Restore it, or move {uri} away and make the table anew: {rerun(table)}."
        raise InputError(f"table {table}", uri, expected=error.expected, found=error.found, cure=cure) from error
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


def require_image_length(made: ItemMetrics, length: int) -> None:
    """Refuse item_features whose cells hold image vectors of another length than a model reads: cells look alike.

    Raises:
        TableError: the lengths differ.
    """
    if made.image_length != length:
        raise TableError(
            ITEM_FEATURES.name,
            IMAGES.values.name,
            expected=f"image vectors of {length} numbers (model.image_length)",
            found=f"vectors of {made.image_length}, as of the last run of build_item_features",
            cure="Run build_item_features, build_training_tables and train with the length that you mean.",
        )


def unreadable(table: str, uri: str, expected: str, found: str, cure: str) -> TableError:
    """The error of a table whose files cannot be read as they should."""
    return TableError(table, "(files)", expected=expected, found=f"{found} {uri}".strip(), cure=cure)
