"""Run records: the JSON files at `<warehouse>/_runs/` in which a stage says which table versions it read and wrote.

They are the contract between stages: the trainer reads exactly the versions that the record of
build_training_tables names. Read and written through pyarrow's file systems, so a warehouse may lie on an object store.
"""

from __future__ import annotations

import json
from typing import Any

from schemas.errors import TableError
from schemas.storage import read_bytes, write_bytes


def record_uri(warehouse: str, stage: str) -> str:
    """Where the record of a stage's last complete run lies."""
    return f"{warehouse.rstrip('/')}/_runs/{stage}.json"


def write_record(warehouse: str, stage: str, record: dict[str, Any]) -> None:
    """Replace the record of a stage; the last act of a complete run."""
    write_bytes(record_uri(warehouse, stage), (json.dumps(record, indent=2) + "\n").encode())


def read_record(warehouse: str, stage: str) -> dict[str, Any]:
    """The record of a stage's last complete run.

    Raises:
        TableError: the stage has not completed in this warehouse.
    """
    uri = record_uri(warehouse, stage)
    try:
        record: dict[str, Any] = json.loads(read_bytes(uri))
    except FileNotFoundError as error:
        raise TableError(
            stage,
            "(run record)",
            expected=f"a complete run of {stage}, recorded at {uri}",
            found="no record",
            cure=f"Run that stage first, such as `make pipeline SETTINGS=... FROM={stage}`.",
        ) from error
    return record


def recorded_output(record: dict[str, Any], table: str) -> dict[str, Any]:
    """The entry {table, uri, version, rows} of one table that a stage wrote.

    Raises:
        TableError: the stage wrote no such table.
    """
    for entry in record["outputs"]:
        if entry["table"] == table:
            return dict(entry)
    raise TableError(
        table,
        "(run record)",
        expected=f"a table written by {record['stage']}",
        found=", ".join(entry["table"] for entry in record["outputs"]),
        cure=f"The settings name a task that the run of {record['stage']} did not have: run it again.",
    )
