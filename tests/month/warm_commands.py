"""Runs the project's commands one after another in one process, so that Java and Python start once for many of them.

Submitted to Spark like the project's own scripts. Each command is what `sys.argv` would be, and goes through the `main`
of its script: only the session stays open between commands, and what a front door or a stage starts as a process of its
own runs in this one. `tests/month/scheduler.py` kills it, with Java and all, like any other command.

    spark-submit --properties-file spark-defaults.conf tests/month/warm_commands.py FOLDER

FOLDER/ready says that it is; FOLDER/<number>.command holds a command as JSON; FOLDER/<number>.exit_code is written when
it has ended.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from pyspark.sql import SparkSession

from itemsage_model import train
from jobs import maintain_tables
from jobs.runtime.session import open_session
from pipeline import cli, one_session
from schemas.errors import EXIT_FAILED
from schemas.lease import VARIABLE
from schemas.settings import WarehouseSettings

MAINS = {
    "pipeline/one_session.py": one_session.main,
    "pipeline.cli": cli.main,
    "jobs/maintain_tables.py": maintain_tables.main,
}


def run(command: list[str]) -> int:
    """Run one command; returns its exit code."""
    before = dict(os.environ)
    sys.argv = command
    try:
        MAINS[command[0]]()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_FAILED if end.code else 0
    finally:
        os.environ.pop(VARIABLE, None)
        os.environ.update(before)
    return 0


def _run_stages(_: Path, stages: list[str], passed: list[str], __: str = "") -> None:
    sys.argv = ["pipeline/one_session.py", *passed, "--stages", ",".join(stages)]
    one_session.main()


def _train(_: object, passed: list[str], __: str) -> None:
    sys.argv = ["itemsage_model.train", *passed]
    train.main()


def main() -> None:
    """Take commands until killed."""
    cli.run_stages, one_session.train_beside = _run_stages, _train
    SparkSession.stop = lambda _: None  # type: ignore[method-assign]
    open_session("warm commands", WarehouseSettings(uri="."))
    folder, number = Path(sys.argv[1]), 0
    (folder / "ready").touch()
    while True:
        asked, said = folder / f"{number}.command", folder / f"{number}.exit_code"
        if not asked.exists():
            time.sleep(0.01)
            continue
        code = run(json.loads(asked.read_text()))
        said.with_suffix(".part").write_text(str(code))
        said.with_suffix(".part").replace(said)
        number += 1


if __name__ == "__main__":
    main()
