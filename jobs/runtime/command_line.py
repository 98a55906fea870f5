"""What every job's `main` does: read settings, open a session, run, end with an exit code a scheduler can act on.

Exit codes: 0 done; 1 unexpected failure, a retry may help; 2 settings or arguments; 3 bad input, a retry will not help.
"""

from __future__ import annotations

import argparse
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession
from tqdm import tqdm

from jobs.runtime.session import open_session
from schemas.errors import SettingsError, TableError
from schemas.settings import Settings, load_settings

EXIT_FAILED, EXIT_SETTINGS, EXIT_INPUT = 1, 2, 3


def main(stage: str, run: Callable[[SparkSession, Settings], None], doc: str | None) -> None:
    """Run one job from its command line: `--settings FILE [--set section.key=value ...]`.

    Args:
        stage: The job's name.
        run: The job.
        doc: The job's docstring, shown by --help.
    """
    parser = argparse.ArgumentParser(prog=stage, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", required=True, help="the TOML settings file; pipeline.toml explains every key")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one setting; repeatable")
    arguments = parser.parse_args()
    try:
        settings = load_settings(arguments.settings, arguments.set)
        spark = open_session(stage)
        try:
            with task_bar(spark, stage):
                run(spark, settings)
        finally:
            spark.stop()
    except SettingsError as error:
        fail(str(error), EXIT_SETTINGS)
    except TableError as error:
        fail(str(error), EXIT_INPUT)
    except Exception:
        traceback.print_exc()
        fail(traceback.format_exc(limit=0).strip().splitlines()[-1][:2000], EXIT_FAILED)


@contextmanager
def task_bar(spark: SparkSession, stage: str) -> Iterator[None]:
    """A bar of Spark's finished tasks while a person watches; nothing where standard output is no terminal."""
    if not sys.stdout.isatty():
        yield
        return
    is_over = threading.Event()
    tracker = spark.sparkContext.statusTracker()

    def watch() -> None:
        with tqdm(unit="task", desc=stage, file=sys.stdout, leave=False) as bar:
            while not is_over.wait(0.5):
                found = [tracker.getStageInfo(number) for number in tracker.getActiveStageIds()]
                active = [info for info in found if info is not None]
                bar.total = sum(info.numTasks for info in active)
                bar.n = sum(info.numCompletedTasks for info in active)
                bar.refresh()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def fail(message: str, code: int) -> None:
    """Say what went wrong on standard output, where the pipeline shows it, and exit."""
    print(f"error: {message}", flush=True)
    sys.exit(code)
