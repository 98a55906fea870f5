"""What a benchmark prints and leaves behind: tables of contenders, rows of verdicts, facts of the machine."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.contest import Outcome, Row


@dataclass(frozen=True)
class Options:
    """How a benchmark was asked to run.

    Attributes:
        rounds: Rounds, the first included; 0 = as the benchmark thinks best.
        small: Sizes for trying it out; its figures mean nothing.
        scratch: An empty folder, removed afterwards.
    """

    rounds: int
    small: bool
    scratch: Path

    def choose(self, full: int, small: int) -> int:
        """A size: the one that counts, or the one for trying out."""
        return small if self.small else full


def main(module: str) -> None:
    """Run one benchmark: its `rows` are printed as they come and kept in the file that --json names.

    Args:
        module: The benchmark by its full name. It is imported under that name, so that what it hands to other
            processes can be found there.
    """
    benchmark = importlib.import_module(module)
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=0, help="rounds, the first included, which is dropped")
    parser.add_argument("--small", action="store_true", help="sizes for trying it out")
    parser.add_argument("--json", default="", help="file for the rows")
    arguments = parser.parse_args()
    rows: Callable[[Options], Iterator[Row]] = benchmark.rows
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="itemsage-bench-") as scratch:
        for row in rows(Options(arguments.rounds, arguments.small, Path(scratch))):
            found.append(row)
            if arguments.json:
                write_rows(Path(arguments.json), found, {})
    print_rows(found)


def write_rows(path: Path, rows: list[Row], facts: dict[str, object]) -> None:
    """Write rows, and facts beside them, as JSON."""
    path.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=2) + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of `write_rows`; none where there is no file."""
    if not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def print_outcome(title: str, unit: str, outcome: Outcome) -> None:
    """One line a contender: median, fastest and slowest counted round, and peak memory."""
    rounds = max((len(performance.seconds) for performance in outcome.performances.values()), default=0)
    print(f"\n{title} ({rounds} rounds)")
    print(f"  {'contender':<38}{unit + '/s':>12}{'slowest':>12}{'fastest':>12}{'peak MB':>10}")
    for name, performance in outcome.performances.items():
        rates = [1 / seconds for seconds in performance.seconds]
        cells = (f"{rate:>12,.1f}" for rate in (statistics.median(rates), min(rates), max(rates)))
        print(f"  {name:<38}{''.join(cells)}{performance.peak_bytes / 1e6:>10,.0f}")
    for name, reason in outcome.absent.items():
        print(f"  {name:<38}not run: {reason}")
    print(end="", flush=True)


def print_rows(rows: list[Row]) -> None:
    """The final table: row, what against what, ratio, bar, held or not."""
    print(f"\n{'row':<10}{'what':<50}{'ratio':>9}{'min':>9}{'max':>9}  {'bar':<10}held")
    for row in rows:
        numbers = (row.median, row.minimum, row.maximum)
        cells = (f"{number:>9.2f}" if number is not None else f"{'-':>9}" for number in numbers)
        verdict = {True: "yes", False: "no", None: "not run" if row.median is None else "-"}[row.held]
        print(f"{row.row:<10}{row.name:<50}{''.join(cells)}  {row.bar or '-':<10}{verdict}")
        if row.against or row.why:
            notes = (f"against {row.against}" if row.against else "", row.why)
            print(f"{'':<10}  " + "; ".join(note for note in notes if note))
    print(end="", flush=True)


def machine() -> dict[str, object]:
    """What one must know of a machine to read the figures."""
    facts: dict[str, object] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
