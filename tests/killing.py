"""Acts killed at a random moment: each in a process of its own, forked from one that has imported all it needs.

The parent of these processes runs this file. It has one thread, and kills and waits for its own children, so that no
process but them can be meant. A child that is not to be killed has a deadline all the same.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_SECONDS = 60


class Killer:
    """Runs a function in a process of its own, again and again.

    Args:
        function: `<module>:<name>`; its arguments must be JSON.
        log: File for what the processes print.
    """

    def __init__(self, function: str, log: Path) -> None:
        self.log = log
        with log.open("w") as output:
            self._parent = subprocess.Popen(
                [sys.executable, "-m", "tests.killing", function], cwd=ROOT, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
        self.seed = int.from_bytes(os.urandom(4), "big")
        self._random = random.Random(self.seed)
        print(f"seed of the kills: {self.seed}")
        self._seconds = 0.0

    def run(self, *arguments: Any) -> None:
        """Run to the end; as long as the last time it took is how late a kill may come."""
        self._seconds = self.ends_with(0, *arguments)

    def ends_with(self, status: int, *arguments: Any) -> float:
        """Run to an end that is foreseen, minus a signal's number where it is one; returns the seconds."""
        found, seconds = self.ask(*arguments)
        assert found == status, f"status {found}: {self.said[-3000:]}"
        return seconds

    def kill(self, *arguments: Any, number: int = signal.SIGKILL) -> bool:
        """Run, and send a signal at a moment drawn from as long as it takes; returns whether it came in time."""
        assert self._seconds, "run it to the end first"
        status, _ = self.ask(*arguments, after=self._random.uniform(0, self._seconds), number=number)
        assert status in (0, -number, 128 + number), f"status {status}: {self.said[-3000:]}"
        return status != 0

    @property
    def said(self) -> str:
        """All that was printed."""
        return self.log.read_text()

    def ask(self, *arguments: Any, after: float | None = None, number: int = 0) -> tuple[int, float]:
        """Run, and send a signal after some seconds, if any; returns how it ended, and its seconds."""
        assert self._parent.stdin
        assert self._parent.stdout
        self._parent.stdin.write(json.dumps([arguments, after, number]) + "\n")
        self._parent.stdin.flush()
        answer = self._parent.stdout.readline()
        assert answer, self.said[-3000:]
        status, seconds = json.loads(answer)
        return status, seconds

    def close(self) -> None:
        """End the parent."""
        self._parent.communicate(timeout=DEADLINE_SECONDS)


@contextmanager
def killer(function: str, log: Path) -> Iterator[Killer]:
    """A Killer for the length of a block."""
    found = Killer(function, log)
    try:
        yield found
    finally:
        found.close()


def _child(function: Any, arguments: list[Any]) -> None:
    signal.alarm(DEADLINE_SECONDS)
    try:
        function(*arguments)
    except BaseException:
        # Where an act has limited its files, the log is one.
        resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[1:] * 2)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _main() -> None:
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an act prints is no answer
    for line in sys.stdin:
        arguments, after, number = json.loads(line)
        started = time.monotonic()
        pid = os.fork()
        if not pid:
            _child(function, arguments)
        if after is not None:
            time.sleep(after)
            os.kill(pid, number)  # not waited for yet, so the number is no other process's
        _, status = os.waitpid(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - started]), file=answers, flush=True)


if __name__ == "__main__":
    _main()
