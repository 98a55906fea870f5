"""Run stages one after another in one Spark session: the driver program that `itemsage run` submits.

Starting Java, loading Spark's classes and warming both up takes longer than a small stage's work. Each stage calls the
same function as its own spark-submit command; training runs in a process of its own meanwhile, as under a scheduler,
or, where Spark has a cluster, on that (jobs/train.py).

    spark-submit --properties-file spark-defaults.conf pipeline/one_session.py --settings shop.toml --stages evaluate
"""

from __future__ import annotations

import importlib
import runpy
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from jobs.runtime.command_line import task_bar
from jobs.runtime.session import open_session
from pipeline.commands import ROOT, environment, train_command
from schemas.command_line import exit_code_of_errors, passed_on, settings_of, settings_parser
from schemas.errors import EXIT_FAILED
from schemas.places import is_within
from schemas.results import noted
from schemas.settings import Settings
from schemas.stages import TRAIN, Stage, stage_named

Step = tuple[str, Callable[[], None]]


def steps_of(spark: SparkSession, settings: Settings, stages: list[str], passed: list[str], prepare: str) -> list[Step]:
    """What to run, in order: the name of each step and the call that runs it.

    Args:
        spark: The session.
        settings: The settings.
        stages: Names of stages.
        passed: The command line's arguments that every stage understands.
        prepare: A job script, with arguments of its own, that makes the input tables first; empty = none.
    """
    steps: list[Step] = []
    if prepare:
        script, *extra = shlex.split(prepare)
        place = str(ROOT / script)
        if not is_within(place, [str(ROOT)]):
            settings.require_allowed("--prepare", place)
        steps.append((Path(script).stem, partial(run_script, script, [*passed, *extra])))
    for stage in map(stage_named, stages):
        is_local = (spark.sparkContext.master or "").startswith("local")
        if stage.launcher == "python" and (is_local or stage is not TRAIN):
            steps.append((stage.name, partial(train_beside, settings, passed, stage.name)))
        else:
            job = importlib.import_module(f"jobs.{stage.name}")
            steps.append((stage.name, partial(run_noted, settings, stage, partial(job.run, spark, settings))))
    return steps


def run_noted(settings: Settings, stage: Stage[Any], run: Callable[[], None]) -> None:
    """Run a stage in this process, and note how it ends."""
    with noted(settings, stage):
        run()


def run_script(script: str, arguments: list[str]) -> None:
    """Run a job's script as its own command would; it joins the open session, and leaves it open."""
    sys.argv = [script, *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def train_beside(settings: Settings, passed: list[str], stage: str) -> None:
    """Train in a process of its own, whose messages go to a log of its own; exits with its code if it fails."""
    log = Path(settings.layout.logs) / f"{stage}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stderr:
        code = subprocess.run(train_command(passed, stage), stderr=stderr, env=environment(), check=False).returncode
    if code:
        print(f"  messages of the trainer: {log}", flush=True)
        sys.exit(code if code > 0 else EXIT_FAILED)


def main() -> None:
    """Run the stages that the command line names."""
    parser = settings_parser("one_session", __doc__)
    parser.add_argument("--stages", required=True, help="names of stages, with commas between them")
    parser.add_argument("--prepare", default="", help="job script that makes the input tables first")
    arguments = parser.parse_args()
    with exit_code_of_errors():
        settings = settings_of(arguments)
        spark = open_session("itemsage", settings.warehouse)
        try:
            steps = steps_of(spark, settings, arguments.stages.split(","), passed_on(arguments), arguments.prepare)
            for number, (name, run) in enumerate(steps, 1):
                print(f"[{number}/{len(steps)}] {name}", flush=True)
                started = time.monotonic()
                with task_bar(spark, name):
                    run()
                print(f"  done in {time.monotonic() - started:.0f} s", flush=True)
        finally:
            spark.stop()


if __name__ == "__main__":
    main()
