"""Row 7: build_training_tables with 60 % of the events on one item, against as many events spread evenly.

One task; in both logs every event is a (query, item) pair of its own, so that both make as many training rows.
Times are of the whole job, from the opened session. Tasks are those of all its stages, from Spark's event log, less
garbage collection; a straggler is the largest task over the median of its stage, in the worst stage of more than two
tasks, by time and by the rows that it takes out of shuffles; a task that takes less than a fiftieth of the job's time,
or of the events, holds nobody up. So that there are tasks to compare, the shuffles have 16 partitions that are not
merged, and no table is sent whole to every task, as none could be in a shop where skew matters. By time all tasks are
short here; by rows a job that does not spread hot keys has a straggler of 22.

    python -m benchmarks.skew [--rounds N] [--small]
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contest import Contender, Figures, Row, Turn, compete, judge, require
from benchmarks.report import Options, main, print_outcome
from benchmarks.spark_tables import event_log_settings, session, task_rows, task_seconds, worst_straggler
from benchmarks.synthetic import Catalog, item_ids, list_cells, write_item_features
from jobs import build_training_tables
from schemas.metrics import ItemMetrics, QueryMetrics
from schemas.presets import demo
from schemas.records import RunRecord, TableVersion, read_record, write_record
from schemas.settings import Settings
from schemas.stages import BUILD_TRAINING_TABLES
from schemas.tables import EMBEDDING_DIM, QUERY_EMBEDDINGS
from schemas.warehouse import Warehouse

SKEWED, EVEN = "60 % of the events on one item", "spread evenly"
HOT_SHARE = 0.6
LEAST_SHARE = 0.02


def rows(options: Options) -> Iterator[Row]:
    """Write both shops' tables, then build from both."""
    events = options.choose(50_000, 8000)
    for name, share in ((SKEWED, HOT_SHARE), (EVEN, 0.0)):
        write_shop(options.scratch / name, events, share)
    contenders = [Contender(name, job_turn, (options.scratch, name)) for name in (SKEWED, EVEN)]
    outcome = compete(contenders, options.rounds or 5)
    print_outcome(f"training tables of {events} events, 16 shuffle partitions", "events", outcome)
    for name, performance in outcome.performances.items():
        last = performance.figures[-1]
        print(f"  {name}: {last['pairs']} training pairs; largest task over the median {last['straggler']:.2f}")
        print(f"    {last['stage']}; by rows {last['row_straggler']:.2f}, {last['row_stage']}")
    yield judge("7", "build_training_tables, time", EVEN, outcome.ratios(EVEN, SKEWED), at_most=1.3)
    figures = outcome.performances[SKEWED].figures
    counted = figures[1:] or figures
    what = "largest task over the median of its stage"
    by_time, by_rows = ([turn[name] for turn in counted] for name in ("straggler", "row_straggler"))
    yield judge("7", f"{what}, time", "the median task; less garbage collection", by_time, at_most=3)
    yield judge("7", f"{what}, rows", "the median task", by_rows, at_most=3)


def make_settings(warehouse: Path) -> Settings:
    """One task on a warehouse."""
    tasks = [{"query_kind": "search", "engagement": "click"}]
    return Settings.model_validate(
        {
            "warehouse": {"uri": str(warehouse)},
            "dates": {"as_of": "2026-03-01", "train_days": 50, "test_days": 8},
            "tasks": tasks,
        }
    )


def write_shop(warehouse: Path, events: int, hot_share: float) -> None:
    """Items with an image and some thirty tokens each; the log, with a query of its own for every event."""
    catalog = Catalog(max(events // 20, 100), demo()[1], images=1, tokens=30)
    write_item_features(warehouse / "item_features", catalog)
    random = np.random.default_rng(5)
    query_ids = pa.array([f"query-{row:09}" for row in range(events)])
    vectors = random.standard_normal((1024, EMBEDDING_DIM), dtype=np.float32)
    columns = {
        "query_id": query_ids,
        "query_kind": pa.array(["search"] * events),
        "query_embedding": list_cells(vectors[np.arange(events) % len(vectors)]),
        "embedding_space": pa.array(["synthetic"] * events),
        "query_item_id": pa.nulls(events, pa.string()),
    }
    _write(warehouse / QUERY_EMBEDDINGS.name, pa.table(columns))
    item = random.integers(1, catalog.items, events)
    item[random.random(events) < hot_share] = 0
    dates = make_settings(warehouse).dates
    start, end = (int(when.timestamp() * 1e6) for when in (dates.train_start, dates.end))
    log = {
        "event_id": pa.array([f"event-{row:09}" for row in range(events)]),
        "event_ts": pa.array(random.integers(start, end, events), pa.timestamp("us", tz="UTC")),
        "query_id": query_ids,
        "item_id": item_ids(item),
        "engagement": pa.array(["click"] * events),
    }
    _write(warehouse / "engagement_logs", pa.table(log))
    features = TableVersion("item_features", str(warehouse / "item_features"), 0, catalog.items)
    embeddings = TableVersion("query_embeddings", str(warehouse / "query_embeddings"), None, events)
    layout = Warehouse(str(warehouse))
    write_record(layout, RunRecord("build_item_features", ItemMetrics(1, "synthetic"), outputs=(features,)))
    write_record(layout, RunRecord("embed_queries", QueryMetrics(None, 0, {}), outputs=(embeddings,)))


def job_turn(scratch: Path, name: str) -> Turn:
    """The job, in a session that logs its events."""
    warehouse = scratch / name
    events = pq.read_metadata(next((warehouse / "engagement_logs").glob("*.parquet"))).num_rows
    settings = make_settings(warehouse)

    def turn() -> Figures:
        log = scratch / f"{name} events"
        shutil.rmtree(log, ignore_errors=True)
        partitions = {
            "spark__sql__shuffle__partitions": "16",
            "spark__sql__adaptive__coalescePartitions__enabled": "false",
            "spark__sql__autoBroadcastJoinThreshold": "-1",
        }
        with session("build_training_tables", scratch, **event_log_settings(log), **partitions) as spark:
            started = time.perf_counter()
            build_training_tables.run(spark, settings)
            seconds = time.perf_counter() - started
        metrics = read_record(Warehouse(str(warehouse)), BUILD_TRAINING_TABLES).metrics
        require(metrics.events.read_events == events, "events are missing")
        pairs = sum(counts.training_pairs for counts in metrics.tasks.values())
        straggler, stage = worst_straggler(task_seconds(log), LEAST_SHARE * seconds)
        row_straggler, row_stage = worst_straggler(task_rows(log), LEAST_SHARE * events, "rows")
        return {
            "units": events,
            "seconds": seconds,
            "pairs": pairs,
            "straggler": straggler,
            "stage": stage,
            "row_straggler": row_straggler,
            "row_stage": row_stage,
        }

    return turn


def _write(folder: Path, table: pa.Table) -> None:
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-0.parquet")


if __name__ == "__main__":
    main("benchmarks.skew")
