"""Training processes on a Spark cluster: one barrier stage, a rank in each of its tasks, no launcher in between.

Spark starts all tasks of a barrier stage at once. Each starts its rank as a process of its own, with what the task can
import (`--py-files` too), and answers with the rank's exit code and its last words.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pyspark import BarrierTaskContext
from pyspark.sql import SparkSession

from schemas.errors import EXIT_INPUT, EXIT_SETTINGS
from schemas.orphans import ENDS_WITH_INPUT

_LAST_CHARACTERS = 20_000


class Ended(NamedTuple):
    """How one rank ended: its number, its exit code, and the end of what it said on standard output."""

    rank: int
    code: int
    said: str


def run_on_cluster(
    spark: SparkSession, module: str, ranks: int, files: dict[str, str], variables: dict[str, str]
) -> list[Ended]:
    """Run a module once for each rank, at the same time, on the executors.

    Args:
        spark: The session; its cluster has at least `ranks` free task slots.
        module: What `python -m` runs, with the path of a private folder as its argument.
        ranks: Number of ranks.
        files: Name -> text of the files in that folder.
        variables: What the ranks' environment holds beside that of their executor.

    Returns:
        How each ended, in the order of ranks.
    """

    def run_rank(_: Iterable[int]) -> Iterator[Ended]:
        context = BarrierTaskContext.get()
        hosts = [info.address.rpartition(":")[0] or info.address for info in context.getTaskInfos()]
        # Rank 0's process listens there in a moment; all learn it here.
        port = context.allGather(str(_free_port()))[0]
        environment = _environment(hosts, context.partitionId(), int(port)) | variables
        with tempfile.TemporaryDirectory(prefix="itemsage-rank-") as folder:
            for name, text in files.items():
                (Path(folder) / name).write_text(text)
            # Its standard input closes when this worker ends; see `end_with_parent`.
            child = subprocess.Popen(
                [sys.executable, "-m", module, folder],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            try:
                assert child.stdout
                said = child.stdout.read()
                yield Ended(context.partitionId(), child.wait(), said[-_LAST_CHARACTERS:])
            finally:
                child.kill()
                child.wait()

    found = spark.sparkContext.parallelize(range(ranks), ranks).barrier().mapPartitions(run_rank).collect()
    return sorted(Ended(*one) for one in found)


def at_fault(ended: list[Ended]) -> Ended:
    """The rank to hear: the first that says no retry will help, else the first that failed, else rank 0."""
    failed = [one for one in ended if one.code]
    return next((one for one in failed if one.code in (EXIT_SETTINGS, EXIT_INPUT)), (failed or ended)[0])


def _environment(hosts: list[str], rank: int, port: int) -> dict[str, str]:
    here = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    return {"OMP_NUM_THREADS": "1"} | os.environ | {
        "RANK": str(rank), "WORLD_SIZE": str(len(hosts)), "LOCAL_RANK": str(here.index(rank)),
        "LOCAL_WORLD_SIZE": str(len(here)), "MASTER_ADDR": hosts[0], "MASTER_PORT": str(port),
        ENDS_WITH_INPUT: "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port
