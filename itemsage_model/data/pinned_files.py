"""A table pinned to the files of one version, with their row counts: what the trainer and the scorer start from."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from deltalake.exceptions import TableNotFoundError

from itemsage_model.data.parquet_files import row_group_rows
from schemas.elements import IMAGES
from schemas.errors import InputError, TableError
from schemas.metrics import ItemMetrics
from schemas.records import TableVersion
from schemas.retention import first_gone, version_gone
from schemas.stages import remade, rerun
from schemas.storage import version_files
from schemas.tables import ITEM_FEATURES


@dataclass(frozen=True)
class TableFiles:
    """The files of one version of a Delta table; `checksum` says which they are, see `storage.files_checksum`."""

    table: str
    version: int
    uris: tuple[str, ...]
    rows: tuple[int, ...]
    checksum: str = ""

    @property
    def row_count(self) -> int:
        """Rows of the whole table."""
        return sum(self.rows)


@dataclass(frozen=True)
class FilePiece:
    """A file, or a run of its row groups.

    Attributes:
        uri: The file.
        row_groups: Their numbers; None = the whole file.
        rows: How many they hold.
    """

    uri: str
    row_groups: tuple[int, ...] | None
    rows: int


def pieces_of(files: TableFiles, rows: int) -> list[FilePiece]:
    """The files of a table, those of more than twice `rows` rows cut into runs of row groups of at least so many.

    Where a file is cut follows from the file alone, so that whoever reads piece by piece reads the same batches.

    Raises:
        TableError: a file is damaged or gone.
    """
    pieces = []
    for uri, count in zip(files.uris, files.rows, strict=True):
        if count <= 2 * rows:
            pieces.append(FilePiece(uri, None, count))
            continue
        run: list[int] = []
        held = 0
        sizes = row_group_rows(uri, files.table)
        for number, size in enumerate(sizes):
            run.append(number)
            held += size
            if held >= rows or number + 1 == len(sizes):
                pieces.append(FilePiece(uri, tuple(run), held))
                run, held = [], 0
    return pieces


def deal(pieces: Sequence[FilePiece], tasks: int) -> list[list[FilePiece]]:
    """Deal pieces to at most `tasks` tasks, none of them empty: the longest first, each to whom has the fewest rows."""
    dealt: list[list[FilePiece]] = [[] for _ in range(min(tasks, len(pieces)))]
    totals = [(0, task) for task in range(len(dealt))]
    for piece in sorted(pieces, key=lambda piece: (-piece.rows, piece.uri, piece.row_groups or ())):
        rows, task = heapq.heappop(totals)
        dealt[task].append(piece)
        heapq.heappush(totals, (rows + piece.rows, task))
    return dealt


def pin_version(version: TableVersion, *, may_be_empty: bool = False) -> TableFiles:
    """Resolve the version of a table that a run record names to its files, and see that they are the recorded ones.

    Raises:
        TableError: as of `pin_files`; or the version has other files, as of a table that was made anew since.
    """
    files = pin_files(version.table, version.uri, version.version, may_be_empty=may_be_empty)
    if version.checksum and files.checksum != version.checksum:
        expected = f"the files that the run record names (checksum {version.checksum})"
        found = f"a version {version.version} of other files (checksum {files.checksum}) at"
        raise unreadable(version.table, version.uri, expected, found, remade(version.table))
    return files


def pin_files(table: str, uri: str, version: int | None = None, *, may_be_empty: bool = False) -> TableFiles:
    """Resolve one version of a Delta table, the newest by default, to its files.

    Raises:
        TableError: there is no such table, it is empty and may not be, has deletion vectors or column mapping, its log
            names no row counts, or files of the version are gone.
        InputError: a file of its log is damaged or gone.
    """
    try:
        found = version_files(uri, version)
    except InputError as error:
        cure = f"Restore it, or move {uri} away and make the table anew: {rerun(table)}."
        raise InputError(f"table {table}", uri, expected=error.expected, found=error.found, cure=cure) from error
    except TableNotFoundError as error:
        raise unreadable(table, uri, "a Delta table", "none at", "Run the job that writes it.") from error
    if unknown := found.reader_features & {"deletionVectors", "columnMapping"}:
        what = {"deletionVectors": "deletion vectors", "columnMapping": "column mapping"}
        names = " and ".join(sorted(what[name] for name in unknown))
        cure = f"Somebody gave it them. Move it away and make the table anew: {rerun(table)}."
        raise unreadable(table, uri, "a table of plain Parquet files", f"one with {names} at", cure)
    if any(file.rows is None for file in found.files):
        raise unreadable(table, uri, "row counts in the Delta log", "files without", "Write it with Delta statistics.")
    kept = [(file.uri, file.rows) for file in found.files if file.rows]
    if not kept and not may_be_empty:
        raise unreadable(table, uri, "at least one row", "an empty table", "Check [dates] and [[tasks]].")
    if missing := first_gone([file.path for file in found.files]):
        raise version_gone(table, uri, found.version, missing)
    uris, rows = tuple(name for name, _ in kept), tuple(rows for _, rows in kept)
    return TableFiles(table, found.version, uris, rows, found.checksum)


def some_files(files: TableFiles, rows: int, seed: int) -> TableFiles:
    """Files of a table, drawn at random, that together hold at least so many rows; all where it has no more."""
    if files.row_count <= rows:
        return files
    order = np.random.default_rng(seed).permutation(len(files.uris))
    held = np.cumsum([files.rows[i] for i in order])
    chosen = sorted(order[: int(np.searchsorted(held, rows)) + 1])
    return replace(files, uris=tuple(files.uris[i] for i in chosen), rows=tuple(files.rows[i] for i in chosen))


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
