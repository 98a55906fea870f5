"""One run of one job: its pinned inputs, its commits, its counts, and the record it leaves at `<warehouse>/_runs/`.

The record of a stage is written last, by temporary file and rename, and only when every table of the stage
is committed. Later stages read the versions that the records name, so a run that died half-way is never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.runtime import publish, table_io
from jobs.runtime.worker_rows import WorkerRows
from schemas.columns import Table
from schemas.errors import TableError
from schemas.records import read_record, recorded_output, write_record
from schemas.settings import Settings

_AT_ONCE = 4

Result = TypeVar("Result")


class Run:
    """The tables a job reads and writes, counted.

    Args:
        spark: The session; the run never stops it.
        settings: The resolved settings, saved with the record.
        stage: The job's name, which is the record's file name.
    """

    def __init__(self, spark: SparkSession, settings: Settings, stage: str) -> None:
        self.spark, self.settings, self.stage = spark, settings, stage
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self.rejected: dict[str, int] = {}
        self.figures: dict[str, Any] = {}
        self._started = time.monotonic()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is None:
            self._save()

    @property
    def run_id(self) -> str:
        """Hash of stage, settings and input versions: equal for a rerun of the same work."""
        text = json.dumps([self.stage, self.settings.model_dump(mode="json"), _by_table(self.inputs)], sort_keys=True)
        return f"{self.stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def read(self, table: Table, *, made_by: str | None = None, may_be_empty: bool = False) -> DataFrame:
        """Read one version of a table, pin and count it.

        Args:
            table: What to read.
            made_by: The stage whose record names the version; None = the newest, of a table that the shop supplies.
            may_be_empty: Whether no row is an error.

        Raises:
            TableError: the stage has not completed, or the table is absent, misshapen or empty.
        """
        uri = self.settings.table_uri(table.name)
        if made_by:
            version = recorded_output(read_record(self.settings.warehouse.uri, made_by), table.name)["version"]
        else:
            version = table_io.latest_version(self.spark, uri)
        rows = table_io.read(self.spark, uri, table, version=version)
        count = rows.count()
        if not count and not may_be_empty:
            raise TableError(
                table.name,
                "(all)",
                expected="at least one row",
                found=f"an empty table at {uri}",
                cure="Check the job that fills it and the dates in [dates]; nothing was written.",
            )
        self.count_input(table, version, count)
        return rows

    def count_input(self, table: Table, version: int | None, rows: int) -> None:
        """Note an input: its pinned version and its rows."""
        uri = self.settings.table_uri(table.name)
        self.inputs.append({"table": table.name, "uri": uri, "version": version, "rows": rows})

    def write(
        self, df: DataFrame, table: Table, *, rows_per_file: int = 0, checks: dict[str, str] | None = None
    ) -> table_io.Written:
        """Replace one table of the warehouse in one commit and count it."""
        uri = self.settings.table_uri(table.name)
        return self._count(
            table_io.write(df, uri, table, run_id=self.run_id, rows_per_file=rows_per_file, checks=checks)
        )

    def write_worker_rows(self, rows: WorkerRows, table: Table, row_count: int | None = None) -> table_io.Written:
        """The same for rows that Python workers make and write."""
        uri = self.settings.table_uri(table.name)
        return self._count(publish.write_worker_rows(rows, uri, table, run_id=self.run_id, row_count=row_count))

    def _count(self, written: table_io.Written) -> table_io.Written:
        self.outputs.append(
            {"table": written.table, "uri": written.uri, "version": written.version, "rows": written.rows}
        )
        # With its newline in one piece: tables are written side by side.
        print(f"  wrote {written.table}: {written.rows:,} rows, version {written.version}\n", end="", flush=True)
        return written

    def write_rejected(self, df: DataFrame, table: Table) -> int:
        """Write a rejected_* table and count its rows by reason; returns their number."""
        written = self.write(df, table)
        uri = self.settings.table_uri(table.name)
        stored = table_io.read(self.spark, uri, table, version=written.version)
        for row in stored.groupBy("source_table", "reason").agg(F.count("*").alias("n")).collect():
            self.rejected[f"{row['source_table']}: {row['reason']}"] = int(row["n"])
        return written.rows

    def _save(self) -> None:
        record = {
            "stage": self.stage,
            "run_id": self.run_id,
            "seconds": round(time.monotonic() - self._started, 2),
            "inputs": _by_table(self.inputs),
            "outputs": _by_table(self.outputs),
            "rejected": dict(sorted(self.rejected.items())),
            "figures": self.figures,
            "settings": self.settings.model_dump(mode="json"),
        }
        write_record(self.settings.warehouse.uri, self.stage, record)


def side_by_side(calls: list[Callable[[], Result]]) -> list[Result]:
    """Read or write independent tables at once: most of a small one is waiting for its plan and its commit.

    Returns:
        The results, in order. The first error is raised when all calls have ended.
    """
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        futures = [threads.submit(call) for call in calls]
    return [future.result() for future in futures]


def _by_table(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In a fixed order: tables are read and written side by side."""
    return sorted(entries, key=lambda entry: str(entry["table"]))
