"""Whether a stage has done its work before: run twice is run once.

A scheduler retries, and a person runs a whole pipeline again for the sake of its last stage. A stage whose settings,
code, inputs and makers are those that its record names, and whose outputs are still there, has nothing to do.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from deltalake.exceptions import DeltaError
from pyarrow import fs

from schemas.code_version import code_version
from schemas.errors import InputError
from schemas.input_tables import find_input
from schemas.metrics import TrainMetrics
from schemas.records import RunRecord, TableVersion, find_record
from schemas.settings import Settings
from schemas.stages import EMBED_IMAGES, EMBED_QUERIES, Stage, maker_of, stage_named
from schemas.storage import file_system, is_file, is_unchanged_since, stamp_of


@dataclass
class AlreadyDone(Exception):  # noqa: N818 (no error)
    """Raised by a stage that has nothing to do; `record` is that of the run that did it."""

    record: RunRecord[Any]

    def __str__(self) -> str:
        return f"already done by {self.record.run_id}: nothing has changed since (rerun = true does it again)"


def stop_if_done(settings: Settings, stage: Stage[Any]) -> None:
    """Leave a stage that would only repeat what it did last.

    Raises:
        AlreadyDone: its record is of the same settings, code, inputs and makers, and its outputs are still there.
    """
    if settings.rerun:
        return
    try:
        last = find_record(settings.layout, stage)
    except InputError:  # whoever cannot be read is made anew
        return
    if last is not None and _is_same_work(settings, stage, last) and _is_there(last):
        raise AlreadyDone(last)


def _is_same_work(settings: Settings, stage: Stage[Any], last: RunRecord[Any]) -> bool:
    now = settings.model_dump(mode="json")
    if _but_rerun(last.settings) != _but_rerun(now) or last.code != code_version() or last.made_after is None:
        return False
    if any(last.table_ids.get(key) != value for key, value in files_besides_tables(settings, stage).items()):
        return False
    return all(
        (record := find_record(settings.layout, stage_named(name))) is not None and record.sha256 == sha256
        for name, sha256 in last.made_after.items()
    ) and all(_is_unchanged(read, last, stage, settings) for read in _supplied(last, settings))


def _supplied(last: RunRecord[Any], settings: Settings) -> list[TableVersion]:
    """What a run read of the shop's own tables."""
    return [read for read in last.inputs if maker_of(read.table, settings.stages) is None]


def _but_rerun(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "rerun"}


def _is_unchanged(read: TableVersion, last: RunRecord[Any], stage: Stage[Any], settings: Settings) -> bool:
    """Whether a table of the shop's is what the stage read; where nobody can tell, it is not."""
    known = last.table_ids.get(read.table, "")
    table = next(table for table in stage.reads if table.name == read.table)
    with suppress(InputError):
        if settings.input_name(read.table) and settings.table_uri(read.table) != read.uri:
            return False  # the name is that of another table now
        found = find_input(read.uri, table)
        return bool(known) and (found.table_id, found.version) == (known, read.version)
    return False


def _is_there(last: RunRecord[Any]) -> bool:
    """Whether each output is as it was written, and a trained model lies there."""
    if isinstance(last.metrics, TrainMetrics) and not is_file(f"{last.metrics.model_uri}/model.json"):
        return False
    with suppress(DeltaError, OSError):
        return all(_is_newest(written) for written in last.outputs)
    return False


def _is_newest(written: TableVersion) -> bool:
    if written.version is None:  # a candidate: whoever publishes or replaces it writes the record anew
        return True
    return is_unchanged_since(written.uri, written.version)


def files_besides_tables(settings: Settings, stage: Stage[Any]) -> dict[str, str]:
    """What else a stage reads that the shop supplies, by the settings' key: a hash of the files' sizes and times."""
    key, folder = "query_encoder.folder", settings.query_encoder.folder
    if stage is EMBED_IMAGES:
        key, folder = "pictures.folder", settings.pictures.folder
    if stage not in (EMBED_QUERIES, EMBED_IMAGES) or not folder:
        return {}
    system, path = file_system(folder)
    found = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    lines = sorted(f"{info.path} {stamp_of(info)}" for info in found if info.type == fs.FileType.File)
    return {key: hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]}
