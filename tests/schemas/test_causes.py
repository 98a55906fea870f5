"""The first line of an unexpected error is its cause, and its exit code says whether a retry may help."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemas.causes import cause_of

DISK_FULL = """An error occurred while calling o88.save.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 3.0 failed 4 times, most recent
\tat org.apache.spark.scheduler.DAGScheduler.abortStage(DAGScheduler.scala:2856)
Caused by: org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task failed while writing rows to file:/w/t.
\tat org.apache.spark.sql.errors.QueryExecutionErrors$.taskFailedWhileWritingRowsError(X.scala:1)
Caused by: java.io.IOException: No space left on device
\tat java.base/sun.nio.ch.FileDispatcherImpl.write0(Native Method)
\t... 22 more
"""
NO_MODULE = """Job aborted due to stage failure: Task 0 in stage 1.0 failed 4 times: Lost task 0.3 in stage 1.0 (TID 4):
org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "worker.py", line 1, in main
ModuleNotFoundError: No module named 'itemsage_model'

\tat org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handlePythonException(PythonRunner.scala:581)
\tat java.base/java.lang.Thread.run(Thread.java:840)
"""


class Java:
    """What py4j shows of a Java exception."""

    def __init__(self, message: str) -> None:
        self.message = message

    def getMessage(self) -> str:  # noqa: N802 (Java's name)
        return self.message


class JavaError(Exception):
    """Like a Py4JJavaError: its text is Java's whole stack trace."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.java_exception = Java(text.splitlines()[1].split(": ", 2)[-1] if "\n:" in text else text.splitlines()[0])


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (JavaError(DISK_FULL), "the disk is full (No space left on device)", 1),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full", 1),
        (JavaError(NO_MODULE), "the Python module itemsage_model is missing", 2),
        (ModuleNotFoundError("No module named 'xyz'"), "the Python module xyz is missing", 2),
        (JavaError(DISK_FULL.replace("No space left on", "No route to")), "IOException: No route to device", 1),
        (JavaError("x\n: java.lang.OutOfMemoryError: Java heap space\n\tat x.y"), "Java ran out of memory (Java", 1),
        (pa.ArrowMemoryError("malloc of size 64 failed"), "Python ran out of memory (malloc of size 64 failed)", 1),
        (MemoryError(), "Python ran out of memory (no more said)", 1),
        (JavaError("Task lost: Executor exit code 137"), "a worker was killed from outside", 1),
        (PermissionError(errno.EACCES, "Permission denied", "/w"), "no permission (", 2),
        (KeyError("x"), "KeyError: 'x'", 1),
        (ValueError("\n  first\nsecond"), "ValueError: first", 1),
    ],
)  # fmt: skip
@pytest.mark.fault("F4", "loud", "disk full, a missing module, memory, permission: the cause is the first line")
def test_the_innermost_useful_message_is_the_cause(error: Exception, line: str, code: int) -> None:
    said, found = cause_of(error)
    assert said.startswith(line), said
    assert found == code
    assert "... 22 more" not in said
    assert "java.base" not in said


def test_the_cause_of_a_cause_counts_and_an_error_without_words_says_its_place() -> None:
    outer = RuntimeError("could not write")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert cause_of(outer)[0].startswith("the disk is full")
    with pytest.raises(StopIteration) as raised:
        next(iter(()))
    said, _ = cause_of(raised.value)
    assert said.startswith("StopIteration at ")
    assert "test_causes.py" in said


def failing_worker(spark: Any) -> None:
    def fail(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        raise ValueError(f"bad price in {next(iter(batches)).num_rows} rows")
        yield

    spark.range(3).coalesce(1).mapInArrow(fail, "id long").toArrow()


def missing_module(spark: Any) -> None:
    def load(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import no_such_module_of_ours  # type: ignore[import-not-found]  # noqa: F401

        yield from batches

    spark.range(3).coalesce(1).mapInArrow(load, "id long").write.format("noop").mode("overwrite").save()


def not_parquet(spark: Any) -> None:
    folder = Path(spark.conf.get("spark.sql.warehouse.dir").removeprefix("file:")) / "foreign"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "part-0.parquet").write_text("no Parquet at all, but long enough for a footer")
    spark.read.schema("id long").parquet(str(folder)).collect()


def division(spark: Any) -> None:
    spark.range(3).selectExpr("1 / (id - 1) AS x").collect()


@pytest.mark.parametrize(
    ("act", "line", "code"),
    [
        (failing_worker, "ValueError: bad price in 3 rows", 1),
        (missing_module, "the Python module no_such_module_of_ours is missing", 2),
        (not_parquet, "foreign/part-0.parquet", 1),
        (division, "DIVIDE_BY_ZERO", 1),
    ],
)
@pytest.mark.fault("exit", "loud", "a Spark job that fails in a worker, in Java or in a file")
def test_what_spark_raises_comes_down_to_its_cause(
    act: Callable[[Any], None], line: str, code: int, spark: Any
) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        act(spark)
    said, found = cause_of(raised.value)
    assert line in said, f"{said}\n----\n{raised.value}"
    assert found == code
    for noise in (" more", "\tat ", "java.base/", "JVM stacktrace", "Traceback"):
        assert noise not in said
