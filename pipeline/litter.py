"""What runs have left in a warehouse and nothing reads any more: listed, with its size, and never removed from here."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from schemas.errors import InputError
from schemas.records import find_record
from schemas.settings import Settings
from schemas.stages import TRAIN

RETENTION_HOURS = 168
"""Delta's own seven days: what a younger version needs may still be read."""


@dataclass(frozen=True)
class Litter:
    """Some files of one kind.

    Attributes:
        what: The kind, and where it lies.
        paths: The files.
        cure: How to remove them, and when that is safe.
    """

    what: str
    paths: tuple[Path, ...]
    cure: str

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths if path.exists())


def find_litter(settings: Settings) -> list[Litter]:
    """Everything of that kind in a warehouse on this machine; nothing is said of an object store.

    Checkpoints of unfinished runs count: a rerun of the same training goes on from them, another never will.
    """
    if not settings.layout.is_local or not Path(settings.layout.place()).is_dir():
        return []
    root = Path(settings.layout.place())
    vacuum = "VACUUM each table, with the default retention, after a complete run (docs/troubleshooting.md)"
    found = [
        Litter("checkpoints of unfinished trainings", _files(root / "checkpoints"), f"rm -r {root}/checkpoints/<run>"),
        Litter("models that no record names", _old_models(settings), f"rm -r {root}/models/<model_id>"),
        Litter("half-written files", tuple(root.rglob("*.staged")), "rm, when no run writes the warehouse"),
        Litter("files of replaced versions and of failed runs", _vacuumed(root), vacuum),
    ]
    return [one for one in found if one.paths]


def _files(*folders: Path) -> tuple[Path, ...]:
    return tuple(path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())


def _old_models(settings: Settings) -> tuple[Path, ...]:
    try:
        trained = find_record(settings.layout, TRAIN)
    except InputError:  # nobody knows which model is in use
        return ()
    uris = (trained.metrics.model_uri, trained.metrics.validated_model_uri) if trained else ()
    named = [Path(uri).name for uri in uris]
    models = Path(settings.layout.models)
    folders: Iterable[Path] = models.iterdir() if trained and models.is_dir() else ()
    return _files(*sorted(folder for folder in folders if folder.name not in named))


def _vacuumed(root: Path) -> tuple[Path, ...]:
    """What VACUUM would remove; a dry run."""
    paths: list[Path] = []
    for log in sorted(root.glob("*/_delta_log")):
        with suppress(DeltaError, OSError):
            names = DeltaTable(str(log.parent)).vacuum(RETENTION_HOURS, dry_run=True, full=True)
            paths += [log.parent / name for name in names]
    return tuple(paths)
