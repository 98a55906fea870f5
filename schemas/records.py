"""Run records: what a stage's last complete run read, wrote and counted, as JSON at `<warehouse>/_runs/<stage>.json`.

They are the contract between stages: each reads the tables of another at exactly the versions that its record names,
and compares what these were made with (schemas/contracts.py). A record holds its own sha256, and paths relative to the
warehouse, so that a copied or moved warehouse is whole. Read and written through pyarrow's file systems, so a warehouse
may lie on an object store.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from pyarrow import fs
from pydantic import TypeAdapter, ValidationError

from schemas.code_version import code_version
from schemas.errors import InputError
from schemas.stages import BESIDE, WHOLE, Stage, is_among
from schemas.storage import file_system, read_bytes, write_bytes
from schemas.warehouse import Warehouse

Metrics = TypeVar("Metrics")


@dataclass(frozen=True)
class TableVersion:
    """A table as a stage read or wrote it; version None = files without a Delta log.

    `checksum` says which files the version has (`storage.files_checksum`): of a Delta table that a stage read, and of
    what our own workers wrote.
    """

    table: str
    uri: str
    version: int | None
    rows: int
    checksum: str = field(default="", compare=False)


@dataclass(frozen=True)
class RunRecord(Generic[Metrics]):
    """One complete run of a stage.

    Attributes:
        stage: The stage's name.
        metrics: What the stage counted and found out.
        run_id: Hash of the work: equal for a rerun of the same.
        seconds: How long it took.
        inputs: What it read, by table name.
        outputs: What it wrote, by table name.
        rejected: `<source table>: <reason>` -> rows that went to a rejected_* table.
        settings: All settings, resolved.
        made_with: What its outputs mean something with, by name, such as `vocabulary`; see schemas/contracts.py. Empty
            in records of before.
        table_ids: The id that a Delta log gives its table, by input; one that was made anew has another. Of Parquet
            files a hash of their names, sizes and times.
        made_after: The stages whose records it read, and the sha256 of these records; None in records of before.
        code: The code that ran; see `code_version`.
        sha256: Of the record itself, as it was read; empty before it is written.
    """

    stage: str
    metrics: Metrics
    run_id: str = ""
    seconds: float = 0.0
    inputs: tuple[TableVersion, ...] = ()
    outputs: tuple[TableVersion, ...] = ()
    rejected: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, str] = field(default_factory=dict)
    table_ids: dict[str, str] = field(default_factory=dict)
    made_after: dict[str, str] | None = None
    code: str = field(default_factory=code_version)
    sha256: str = field(default="", compare=False)

    def input(self, table: str) -> TableVersion | None:
        """A table that the stage read; None where its record names no such table."""
        return next((read for read in self.inputs if read.table == table), None)

    def output(self, table: str) -> TableVersion:
        """A table that the stage wrote.

        Raises:
            InputError: it wrote no such table.
        """
        for written in self.outputs:
            if written.table == table:
                return written
        raise InputError(
            f"run record of {self.stage}",
            f"table {table}",
            expected=f"a table written by {self.stage}",
            found=", ".join(written.table for written in self.outputs),
            cure=f"The settings name a task that the run of {self.stage} did not have: run it again.",
        )


def by_table(versions: Sequence[TableVersion]) -> tuple[TableVersion, ...]:
    """In a fixed order: tables are read and written side by side."""
    return tuple(sorted(versions, key=lambda version: version.table))


def write_record(warehouse: Warehouse, record: RunRecord[Any]) -> None:
    """Replace the record of a stage; the last act of a complete run."""
    values = _with_uris(json.loads(json.dumps(asdict(record))), warehouse.relative)
    del values["sha256"]
    stored = {**values, "sha256": _checksum(values)}
    write_bytes(warehouse.record(record.stage), (json.dumps(stored, indent=2) + "\n").encode())


def read_record(warehouse: Warehouse, stage: Stage[Metrics]) -> RunRecord[Metrics]:
    """The record of a stage's last complete run.

    Raises:
        InputError: the stage has not completed in this warehouse, its record is damaged, or names another warehouse.
    """
    found = find_record(warehouse, stage)
    if found is None:
        expected = f"a complete run of {stage.name}, recorded at {warehouse.record(stage.name)}"
        raise _no_record(stage.name, expected, "no record")
    return found


def find_record(warehouse: Warehouse, stage: Stage[Metrics]) -> RunRecord[Metrics] | None:
    """The record of a stage's last complete run; None where it has not completed in this warehouse.

    Raises:
        InputError: the record is damaged, or names another warehouse.
    """
    uri = warehouse.record(stage.name)
    try:
        stored = json.loads(read_bytes(uri))
        sha256 = stored.get("sha256", "")
        values = _with_uris(_checked(warehouse, stage, stored), warehouse.resolved) | {"sha256": sha256}
        record: RunRecord[Metrics] = TypeAdapter(RunRecord[stage.metrics]).validate_python(values)  # type: ignore[name-defined]
    except FileNotFoundError:
        return None
    except InputError:  # of the URI, or of a copied warehouse
        raise
    except (ValueError, AttributeError, TypeError, ValidationError) as error:
        cause = " ".join(str(error).split())[:300]
        raise _no_record(
            stage.name, f"the record of a run of {stage.name} at {uri}", f"a damaged one: {cause}"
        ) from error
    return record


def all_records(warehouse: Warehouse) -> list[RunRecord[Any]]:
    """The records in the warehouse: of what made the input tables, if it left one, then of the stages in order.

    Raises:
        InputError: as of `read_record`.
    """
    system, folder = file_system(warehouse.records)
    found = system.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    # Copies that somebody has kept, such as train.old.json, are no records.
    names = sorted(match[1] for info in found if (match := re.fullmatch(r"(\w+)\.json", info.base_name)))
    known = {stage.name: stage for stage in (*WHOLE, *BESIDE)}
    before: list[Stage[Any]] = [Stage(name, (), (), dict) for name in names if name not in known]
    return [read_record(warehouse, stage) for stage in (*before, *known.values()) if stage.name in names]


def _checked(warehouse: Warehouse, stage: Stage[Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values of a record whose own sha256 says that they are whole; of a record of before, those it had then."""
    if checksum := values.pop("sha256", None):
        if checksum != _checksum(values):
            raise ValueError("its sha256 differs")
        return values
    # Written under this name before version 0.2.
    values["metrics"] = values.pop("figures", values.get("metrics", {}))
    if unknown := set(values) - _KEYS_WITHOUT_CHECKSUM:
        raise ValueError(f"no sha256, and unknown keys: {', '.join(sorted(unknown))}")
    written = [entry["uri"] for entry in values.get("outputs", []) if is_among(entry["table"], stage.writes)]
    for uri in (*written, *filter(None, map(values["metrics"].get, _MODEL_URIS))):
        if warehouse.relative(uri) == uri:
            expected = f"what {stage.name} wrote in this warehouse, {warehouse.uri}"
            found = f"{uri}: the record is of before paths were relative, in a warehouse that was copied or moved"
            raise _no_record(stage.name, expected, found)
    return values | {"code": ""}


_MODEL_URIS = ("model_uri", "validated_model_uri")
"""Metrics that are the place of a model."""

_KEYS_WITHOUT_CHECKSUM = {"stage", "metrics", "run_id", "seconds", "inputs", "outputs", "rejected", "settings"}
"""Of records written before they had a sha256."""


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _with_uris(values: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The values of a record with the places of its tables and its model changed."""
    changed = dict(values)
    for name in ("inputs", "outputs"):
        changed[name] = [{**entry, "uri": change(entry["uri"])} for entry in values.get(name, [])]
    models = {name: change(uri) for name in _MODEL_URIS if (uri := values["metrics"].get(name))}
    if models:
        changed["metrics"] = values["metrics"] | models
    return changed


def _no_record(stage: str, expected: str, found: str) -> InputError:
    cure = f"Run that stage first, such as `make pipeline SETTINGS=... FROM={stage}`."
    return InputError(f"run record of {stage}", "", expected=expected, found=found, cure=cure)
