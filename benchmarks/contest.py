"""Contenders taking turns, A B A B ..., each in a process of its own, so that its peak memory is its own.

One round is one turn of everybody. The first round warms up and is dropped. A ratio is taken within a round, between
turns that were neighbours in time: what else the machine does then hits both. Waiting contenders do nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil  # type: ignore[import-untyped]

Figures = dict[str, Any]
"""What a turn reports: `units` of work done; `seconds`, where not all of the turn counts; anything to check."""

Turn = Callable[[], Figures]

_SAMPLE_SECONDS = 0.5


class CannotRun(RuntimeError):  # noqa: N818 (a finding, not an error)
    """A contender cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Contender:
    """Somebody who takes turns.

    Attributes:
        name: Its name in the table.
        enter: Function of a module, called with `arguments` in the contender's own process; returns its turn.
        arguments: Plain values.
    """

    name: str
    enter: Callable[..., Turn]
    arguments: tuple[Any, ...] = ()


@dataclass
class Performance:
    """What a contender did: seconds per unit and figures of each counted round, figures of the first, peak memory."""

    seconds: list[float] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    peak_bytes: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a contest ended.

    Attributes:
        performances: Of those who ran, by name, in the order of their turns.
        absent: Why the others did not.
    """

    performances: dict[str, Performance]
    absent: dict[str, str]

    def ratios(self, ours: str, other: str) -> list[float]:
        """How many times faster `ours` was per unit, round by round."""
        pairs = zip(self.performances[ours].seconds, self.performances[other].seconds, strict=True)
        return [theirs / own for own, theirs in pairs]

    def fastest(self, names: list[str]) -> str:
        """Which of these had the lowest median time per unit."""
        return min(
            (name for name in names if name in self.performances),
            key=lambda name: statistics.median(self.performances[name].seconds),
        )


@dataclass(frozen=True)
class Row:
    """One line of the final table; `held` is None where there is no bar, or where it could not be measured."""

    row: str
    name: str
    against: str
    median: float | None
    minimum: float | None
    maximum: float | None
    bar: str
    held: bool | None
    why: str = ""


def judge(
    row: str,
    name: str,
    against: str,
    values: list[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """Hold the median of some ratios against a bar; without a bar they are for information."""
    median = statistics.median(values)
    bar, held = "", None
    if at_least is not None:
        bar, held = f">= {at_least:g}", median >= at_least
    elif at_most is not None:
        bar, held = f"<= {at_most:g}", median <= at_most
    return Row(row, name, against, median, min(values), max(values), bar, held)


def require(condition: bool, message: str) -> None:
    """Stop a benchmark whose contenders do not compute the same: its figures would mean nothing.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not condition:
        raise AssertionError(message)


def repeat(step: Callable[[], object], units: int, seconds: float = 0.5) -> Figures:
    """Take steps of `units` units until some time has passed; the figures of such a turn."""
    started, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        step()
        done += units
    return {"units": done, "seconds": passed}


def compete(contenders: list[Contender], rounds: int) -> Outcome:
    """Let the contenders take turns, dropping the first of several rounds.

    Raises:
        RuntimeError: a contender failed.
    """
    seats: dict[str, _Seat] = {}
    outcome = Outcome({}, {})
    try:
        for contender in contenders:
            try:
                seats[contender.name] = _Seat(contender)
                outcome.performances[contender.name] = Performance()
            except CannotRun as reason:
                outcome.absent[contender.name] = str(reason)
        for number in range(rounds):
            for name, seat in seats.items():
                figures = seat.take_turn()
                performance = outcome.performances[name]
                performance.peak_bytes = max(performance.peak_bytes, figures.pop("peak_bytes"))
                performance.figures.append(figures)
                if number or rounds == 1:
                    performance.seconds.append(figures["seconds"] / figures["units"])
    finally:
        for seat in seats.values():
            seat.leave()
    return outcome


class _Seat:
    """A contender's process, as the contest sees it."""

    def __init__(self, contender: Contender) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = contender.name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_attend, args=(theirs, contender))
        self._process.start()
        theirs.close()
        self._answer()

    def take_turn(self) -> Figures:
        self._pipe.send("go")
        return self._answer()

    def leave(self) -> None:
        self._pipe.close()
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()

    def _answer(self) -> Figures:
        """Wait for the contender, watching its memory: its own exact peak, or that of all its processes together."""
        peak = 0
        while not self._pipe.poll(_SAMPLE_SECONDS):
            peak = max(peak, tree_bytes(self._process.pid or 0))
        try:
            kind, figures = self._pipe.recv()
        except EOFError:
            self._process.join()
            kind, figures = "failed", f"its process ended with code {self._process.exitcode}"
        if kind == "cannot":
            raise CannotRun(figures)
        if kind == "failed":
            raise RuntimeError(f"{self._name}: {figures}")
        return {**figures, "peak_bytes": max(peak, figures.get("peak_bytes", 0))}


def tree_bytes(pid: int) -> int:
    """Resident memory of a process and of all that it started; pages they share count more than once."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it has just ended
                continue
    except psutil.Error:
        return total
    return total


def cpu_seconds() -> float:
    """CPU time of this process and of all that it started, ended or not; other work does not change it."""
    total = 0.0
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:  # it has just ended, and is counted with its parent's ended ones
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return float(total)


def peak_bytes(pid: int | str = "self") -> int:
    """The most resident memory that a process has had, where the system tells; else 0."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def _attend(pipe: Any, contender: Contender) -> None:
    """What a contender's process does: enter, then a turn each time it is told, until the pipe closes."""
    with tempfile.TemporaryFile() as log:
        # What contenders print would stand between the tables.
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            turn = contender.enter(*contender.arguments)
            pipe.send(("ready", {}))
            while True:
                try:
                    pipe.recv()
                except EOFError:
                    return
                started = time.perf_counter()
                figures = turn()
                seconds = time.perf_counter() - started
                pipe.send(("done", {"units": 1, "seconds": seconds, **figures, "peak_bytes": peak_bytes()}))
        except CannotRun as reason:
            pipe.send(("cannot", str(reason)))
        except BaseException:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 3000))
            pipe.send(("failed", f"{traceback.format_exc()}\n{log.read().decode(errors='replace')}"))
