"""What runs have left in a warehouse and nothing reads any more: found, with its size, and removed by who asks for it.

No version that a run record names loses a file, nor a candidate. Of tables, that is what Delta's own VACUUM lists,
which is told these versions, but for deletion vectors; of other files, only those that no writer has touched for as
long count.
"""

from __future__ import annotations

import json
import time
from base64 import b85decode
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pyarrow import fs

from schemas.candidate import read_candidate
from schemas.errors import InputError
from schemas.metrics import Removed
from schemas.published import published_versions
from schemas.records import all_records, find_record
from schemas.settings import Settings
from schemas.stages import EMBED_IMAGES, TRAIN, TRAIN_GRAPH, TRAIN_PICTURES, TRAIN_QUERY_ENCODER, WHOLE, maker_of
from schemas.storage import file_system, is_file
from schemas.tables import RUNS
from schemas.warehouse import Warehouse

RETENTION_HOURS = 168
"""Delta's own seven days: what a younger version needs may still be read."""

_PLANNED = ("checkpoints", "models", "_runs")
"""Folders of schemas/warehouse.py."""


@dataclass(frozen=True)
class Litter:
    """Some files of one kind.

    Attributes:
        what: The kind, and where it lies.
        paths: The files.
        cure: How to remove them by hand, and when that is safe.
    """

    what: str
    paths: tuple[Path, ...]
    cure: str

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths if path.exists())

    def remove(self) -> None:
        """Remove the files, and the folders that are empty then, but for those of the warehouse's own plan."""
        for path in self.paths:
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder.name in _PLANNED or any(folder.iterdir()):
                    break
                folder.rmdir()


def find_litter(settings: Settings, hours: int = 0) -> list[Litter]:
    """Everything of that kind outside the tables of a warehouse on this machine; of an object store nothing is said.

    Checkpoints of unfinished runs count: a rerun of the same training goes on from them, another never will.

    Args:
        settings: The settings.
        hours: How long nobody has written the files; 0 = however young they are.
    """
    if not settings.layout.is_local or not Path(settings.layout.place()).is_dir():
        return []
    root, before = Path(settings.layout.place()), time.time() - 3_600 * hours
    found = [
        Litter("checkpoints of unfinished trainings", _files(root / "checkpoints"), f"rm -r {root}/checkpoints/<run>"),
        Litter("models that no record names", _old_models(settings), f"rm -r {root}/models/<model_id>"),
        Litter("half-written files", tuple(root.rglob("*.staged")), "rm, when no run writes the warehouse"),
    ]
    old = [Litter(one.what, tuple(p for p in one.paths if p.stat().st_mtime <= before), one.cure) for one in found]
    return [one for one in old if one.paths]


def table_folders(warehouse: Warehouse) -> list[str]:
    """URIs of the Delta tables in a warehouse that the pipeline writes; the shop's own are the shop's."""
    system, root = file_system(warehouse.place())
    folders = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
    names = sorted(info.base_name for info in folders if info.type == fs.FileType.Directory)
    # item_images is the shop's, unless embed_images has made it here.
    stages = WHOLE if is_file(warehouse.record(EMBED_IMAGES.name)) else ()
    ours = [name for name in names if maker_of(name, stages) or name == RUNS.name]
    return [uri for name in ours if DeltaTable.is_deltatable(uri := warehouse.table(name))]


