"""A Python worker that is stuck ends the job within the deadline; slow tasks that end one after another do not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from jobs.runtime.deadline import TaskDeadline
from schemas.errors import DeadlineError


def freeze(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    os.kill(os.getpid(), signal.SIGSTOP)
    yield from batches


def slow(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    time.sleep(0.7)
    yield from batches


@pytest.mark.fault("C3", "refused", "a Python worker of Spark's stopped (SIGSTOP), and a deadline of 3 s")
def test_a_stuck_worker_ends_the_job_within_the_deadline(spark: SparkSession) -> None:
    started = time.monotonic()
    message = r"a task to end within 3 s \(deadlines.task_seconds\); found none; running: 1 of 1 tasks of stage \d+"
    with pytest.raises(DeadlineError, match=message), TaskDeadline(spark.sparkContext, 3):
        spark.range(1).coalesce(1).mapInArrow(freeze, "id long").collect()
    assert time.monotonic() - started < 40
    assert spark.range(3).count() == 3


def test_tasks_that_end_keep_the_job_alive(spark: SparkSession) -> None:
    with TaskDeadline(spark.sparkContext, 2):
        assert len(spark.range(0, 8, 1, 8).mapInArrow(slow, "id long").collect()) == 8


def test_without_a_deadline_nothing_is_watched(spark: SparkSession) -> None:
    with TaskDeadline(spark.sparkContext, 0) as deadline:
        assert not deadline._thread.is_alive()
