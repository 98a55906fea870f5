"""Run records: what a stage's last complete run read, wrote and counted, as JSON at `<warehouse>/_runs/<stage>.json`.

They are the contract between stages: each reads the tables of another at exactly the versions that its record names.
Read and written through pyarrow's file systems, so a warehouse may lie on an object store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from schemas.errors import InputError
from schemas.stages import Stage
from schemas.storage import read_bytes, write_bytes
from schemas.warehouse import Warehouse

Metrics = TypeVar("Metrics")


@dataclass(frozen=True)
class TableVersion:
    """A table as a stage read or wrote it; version None = files without a Delta log."""

    table: str
    uri: str
    version: int | None
    rows: int


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
    """

    stage: str
    metrics: Metrics
    run_id: str = ""
    seconds: float = 0.0
    inputs: tuple[TableVersion, ...] = ()
    outputs: tuple[TableVersion, ...] = ()
    rejected: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

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
    write_bytes(warehouse.record(record.stage), (json.dumps(asdict(record), indent=2) + "\n").encode())


def read_record(warehouse: Warehouse, stage: Stage[Metrics]) -> RunRecord[Metrics]:
    """The record of a stage's last complete run.

    Raises:
        InputError: the stage has not completed in this warehouse, or its record is damaged.
    """
    uri = warehouse.record(stage.name)
    try:
        values = json.loads(read_bytes(uri))
        # Written under this name before version 0.2.
        values["metrics"] = values.pop("figures", values.get("metrics", {}))
        record: RunRecord[Metrics] = TypeAdapter(RunRecord[stage.metrics]).validate_python(values)  # type: ignore[name-defined]
    except FileNotFoundError as error:
        raise _no_record(stage.name, f"a complete run of {stage.name}, recorded at {uri}", "no record") from error
    except InputError:  # of the URI
        raise
    except (ValueError, AttributeError, ValidationError) as error:
        cause = " ".join(str(error).split())[:300]
        raise _no_record(
            stage.name, f"the record of a run of {stage.name} at {uri}", f"a damaged one: {cause}"
        ) from error
    return record


def _no_record(stage: str, expected: str, found: str) -> InputError:
    cure = f"Run that stage first, such as `make pipeline SETTINGS=... FROM={stage}`."
    return InputError(f"run record of {stage}", "", expected=expected, found=found, cure=cure)
