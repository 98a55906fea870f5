"""Run every benchmark, one after another, each as a process of its own, and end with one table.

    python -m benchmarks [--only encoder --only hash_tables] [--rounds N] [--small]

Writes bench-results.json into the working directory. Exit code 1 where a benchmark failed to run, else 0: whether a
bar was held is what the table says.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.contest import Row
from benchmarks.report import machine, print_rows, read_rows, write_rows

BENCHMARKS = {
    "encoder": ("1", "2"),
    "training_step": ("3",),
    "training_input": ("4",),
    "score_catalog": ("5",),
    "item_features": ("6",),
    "skew": ("7",),
    "growth": ("8",),
    "hash_tables": ("9",),
    "index": ("10", "11"),
    "push": ("push",),
    "graph": ("graph",),
    "pictures": ("pictures",),
    "search_texts": ("texts",),
    "gpu_training": ("gpu",),
}
"""Each script, and the rows of the table it is for."""

RESULTS = Path("bench-results.json")
MOST_SECONDS = 2400


def run_benchmark(name: str, arguments: list[str], most_seconds: float = MOST_SECONDS) -> list[Row]:
    """Run one benchmark to its end, or to its deadline; a row that it did not reach is one that is not held.

    Args:
        name: The script.
        arguments: What to pass on.
        most_seconds: When to give up.
    """
    with tempfile.TemporaryDirectory(prefix="itemsage-bench-") as folder:
        results = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--json", str(results)]
        # deltalake warns of every binary column of every file that it keeps no statistics of it.
        environment = os.environ | {"RUST_LOG": os.environ.get("RUST_LOG", "error")}
        # A group of its own, so that nothing it started outlives it.
        process = subprocess.Popen(command, start_new_session=True, env=environment)
        try:
            code = process.wait(most_seconds)
            reason = f"failed with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            reason = f"not done after {most_seconds:.0f} s"
        finally:
            _end_group(process.pid)
            process.wait()
        rows = read_rows(results)
    return rows + missing_rows(name, rows, reason)


def missing_rows(name: str, rows: list[Row], reason: str) -> list[Row]:
    """The rows that a benchmark owes: those it never reported, and where it failed, at least one that says so."""
    reported = {row.row for row in rows}
    owed = [number for number in BENCHMARKS[name] if number not in reported]
    if reason and not owed:
        owed = [BENCHMARKS[name][-1]]
    why = reason or "reported nothing"
    return [Row(number, f"benchmarks.{name}", "", None, None, None, "", False, why) for number in owed]


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def main() -> None:
    """Parse, run, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], choices=list(BENCHMARKS), help="repeatable")
    parser.add_argument("--rounds", type=int, default=0, help="of every benchmark; 0 = as each thinks best")
    parser.add_argument("--small", action="store_true", help="sizes for trying it out; the figures mean nothing")
    arguments = parser.parse_args()
    passed = ["--rounds", str(arguments.rounds), *(["--small"] if arguments.small else [])]
    started = time.monotonic()
    facts: dict[str, object] = {"machine": machine(), "small": arguments.small, "seconds": {}}
    seconds: dict[str, float] = {}
    rows: list[Row] = []
    for name in arguments.only or BENCHMARKS:
        print(f"\n== {name}", flush=True)
        begun = time.monotonic()
        rows += run_benchmark(name, passed)
        seconds[name] = round(time.monotonic() - begun, 1)
        write_rows(RESULTS, rows, {**facts, "seconds": seconds})
    described = ", ".join(f"{name} {fact}" for name, fact in machine().items())
    print(f"\n{described}; {time.monotonic() - started:.0f} s in all; {RESULTS}")
    print_rows(rows)
    sys.exit(1 if any(row.held is False and row.median is None for row in rows) else 0)


if __name__ == "__main__":
    main()
