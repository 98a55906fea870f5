"""Spark in benchmarks: sessions as the jobs have them, on local[2], and what went on inside, from Spark's event log."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parents[1]

STOCK_JVM = {"spark__driver__extraJavaOptions": "-Duser.timezone=UTC"}
"""For `session`: Spark's own options of the JVM, whose optimising compiler makes a long job faster than ours would."""


def spark_settings() -> dict[str, str]:
    """The settings of spark-defaults.conf, with the jars of ITEMSAGE_DELTA_JARS where that is set."""
    lines = (ROOT / "spark-defaults.conf").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(None, 1) for line in lines if line.strip() and not line.startswith("#"))
    values = {key: value.strip() for key, value in pairs}
    if folder := os.environ.get("ITEMSAGE_DELTA_JARS"):
        values.pop("spark.jars.packages")
        values["spark.jars"] = ",".join(str(jar) for jar in sorted(Path(folder).resolve().glob("*.jar")))
    return values


@contextmanager
def session(name: str, scratch: Path, **settings: str) -> Iterator[SparkSession]:
    """A fresh session on local[2] with Python workers of its own; the JVM is kept for the next one.

    Args:
        name: As Spark shows it.
        scratch: For the warehouse folder that Spark insists on.
        settings: Further settings, with `__` for the dots of their names.
    """
    os.environ["PYSPARK_PYTHON"] = sys.executable
    # Python workers must find this package too.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    here = {
        "spark.master": "local[2]",
        "spark.driver.memory": "3g",
        "spark.sql.warehouse.dir": str(scratch / "spark-warehouse"),
    }
    builder = SparkSession.builder.appName(name)
    for key, value in (spark_settings() | here | {k.replace("__", "."): v for k, v in settings.items()}).items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def event_log_settings(folder: Path) -> dict[str, str]:
    """What makes a session write its events into a folder, readable."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "spark__eventLog__enabled": "true",
        "spark__eventLog__dir": folder.as_uri(),
        "spark__eventLog__compress": "false",
        "spark__eventLog__rolling__enabled": "false",
    }


def task_seconds(folder: Path) -> dict[int, list[float]]:
    """Run time of every task by stage, from the event log of the one session that wrote into a folder.

    Less the time of garbage collection, which stops whatever task is running: on one machine, a collection of the
    cached tables is otherwise the largest task of most stages.
    """
    stages: dict[int, list[float]] = {}
    for stage, metrics in _task_ends(folder):
        busy = metrics.get("Executor Run Time", 0) - metrics.get("JVM GC Time", 0)
        stages.setdefault(stage, []).append(max(0, busy) / 1000)
    return stages


def task_rows(folder: Path) -> dict[int, list[float]]:
    """Rows that every task took out of shuffles, by stage, from the same log."""
    stages: dict[int, list[float]] = {}
    for stage, metrics in _task_ends(folder):
        stages.setdefault(stage, []).append(metrics.get("Shuffle Read Metrics", {}).get("Total Records Read", 0))
    return stages


def _task_ends(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    (log,) = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    for line in log.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["Event"] == "SparkListenerTaskEnd":
            yield event["Stage ID"], event.get("Task Metrics", {})


def worst_straggler(stages: dict[int, list[float]], least: float, unit: str = "s") -> tuple[float, str]:
    """The largest task over the median of its stage, in the worst stage with more than two tasks; and which that is.

    Args:
        stages: Run times, or numbers of rows, by stage.
        least: A task of less than this holds nobody up, whatever the others take.
        unit: Of both.
    """
    worst = (1.0, "no stage has a straggler")
    for stage, seconds in stages.items():
        largest, median = max(seconds), max(statistics.median(seconds), 1e-3)
        if len(seconds) > 2 and largest >= least and largest / median > worst[0]:
            worst = (
                largest / median,
                f"stage {stage}: {len(seconds)} tasks, {largest:,.2f} {unit} and {median:,.2f} {unit}",
            )
    return worst
