"""What every job's `main` does: read settings, open a session, run, end with an exit code a scheduler can act on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyspark.sql import SparkSession
from tqdm import tqdm

from jobs.runtime.session import open_session
from schemas.command_line import exit_code_of_errors, settings_of, settings_parser
from schemas.results import ending_in_json, noted
from schemas.settings import Settings
from schemas.stages import Stage


def main(stage: Stage[Any], run: Callable[[SparkSession, Settings], None], doc: str | None) -> None:
    """Run one job from its command line: `--settings FILE [--set section.key=value ...]`.

    Args:
        stage: The job's stage.
        run: The job.
        doc: The job's docstring, shown by --help.
    """
    name = stage.name
    arguments = settings_parser(name, doc).parse_args()
    # A session that somebody else has opened: theirs is the last line.
    is_own = SparkSession.getActiveSession() is None
    with ending_in_json(name) if is_own else exit_code_of_errors():
        settings = settings_of(arguments)
        spark = open_session(name, settings.warehouse)
        try:
            with noted(settings, stage), task_bar(spark, name):
                run(spark, settings)
        finally:
            if is_own:
                spark.stop()


@contextmanager
def task_bar(spark: SparkSession, name: str) -> Iterator[None]:
    """A bar of Spark's finished tasks while a person watches; nothing where standard output is no terminal."""
    if not sys.stdout.isatty():
        yield
        return
    is_over = threading.Event()
    tracker = spark.sparkContext.statusTracker()

    def watch() -> None:
        with tqdm(unit="task", desc=name, file=sys.stdout, leave=False) as bar:
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