def unread_files(warehouse: Warehouse, uri: str, hours: int = RETENTION_HOURS, *, remove: bool = False) -> Removed:
    """The files in a table's folder that no version needs which is younger, or which a run record names.

    Args:
        warehouse: Whose records name versions.
        uri: The table.
        hours: How long files are kept that nothing reads any more; at least seven days.
        remove: Whether to remove them.

    Raises:
        InputError: a record is damaged, so that nobody knows which versions are in use.
    """
    named = [*(entry for record in all_records(warehouse) for entry in (*record.outputs, *record.inputs))]
    kept = sorted({entry.version for entry in named if entry.uri == uri and entry.version is not None})
    table = DeltaTable(uri)
    # Those that no commit names, too; delta-rs takes deletion vectors for such, and a candidate's files are.
    names = table.vacuum(hours, dry_run=True, full=True, keep_versions=kept)
    system, root = file_system(uri)
    spared = _candidates_files(warehouse, uri)
    if "deletionVectors" in (table.protocol().reader_features or []):
        spared |= _vector_files(system, f"{root}/_delta_log")
    # The log names files of long ago, too, which are gone.
    listed = system.get_file_info([f"{root}/{name}" for name in names if unquote(name) not in spared])
    infos = [one for one in listed if one.type == fs.FileType.File]
    if remove:
        for info in infos:
            system.delete_file(info.path)
    return Removed(len(infos), sum(info.size or 0 for info in infos))


def _candidates_files(warehouse: Warehouse, uri: str) -> set[str]:
    """The files, within a table's folder, of vectors that are scored and not live yet.

    Raises:
        InputError: as of `read_candidate`.
    """
    if not is_file(warehouse.candidate):
        return set()
    candidate = read_candidate(warehouse)
    return {str(file["path"]) for part in candidate.parts if part.uri == uri for file in part.files}


def _vector_files(system: fs.FileSystem, log: str) -> set[str]:
    """The files of deletion vectors, within a table's folder, that its log names for whatever version."""
    actions: list[dict[str, Any]] = []
    for info in system.get_file_info(fs.FileSelector(log)):
        if info.base_name.endswith(".json"):
            with system.open_input_file(info.path) as file:
                actions += map(json.loads, file.read().splitlines())
        elif info.base_name.endswith(".parquet"):
            actions += pq.read_table(info.path, filesystem=system).to_pylist()
    entries = [action.get(kind) or {} for action in actions for kind in ("add", "remove")]
    vectors = [entry.get("deletionVector") or {} for entry in entries]
    return {_vector_file(vector["pathOrInlineDv"]) for vector in vectors if vector.get("storageType") == "u"}


_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"


def _vector_file(name: str) -> str:
    """The file of a deletion vector, as Delta's log calls it: a folder or none, and a UUID of 20 characters in Z85."""
    number = UUID(bytes=b85decode(name[-20:].translate(str.maketrans(_Z85, _B85))))
    return f"{name[:-20]}/deletion_vector_{number}.bin".lstrip("/")


def unread_in_tables(settings: Settings) -> Removed:
    """The same of all tables, as far as they can be read."""
    found = [Removed(0, 0)]
    for uri in table_folders(settings.layout):
        with suppress(DeltaError, OSError, InputError):
            found.append(unread_files(settings.layout, uri))
    return Removed(sum(one.files for one in found), sum(one.bytes for one in found))


def _files(*folders: Path) -> tuple[Path, ...]:
    return tuple(path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())


def _published_models(settings: Settings) -> set[str]:
    """The models of what is live and of the versions that a rollback may bring back."""
    known = published_versions(settings.layout)
    replaced = [time.time(), *(one.committed.timestamp() for one in known[:-1])]
    since = time.time() - 3_600 * settings.maintenance.retention_hours
    return {one.metrics.model_id for one, until in zip(known, replaced, strict=False) if until > since}


def _old_models(settings: Settings) -> tuple[Path, ...]:
    """Files of models that nobody can ask for: neither the last one trained nor that of a version that may be live."""
    try:
        trained, published = find_record(settings.layout, TRAIN), _published_models(settings)
        beside = (TRAIN_QUERY_ENCODER, TRAIN_GRAPH, TRAIN_PICTURES)
        others = [find_record(settings.layout, stage) for stage in beside]
    except (InputError, DeltaError):  # nobody knows which model is in use
        return ()
    last = [record.metrics for record in (trained, *others) if record]
    uris = [uri for metrics in last for uri in (metrics.model_uri, metrics.validated_model_uri)]
    named = {Path(uri).name for uri in uris} | published
    models = Path(settings.layout.models)
    folders: Iterable[Path] = models.iterdir() if trained and models.is_dir() else ()
    return _files(*sorted(folder for folder in folders if folder.name not in named))
