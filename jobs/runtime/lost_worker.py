"""What to do when a Python worker or an executor dies, which is most often for want of memory: Spark does not say."""

from __future__ import annotations

import re

from schemas.errors import EXIT_FAILED

_DIED = re.compile(
    r"Python worker exited unexpectedly[^\n]*|ExecutorLostFailure[^\n]*|OOMKilled|[^\n]*exceeding memory limits[^\n]*"
)


class LostWorkerError(RuntimeError):
    """A worker died in each of its task's tries; a retry may help where memory was short for other reasons."""

    exit_code = EXIT_FAILED


def lost_worker(error: BaseException) -> LostWorkerError | None:
    """The error to raise in place of one of Spark's that tells of a dead worker; None for any other."""
    if not (found := _DIED.search(str(error))):
        return None
    return LostWorkerError(
        f"Spark: expected Python workers that live to the end of their tasks; found one that died ({found[0][:200]}). "
        "Most often the system has killed it for want of memory (dmesg says so). On a cluster raise "
        "spark.executor.memoryOverhead, or lower spark.executor.cores, as each core has a worker; on one machine lower "
        "spark.driver.memory or the slots of spark.master (local[1,4]). What one worker holds follows from "
        "spark.sql.execution.arrow.maxRecordsPerBatch, score.rows_per_batch and the sizes of model and vocabulary."
    )
