"""A Python worker that is stuck or killed ends the job with an error that says so; slow tasks that end do not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from typing import cast

import pyarrow as pa
import pytest
from pyspark import SparkContext, SparkStageInfo
from pyspark.sql import SparkSession

from jobs.runtime.deadline import TaskDeadline
from jobs.runtime.lost_worker import lost_worker
from schemas.errors import DeadlineError


def freeze(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    os.kill(os.getpid(), signal.SIGSTOP)
    yield from batches


def die(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield from batches


class Tasks:
    """A Spark context with one stage, of which a task ends between two looks."""

    def __init__(self) -> None:
        self.looks, self.is_cancelled = 0, False

    def statusTracker(self) -> Tasks:  # noqa: N802
        self.looks += 1
        return self

    def getActiveStageIds(self) -> list[int]:  # noqa: N802
        return [3]

    def getStageInfo(self, number: int) -> SparkStageInfo:  # noqa: N802
        return SparkStageInfo(number, 0, "read", 90, numActiveTasks=1, numCompletedTasks=self.looks, numFailedTasks=0)

    def cancelAllJobs(self) -> None:  # noqa: N802
        self.is_cancelled = True


@pytest.mark.long
@pytest.mark.fault("C3", "loud", "a Python worker of Spark's stopped (SIGSTOP), and a deadline of 3 s")
def test_a_stuck_worker_ends_the_job_within_the_deadline(spark: SparkSession) -> None:
    started = time.monotonic()
    message = r"a task to end within 3 s \(deadlines.task_seconds\); found none; running: 1 of 1 tasks of stage \d+"
    with pytest.raises(DeadlineError, match=message), TaskDeadline(spark.sparkContext, 3):
        spark.range(1).coalesce(1).mapInArrow(freeze, "id long").collect()
    assert time.monotonic() - started < 40
    assert spark.range(3).count() == 3


def test_tasks_that_end_keep_the_job_alive_for_many_deadlines() -> None:
    tasks = Tasks()
    with TaskDeadline(cast(SparkContext, tasks), 1):
        started = time.monotonic()
        while not tasks.is_cancelled and (time.monotonic() - started < 3 or tasks.looks < 6):
            time.sleep(0.05)
    assert not tasks.is_cancelled


def test_without_a_deadline_nothing_is_watched(spark: SparkSession) -> None:
    with TaskDeadline(spark.sparkContext, 0) as deadline:
        assert not deadline._thread.is_alive()


@pytest.mark.fault("C7", "loud", "a Python worker that the system kills, as it does for want of memory")
def test_a_killed_worker_is_named_with_what_to_raise_or_lower(spark: SparkSession) -> None:
    with pytest.raises(Exception, match="worker") as raised:
        spark.range(1).coalesce(1).mapInArrow(die, "id long").collect()
    said = str(lost_worker(raised.value))
    assert "Python worker exited unexpectedly" in said
    assert "spark.executor.memoryOverhead" in said
    assert "score.rows_per_batch" in said
    assert lost_worker(ValueError("a null")) is None
