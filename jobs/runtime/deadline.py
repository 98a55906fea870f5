"""A deadline for Spark's tasks: Spark itself waits without a word for a Python worker that is stuck."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from pyspark import SparkContext

from schemas.errors import DeadlineError

_LOOK_SECONDS = 1.0


class TaskDeadline:
    """While it is entered, at least one task must end within each `seconds` in which tasks run.

    A worker may hang in a read, or be frozen with its machine: no alarm inside it is sure to ring, so the driver looks.
    Its jobs are cancelled, which ends their workers, and the error that this raises in the driver becomes ours.

    Args:
        context: Whose jobs are watched.
        seconds: deadlines.task_seconds; 0 = no deadline.

    Raises:
        DeadlineError: no task has ended in time; raised at the end of the block, in place of Spark's own error.
    """

    def __init__(self, context: SparkContext, seconds: int) -> None:
        self._context, self._seconds = context, seconds
        self._is_over = threading.Event()
        self._found = ""
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TaskDeadline:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._seconds:
            self._thread.join()
        if self._found and error is not None:
            raise DeadlineError(
                "Spark",
                expected=f"a task to end within {self._seconds} s (deadlines.task_seconds)",
                found=f"none; running: {self._found}",
                cure="A Python worker or the storage hangs: run the stage again. Raise the deadline for longer tasks.",
            ) from error

    def _watch(self) -> None:
        before: list[tuple[int, int]] = []
        since = time.monotonic()
        while not self._is_over.wait(min(_LOOK_SECONDS, self._seconds / 4)):
            running, done = self._running()
            if done != before or not running:
                before, since = done, time.monotonic()
            elif time.monotonic() - since > self._seconds:
                self._found = "; ".join(running)
                self._context.cancelAllJobs()
                return

    def _running(self) -> tuple[list[str], list[tuple[int, int]]]:
        """The stages with running tasks, in words, and how many tasks of each active stage have ended."""
        tracker = self._context.statusTracker()
        stages = [info for number in tracker.getActiveStageIds() if (info := tracker.getStageInfo(number))]
        running = [
            f"{info.numActiveTasks} of {info.numTasks} tasks of stage {info.stageId} ({info.name})"
            for info in stages
            if info.numActiveTasks
        ]
        return running, sorted((info.stageId, info.numCompletedTasks + info.numFailedTasks) for info in stages)
