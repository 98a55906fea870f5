"""One run of one job: its pinned inputs, its commits, its counts, and the record it leaves at `<warehouse>/_runs/`.

The record of a stage is written last, by temporary file and rename, and only when every table of the stage
is committed. Later stages read the versions that the records name, so a run that died half-way is never mixed in. What
these tables were made with is compared when the run begins (schemas/contracts.py), and the warehouse is held meanwhile
(schemas/lease.py).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Any, Generic, TypeVar

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.runtime import catalog, input_tables, publish, table_io
from jobs.runtime.deadline import TaskDeadline
from jobs.runtime.lost_worker import lost_worker
from jobs.runtime.worker_rows import Place, WorkerRows
from schemas import lease
from schemas.arrow import arrow_schema
from schemas.candidate import CANDIDATE_TABLES, read_candidate
from schemas.code_version import code_version
from schemas.columns import Table
from schemas.commits import OvertakenError, Staged
from schemas.contracts import agreed, other_code, require_no_later, require_no_older
from schemas.errors import TableError
from schemas.input_tables import find_input
from schemas.records import RunRecord, TableVersion, by_table, find_record, read_record, write_record
from schemas.repeats import files_besides_tables, stop_if_done
from schemas.settings import Settings
from schemas.stages import (
    BESIDE,
    EMBED_GRAPH,
    EMBED_QUERIES,
    EXPORT_INDEX,
    WHOLE,
    Metrics,
    Stage,
    is_among,
    maker_of,
)
from schemas.storage import rows_of, version_files

_MAX_CONCURRENT_TABLES = 4

Result = TypeVar("Result")
Other = TypeVar("Other")


class JobRun(Generic[Metrics]):
    """The tables a job reads and writes, counted.

    Args:
        spark: The session; the run never stops it.
        settings: The resolved settings, saved with the record.
        stage: The stage that runs: its name is the record's, and it opens no other tables than it declares.

    Attributes:
        metrics: What the job counted; the job sets it before the run ends.
        rejected: `<source table>: <reason>` -> rows.
        made_with: What the tables it reads were made with, which its own record hands on; see schemas/contracts.py.
    """

    def __init__(self, spark: SparkSession, settings: Settings, stage: Stage[Metrics]) -> None:
        self.spark, self.settings, self.stage = spark, settings, stage
        self.metrics: Metrics | None = None
        self.rejected: dict[str, int] = {}
        self._inputs: list[TableVersion] = []
        self._table_ids: dict[str, str] = {}
        self._outputs: list[TableVersion] = []
        self._started = time.monotonic()
        self._held = ExitStack()
        self._deadline = TaskDeadline(spark.sparkContext, settings.deadlines.task_seconds)
        self.made_with: dict[str, str] = {}
        self._records: dict[str, RunRecord[Any]] = {}

    def __enter__(self) -> JobRun[Metrics]:
        date = str(self.settings.dates.as_of)
        work = lease.WHOLE_RUN if self.stage.is_alone else self.stage.name
        self._held.enter_context(lease.hold(self.settings.layout, work, date))
        try:
            catalog.bind(self.spark, self.settings, self.stage)
            stop_if_done(self.settings, self.stage)
            # What export_index reads is published, and its commit says what belongs to it.
            beside = BESIDE if self.stage not in WHOLE else (EMBED_GRAPH,) if self.settings.takes_graph_vectors else ()
            makers = (*self.settings.stages, *beside)
            makers = () if self.stage is EXPORT_INDEX else makers
            self.require_agreement([stage for stage in makers if self._reads_from(stage)])
            if self.stage in WHOLE and (graph := self._records.get(EMBED_GRAPH.name)):
                require_no_later(self.stage, graph, self.settings.dates)
        except BaseException:
            self._held.close()
            raise
        self._deadline.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            self._deadline.__exit__(kind, error, trace)
            if error is not None and (lost := lost_worker(error)):
                raise lost from error
            if kind is None:
                self._save()

    def require_agreement(self, stages: Iterable[Stage[Any]]) -> None:
        """Refuse to read what stages made with different vocabularies or embedding spaces.

        Called when the run begins, with the makers of the tables that it reads; call it yourself with further stages
        whose outputs the job uses. What the records say now is what this run stands by: see `count_input`.

        Args:
            stages: Stages of the pipeline; those that have left no record do not count.

        Raises:
            InputError: they disagree, or a record is damaged.
        """
        layout = self.settings.layout
        found = {stage.name: find_record(layout, stage) for stage in stages if stage.name not in self._records}
        known = {name: record for name, record in found.items() if record is not None}
        self._records |= known
        in_order = [self._records[stage.name] for stage in (*WHOLE, *BESIDE) if stage.name in self._records]
        kinds = {task.query_kind for task in self.settings.task_list}
        self.made_with = agreed(layout, self.stage, in_order, kinds)
        if line := other_code(known.values()):
            print(line, flush=True)

    def record(self, stage: Stage[Other]) -> RunRecord[Other]:
        """The record of another stage, as this run has read it first.

        Raises:
            InputError: the stage has not completed in this warehouse, or its record is damaged.
        """
        if stage.name not in self._records:
            self._records[stage.name] = read_record(self.settings.layout, stage)
        return self._records[stage.name]

    def _reads_from(self, stage: Stage[Any]) -> bool:
        if self.stage is EMBED_QUERIES and not self.settings.pictures.query_kinds:
            return False  # it reads no item_images then, and must not stand by their encoder
        return any(is_among(table.name, self.stage.reads) for table in stage.writes)

    @property
    def run_id(self) -> str:
        """Hash of stage, settings and input versions: equal for a rerun of the same work."""
        inputs = [asdict(version) for version in by_table(self._inputs)]
        text = json.dumps([self.stage.name, self.settings.model_dump(mode="json"), inputs], sort_keys=True)
        return f"{self.stage.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def note(self, **more: Any) -> dict[str, Any]:
        """What a commit of this run says of itself: run, stage, date, code, settings, and the versions it was made of.

        Args:
            more: Further entries.
        """
        settings = json.dumps(self.settings.model_dump(mode="json"), sort_keys=True)
        return {
            "run_id": self.run_id,
            "stage": self.stage.name,
            "as_of": str(self.settings.dates.as_of),
            "code": code_version(),
            "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
            "made_of": {version.table: version.version for version in by_table(self._inputs)},
        } | more

    def read(self, table: Table, *, may_be_empty: bool = False) -> DataFrame:
        """Read one version of a table, pin and count it.

        What another stage writes is read at the version that its record names, what the shop supplies at the newest;
        a line says what was found of it, and its rows are those that its files, or its log, say they are.

        Args:
            table: What to read.
            may_be_empty: Whether no row is an error.

        Raises:
            InputError: the stage that writes the table has not completed.
            TableError: the table is absent, misshapen or empty, of an older version than the stage read last, or not
                all of its rows are read.
        """
        uri, checksum = self.settings.table_uri(table.name), ""
        if maker := maker_of(table.name, self.settings.stages):
            # Anew, so that `count_input` sees whether it is still the one that this run began with.
            version = read_record(self.settings.layout, maker).output(table.name).version
            if version is None and table.name in CANDIDATE_TABLES:
                rows = table_io.read_files(
                    self.spark, read_candidate(self.settings.layout).staged(table.name).uris, table
                )
            else:
                rows = table_io.read(self.spark, uri, table, version=version)
            # Of a version Spark would say the same, by the same log, in a job of its own.
            if version is None:
                count = rows.count()
            else:
                found_files = version_files(uri, version)
                count, checksum = rows_of(found_files.files), found_files.checksum
        else:
            found = find_input(uri, table)
            require_no_older(self.settings.layout, self.stage, found, self.settings.gates.override)
            self._table_ids |= {table.name: found.table_id} if found.table_id else {}
            name = self.settings.input_name(table.name)
            version, checksum, rows = found.version, found.checksum, input_tables.read_input(self.spark, found, name)
            count = input_tables.count_rows(self.spark, rows)
            input_tables.require_all_rows(self.spark, found, count)
            if name and found.files:
                catalog.require_same_rows(self.spark, name, found, count)
            called = f"{table.name} ({name})" if name else table.name
            print(f"  read {called}: {found}\n", end="", flush=True)
        if not count and not may_be_empty:
            raise TableError(
                table.name,
                "(all)",
                expected="at least one row",
                found=f"an empty table at {uri}",
                cure="Check the job that fills it and the dates in [dates]; nothing was written.",
            )
        self.count_input(TableVersion(table.name, uri, version, count, checksum))
        return rows

    def count_input(self, version: TableVersion) -> None:
        """Note an input; of a table that the job reads by other means than `read`, call it yourself.

        Raises:
            OvertakenError: since this run began, the stage that writes the table has completed once more.
        """
        self._require_declared(version.table, self.stage.reads, "reads")
        maker = maker_of(version.table, self.settings.stages)
        if maker and (record := self._records.get(maker.name)):
            began_with = record.output(version.table).version
            if began_with != version.version:
                raise OvertakenError(
                    f"table {version.table}: expected version {began_with}, as when this run began; found version "
                    f"{version.version}, of another run of {maker.name}. Nothing was committed; run the job again."
                )
        self._inputs.append(version)

    def input(self, table: Table) -> TableVersion:
        """An input of this run."""
        return next(version for version in self._inputs if version.table == table.name)

    def row_count(self, table: Table) -> int:
        """Rows of an input of this run."""
        return self.input(table).rows

    def write(self, df: DataFrame, table: Table) -> table_io.Written:
        """Replace one table of the warehouse in one commit and count it; see `table_io.write`."""
        return self._count(table_io.write(df, self._uri_to_write(table), table, note=self.note()))

    def write_worker_rows(self, rows: WorkerRows, table: Table, row_count: int | None = None) -> table_io.Written:
        """Replace one table by rows that Python workers make, in one commit; see `publish.write_worker_rows`."""
        uri = self._uri_to_write(table)
        return self._count(publish.write_worker_rows(rows, uri, table, note=self.note(), row_count=row_count))

    def stage_worker_rows(self, rows: WorkerRows, table: Table, row_count: int | None = None) -> Staged:
        """Write rows that are no part of their table before `commit`; see `publish.stage_worker_rows`."""
        return publish.stage_worker_rows(rows, self._uri_to_write(table), table, row_count=row_count)

    def count_output(self, version: TableVersion) -> None:
        """Note what the job has written by other means than the methods here; version None = it is not live yet."""
        self._require_declared(version.table, self.stage.writes, "writes")
        self._outputs.append(version)
        what = "not live yet" if version.version is None else f"version {version.version}"
        print(f"  wrote {version.table}: {version.rows:,} rows, {what}\n", end="", flush=True)

    def write_tables(self, rows: DataFrame, places: Sequence[Place]) -> list[table_io.Written]:
        """Replace several tables by rows that Python workers write in one Spark job; see `publish.write_tables`."""
        return [self._count(written) for written in publish.write_tables(rows, places, note=self.note())]

    def place(self, table: Table, first_file: int, row_count: int) -> Place:
        """Where one of the tables of `write_tables` lies."""
        return Place(table, self._uri_to_write(table), first_file, row_count)

    def write_arrow(self, rows: pa.Table, table: Table, file_count: int = 1) -> table_io.Written:
        """Replace one table by rows in the driver's memory, in one commit; see `publish.write_arrow`."""
        uri = self._uri_to_write(table)
        return self._count(publish.write_arrow(rows, uri, table, note=self.note(), file_count=file_count))

    def _uri_to_write(self, table: Table) -> str:
        self._require_declared(table.name, self.stage.writes, "writes")
        return self.settings.table_uri(table.name)

    def _count(self, written: table_io.Written) -> table_io.Written:
        self.count_output(TableVersion(written.table, written.uri, written.version, written.rows, written.checksum))
        return written

    def write_rejected(self, df: DataFrame, table: Table) -> int:
        """Write a rejected_* table and count its rows by reason; returns their number.

        Mostly there is none, which is known once they are counted: Spark takes a second to write none.

        Raises:
            TableError: more or fewer rows are written than were counted.
        """
        rejects = df.persist()
        counted = rejects.groupBy("source_table", "reason").agg(F.count("*").alias("row_count")).collect()
        counts = {f"{row['source_table']}: {row['reason']}": int(row["row_count"]) for row in counted}
        nothing = arrow_schema(table).empty_table()
        written = self.write(rejects, table) if counts else self.write_arrow(nothing, table)
        rejects.unpersist()
        if written.rows != sum(counts.values()):
            cure = "An input changed while the job ran: run it again on inputs at rest."
            expected, found = f"the {sum(counts.values()):,} rows that were counted", f"{written.rows:,} written"
            raise TableError(table.name, "(all)", expected=expected, found=found, cure=cure)
        self.rejected |= counts
        return written.rows

    def _require_declared(self, name: str, declared: tuple[Table, ...], does: str) -> None:
        if not is_among(name, declared):
            raise ValueError(f"stage {self.stage.name} {does} table {name}, which schemas/stages.py does not say")

    def _save(self) -> None:
        if self.metrics is None:
            raise ValueError(f"stage {self.stage.name} has ended without its {self.stage.metrics.__name__}")
        record = RunRecord(
            self.stage.name,
            self.metrics,
            self.run_id,
            round(time.monotonic() - self._started, 2),
            by_table(self._inputs),
            by_table(self._outputs),
            dict(sorted(self.rejected.items())),
            self.settings.model_dump(mode="json"),
            self.made_with,
            self._table_ids | files_besides_tables(self.settings, self.stage),
            {name: record.sha256 for name, record in sorted(self._records.items())},
        )
        lease.require_held()
        catalog.register(self.spark, self.settings, self._outputs)
        write_record(self.settings.layout, record)


def side_by_side(calls: list[Callable[[], Result]]) -> list[Result]:
    """Read or write independent tables at once: most of a small one is waiting for its plan and its commit.

    Returns:
        The results, in order. The first error is raised when all calls have ended.
    """
    with ThreadPoolExecutor(_MAX_CONCURRENT_TABLES) as threads:
        futures = [threads.submit(call) for call in calls]
    return [future.result() for future in futures]
