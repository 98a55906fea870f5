"""How stages ended, said to machines: a row of the table `runs` for each, and JSON as the last line of a command.

People read the lines before. A scheduler acts on the exit code, and reads the last line where it wants to know more; a
monitoring system reads `runs`, or what `itemsage metrics` makes of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from schemas.arrow import arrow_schema
from schemas.code_version import code_version
from schemas.command_line import cause_and_code, exit_code_of_errors
from schemas.errors import EXIT_FAILED, InputError
from schemas.lease import VARIABLE
from schemas.records import RunRecord, find_record
from schemas.repeats import AlreadyDone
from schemas.settings import Settings
from schemas.stages import Stage
from schemas.storage import file_system, read_columns
from schemas.tables import RUNS

Status = Literal["done", "already_done", "failed"]


@dataclass(frozen=True)
class Result:
    """How one run of a stage ended.

    Attributes:
        stage: The stage's name.
        status: done; already_done = nothing had changed since it was done; failed.
        exit_code: 0, or why it failed; see schemas/errors.py.
        as_of: The logical date, ISO.
        run_id: Of its record; empty where it failed.
        started_ts: Seconds since 1970.
        seconds: How long it took.
        rows_written: Rows of all tables that it wrote, or had written.
        rows_rejected: Of them, those in rejected_* tables.
        versions: Table -> the version that it committed, or had committed.
        error: Its cause in one line; empty where it is none.
    """

    stage: str
    status: Status
    exit_code: int
    as_of: str
    run_id: str
    started_ts: float
    seconds: float
    rows_written: int
    rows_rejected: int
    versions: dict[str, int | None]
    error: str


_ended: list[Result] = []
"""In this process, in order."""


@contextmanager
def noted(settings: Settings, stage: Stage[Any]) -> Iterator[None]:
    """Run a stage in the block; how it ends is noted, whatever it is. One that is already done says so and is over."""
    started = round(time.time(), 3)
    try:
        yield
    except AlreadyDone as found:
        print(f"  {found}", flush=True)
        note(settings, _of_record(found.record, "already_done", started))
    except BaseException as error:
        cause, code = cause_and_code(error)
        seconds = round(time.time() - started, 2)
        as_of = str(settings.dates.as_of)
        note(settings, Result(stage.name, "failed", code, as_of, "", started, seconds, 0, 0, {}, cause))
        raise
    else:
        record = find_record(settings.layout, stage)
        assert record is not None, stage.name
        note(settings, _of_record(record, "done", started))


def _of_record(record: RunRecord[Any], status: Status, started: float) -> Result:
    return Result(
        record.stage,
        status,
        0,
        str(record.settings.get("dates", {}).get("as_of", "")),
        record.run_id,
        started,
        round(time.time() - started, 2),
        sum(written.rows for written in record.outputs),
        sum(record.rejected.values()),
        {written.table: written.version for written in record.outputs},
        "",
    )


def note(settings: Settings, result: Result) -> None:
    """Append a row to `runs`; that a run cannot be noted is said, and changes nothing of how it ended."""
    _ended.append(result)
    values = asdict(result) | {
        "started_ts": datetime.fromtimestamp(result.started_ts, timezone.utc),
        "versions": json.dumps(result.versions, sort_keys=True),
        "code": code_version(),
    }
    uri = settings.table_uri(RUNS.name)
    try:
        file_system(uri)
        rows = pa.Table.from_pylist([values], schema=arrow_schema(RUNS))
        write_deltalake(uri, rows, mode="append", configuration={"delta.enableDeletionVectors": "false"})
    except (DeltaError, OSError, InputError) as error:
        print(f"warning: the table {RUNS.name} does not know of this run: {error}", file=sys.stderr, flush=True)


def runs_since(settings: Settings, started: float) -> list[Result]:
    """The runs of the warehouse that began at an instant or later, in order; none where no table is."""
    if not DeltaTable.is_deltatable(settings.table_uri(RUNS.name)):
        return []
    rows = read_columns(settings.table_uri(RUNS.name), None, list(RUNS.column_names))
    began = pa.scalar(datetime.fromtimestamp(started - 0.001, timezone.utc), pa.timestamp("us", "UTC"))
    chosen = rows.filter(pc.greater_equal(rows["started_ts"], began)).sort_by("started_ts").drop_columns(["code"])
    return [
        Result(**row | {"started_ts": round(row["started_ts"].timestamp(), 3), "versions": json.loads(row["versions"])})
        for row in chosen.to_pylist()
    ]


@contextmanager
def ending_in_json(work: str, others: list[Result] | None = None) -> Iterator[None]:
    """Run a command in the block; its errors become exit codes, and its last line is one JSON object.

    A command that a whole run has started leaves the last line to that.

    Args:
        work: What the command is called.
        others: Where the block puts the results of stages that other processes ran; None = those of this process.
    """
    is_within = VARIABLE in os.environ
    started, before, code = time.monotonic(), len(_ended), 0
    try:
        with exit_code_of_errors():
            yield
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_FAILED if end.code else 0
        raise
    finally:
        if not is_within:
            seconds = round(time.monotonic() - started, 2)
            print(result_line(work, code, seconds, _ended[before:] if others is None else others), flush=True)


def result_line(work: str, code: int, seconds: float, stages: Sequence[Result]) -> str:
    """One JSON object: `work`, `status`, `exit_code`, `retry` (whether that may help), `seconds`, and `stages`."""
    is_repeat = bool(stages) and all(one.status == "already_done" for one in stages)
    status: Status = "failed" if code else "already_done" if is_repeat else "done"
    return json.dumps(
        {
            "work": work,
            "status": status,
            "exit_code": code,
            "retry": code == EXIT_FAILED or code > 128,
            "seconds": seconds,
            "stages": [asdict(one) for one in stages],
        }
    )
