"""A scheduler: runs the project's commands, acts on their exit codes as docs/runbook.md says, and is unlucky.

At random times the machine kills a command with all that it has started (SIGKILL), and starts it again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import commands
from schemas.errors import EXIT_FAILED
from schemas.stages import BUILD_ITEM_FEATURES, EMBED_ITEMS, MAINTAIN_TABLES, PIPELINE, SCORE_CATALOG, TRAIN

DAILY = tuple(stage.name for stage in (EMBED_ITEMS, BUILD_ITEM_FEATURES, SCORE_CATALOG))
"""What is enough between two trainings (docs/guide.md, On a schedule)."""
WEEKLY = tuple(stage.name for stage in PIPELINE)
FROM_TRAINING = WEEKLY[WEEKLY.index(TRAIN.name) :]

_CONF = (
    "spark.driver.memory=2g",
    "spark.sql.shuffle.partitions=1",
    "spark.sql.adaptive.enabled=false",
    "spark.databricks.delta.snapshotPartitions=1",
    # On a handful of rows, compiling a plan takes longer than interpreting it.
    "spark.sql.codegen.wholeStage=false",
    "spark.sql.codegen.factoryMode=NO_CODEGEN",
)
SUBMIT = " ".join(f"--conf {one}" for one in _CONF)
"""ITEMSAGE_SPARK_SUBMIT, which whoever starts commands sets."""

_TRIES = 8
_PATIENCE = 600.0


@dataclass(frozen=True)
class Finished:
    """A command that has ended by itself.

    Attributes:
        settings: Its settings file.
        stages: What it was to run.
        as_of: For which logical date.
        code: Its exit code.
        began: Seconds since 1970.
        ended: Seconds since 1970.
    """

    settings: Path
    stages: tuple[str, ...]
    as_of: str
    code: int
    began: float
    ended: float


@dataclass
class Scheduler:
    """Commands on one warehouse.

    Attributes:
        folder: For logs and Spark's own files.
        settings: The settings file.
        draw: When to kill.
        kills: How many of the next tries are killed; one that has ended before is not counted.
        is_warm: Whether commands are run by `warm_commands.py`, which spares them the start of Java.
        finished: The commands that ended by themselves, in order.
        killed: For each that was killed what it was to run, and after how many seconds.
    """

    folder: Path
    settings: Path
    draw: random.Random = field(default_factory=random.Random)
    kills: int = 0
    is_warm: bool = True
    finished: list[Finished] = field(default_factory=list)
    killed: list[tuple[str, float]] = field(default_factory=list)
    _usual: dict[str, float] = field(default_factory=dict)
    _warm: subprocess.Popen[bytes] | None = None
    _asked: int = 0
    _hosts: int = 0

    def daily(self, as_of: str, *sets: str) -> int:
        """New and changed items with the model of before; returns the exit code that is final."""
        arguments = self._of("pipeline/one_session.py", as_of, sets, "--stages", ",".join(DAILY))
        return self._until_final(arguments, DAILY, as_of)

    def weekly(self, as_of: str, *sets: str) -> int:
        """Everything anew; returns the exit code that is final."""
        return self._until_final(self._of("pipeline.cli", as_of, sets, command="run"), WEEKLY, as_of)

    def from_training(self, as_of: str, *sets: str) -> int:
        """Another model on the tables of before; returns the exit code that is final."""
        arguments = self._of("pipeline.cli", as_of, sets, "--from", TRAIN.name, command="run")
        return self._until_final(arguments, FROM_TRAINING, as_of)

    def roll_back(self, as_of: str) -> int:
        """The version of before, live again; returns the exit code that is final."""
        return self._until_final(self._of("pipeline.cli", as_of, (), command="rollback"), (), as_of)

    def maintain(self, as_of: str) -> int:
        """Remove what nothing reads any more; returns the exit code that is final."""
        arguments = self._of("jobs/maintain_tables.py", as_of, ("maintenance.dry_run=false",))
        return self._until_final(arguments, (MAINTAIN_TABLES.name,), as_of)

    def close(self) -> None:
        """Leave nothing running."""
        if self._warm:
            os.killpg(self._warm.pid, signal.SIGKILL)
            self._warm.wait()
            self._warm = None

    def log(self) -> str:
        """The last lines of all commands."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-60:])

    def _of(self, script: str, as_of: str, sets: tuple[str, ...], *more: str, command: str = "") -> list[str]:
        named = (f"dates.as_of={as_of}", *sets)
        settings = ["--settings", str(self.settings), *(part for one in named for part in ("--set", one))]
        return [script, *([command] if command else []), *settings, *more]

    def _until_final(self, command: list[str], stages: tuple[str, ...], as_of: str) -> int:
        """Run a command until it is done or no retry helps: killed, or with a code that says so, it is run again."""
        for _ in range(_TRIES):
            began = time.time()
            code = self._once(command, self._when_to_kill(stages))
            ended = time.time()
            if code >= 0:
                self.finished.append(Finished(self.settings, stages, as_of, code, began, ended))
                if ended - began > 1:  # no mere repeat
                    self._usual[",".join(stages)] = ended - began
            if code >= 0 and code != EXIT_FAILED and code < 128:
                return code
        raise AssertionError(f"{command}: not done after {_TRIES} tries\n{self.log()}")

    def _when_to_kill(self, stages: tuple[str, ...]) -> float | None:
        """After how many seconds the next try is killed."""
        if not self.kills:
            return None
        return self.draw.uniform(0.05, 0.9) * self._usual.get(",".join(stages), 8.0)

    def _once(self, command: list[str], seconds: float | None) -> int:
        is_asked = self.is_warm and command[1] != "rollback"
        code = self._ask(command, seconds) if is_asked else self._start(command, seconds)
        if code < 0:
            self.kills -= 1
            self.killed.append((" ".join(command[-4:]), round(seconds or 0.0, 2)))
        return code

    def _start(self, command: list[str], seconds: float | None) -> int:
        """Run a command as a process of its own; killed after so many seconds, if it has not ended before."""
        is_script = command[0].endswith(".py")
        whole = commands.spark_submit(command[0], command[1:]) if is_script else [sys.executable, "-m", *command]
        child = self._spawn(whole)
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            return child.wait()

    def _ask(self, command: list[str], seconds: float | None) -> int:
        """The same of the process that keeps Java warm; the seconds are counted from when it is."""
        if self._warm is None:
            self._hosts, self._asked = self._hosts + 1, 0
            self._place.mkdir(parents=True)
            self._warm = self._spawn(commands.spark_submit("tests/month/warm_commands.py", [str(self._place)]))
            assert self._comes(self._place / "ready", _PATIENCE), f"no start\n{self.log()}"
        asked = self._place / f"{self._asked}.command"
        asked.with_suffix(".part").write_text(json.dumps(command))
        asked.with_suffix(".part").replace(asked)
        self._asked += 1
        said = asked.with_suffix(".exit_code")
        if self._comes(said, _PATIENCE if seconds is None else seconds):
            return int(said.read_text())
        assert seconds is not None, f"no end of {command}\n{self.log()}"
        self.close()
        return -signal.SIGKILL

    def _comes(self, file: Path, seconds: float) -> bool:
        """Whether a file of the process that keeps Java warm is there in time."""
        until = time.monotonic() + seconds
        while not file.exists():
            assert self._warm is not None
            assert self._warm.poll() is None, self.log()
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    @property
    def _place(self) -> Path:
        return self.folder / "asked" / str(self._hosts)

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        scratch = self.folder / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        environment = commands.environment() | {
            "SPARK_LOCAL_DIRS": str(scratch),
            "TMPDIR": str(scratch),
            "SPARK_SUBMIT_OPTS": f"-Djava.io.tmpdir={scratch}",
            "PYTHONPATH": str(commands.ROOT),
        }
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=commands.ROOT, env=environment,
                start_new_session=True,
            )  # fmt: skip
