"""What `make faults` prints: one line a fault, with what became of every trial.

A trial is recovered (the result is right all the same, or a rerun makes it so), loud (the run ends with an error that
names cause and cure, and what was published before stands) or silent: anything else, a defect.

A test with the marker `fault(id, outcome, injected)` is one trial of that outcome if it passes; if it fails, or is
skipped, the trial is silent. One that injects many times counts them by the fixture `trials`. Seconds to loud are the
longest time between the fault and its error: where a test measures none, the duration of the whole test.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from tests.fault_rows import NOT_INJECTED, ROWS

OUTCOMES = ("recovered", "loud")


@dataclass
class Trials:
    """Trials of one fault, or of all tests that inject it.

    Attributes:
        recovered, loud, silent: How many ended so.
        seconds: The longest time to loud.
    """

    recovered: int = 0
    loud: int = 0
    silent: int = 0
    seconds: float = 0.0
    why: list[str] = field(default_factory=list)

    def add(self, *, recovered: int = 0, loud: int = 0, silent: int = 0, seconds: float = 0.0) -> None:
        """Count trials; `seconds` is the longest time to loud among them."""
        self.recovered, self.loud, self.silent = self.recovered + recovered, self.loud + loud, self.silent + silent
        self.seconds = max(self.seconds, seconds)

    @property
    def verdict(self) -> str:
        """The worst outcome of any trial."""
        return "silent" if self.silent else "loud" if self.loud else "recovered"

    def __str__(self) -> str:
        counts = (self.recovered + self.loud + self.silent, self.recovered, self.loud, self.silent)
        seconds = f"{self.seconds:10.2f}" if self.loud else f"{'-':>10}"
        return "".join(f"{count:10}" for count in counts) + seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many random kills the sweeps make."""
    parser.addoption("--kills", type=int, default=10, help="random kills of each crash sweep; make faults: 200")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How many random kills a sweep makes."""
    count: int = request.config.getoption("--kills")
    return count


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Trials:
    """Counts the trials of a test that injects its fault more than once, in the place of the marker's one."""
    found = Trials()
    # Before the test's report is made, which copies them: a fixture's end comes after that.
    properties = request.node.user_properties
    place = len(properties)
    properties.append(("trials", ""))
    add = found.add

    def noting(**counts: Any) -> None:
        add(**counts)
        properties[place] = ("trials", json.dumps(asdict(found)))

    found.add = noting  # type: ignore[method-assign]
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Send what each test's marker says with its report, also from another process; leave out what takes long."""
    if is_whole(config) and config.option.markexpr != "fault":
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    for item in items:
        for marker in item.iter_markers("fault"):
            fault, outcome, injected = marker.args
            assert outcome in OUTCOMES, f"{item.nodeid}: {outcome}"
            item.user_properties.append(("fault", f"{fault}\t{outcome}\t{injected}"))


def is_whole(config: pytest.Config) -> bool:
    """Whether nobody has asked for some tests by name."""
    return config.args_source == pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword


def count_trials(kind: str, report: Any) -> list[tuple[str, str, Trials]]:
    """Id, what was injected, and the trials that one test's report tells of.

    Args:
        kind: passed, failed, error or skipped.
        report: Of pytest.
    """
    values = [text.split("\t") for name, text in report.user_properties if name == "fault"]
    counted = next((json.loads(text) for name, text in report.user_properties if name == "trials" and text), None)
    if not values and kind in ("failed", "error"):
        values = [["?", "loud", report.nodeid]]
    found = []
    for fault, outcome, injected in values:
        trials = Trials(**counted) if counted else Trials()
        if kind != "passed":
            trials.silent = max(trials.silent, 1)
            trials.why.append(f"{kind}: {report.nodeid} {_reason(report) if kind == 'skipped' else ''}".rstrip())
        elif not counted:
            trials.add(**{outcome: 1}, seconds=report.duration)
        found.append((fault, injected, trials))
    return found


def _reason(report: Any) -> str:
    return f"({report.longrepr[2]})" if isinstance(report.longrepr, tuple) else ""


def lines_of(found: dict[tuple[str, str], Trials], *, is_whole: bool) -> list[str]:
    """The report: a line a fault, what is not injected and why, and the sums.

    Args:
        found: Id and what was injected -> its trials.
        is_whole: Whether all tests ran, so that a row without a trial is a defect.
    """
    if is_whole:
        for missing in sorted(ROWS.keys() - {fault for fault, _ in found}):
            found[missing, ROWS[missing]] = Trials(silent=1, why=["no test injects it"])
    lines = [f"{'id':8}" + "".join(f"{name:>10}" for name in ("trials", "recovered", "loud", "silent", "s to loud"))]
    for (fault, injected), trials in sorted(found.items(), key=lambda entry: _order(entry[0])):
        lines.append(f"{fault:8}{trials}  {injected}")
        lines += [f"{'':8}{'':50}  {why}" for why in trials.why]
    lines += ["", "not injected, and held by nobody:"]
    lines += [f"{row:8}{reason}" for row, reason in NOT_INJECTED.items()]
    verdicts = [trials.verdict for trials in found.values()]
    sums = ", ".join(f"{verdicts.count(name)} {name}" for name in (*OUTCOMES, "silent"))
    return [*lines, f"{len(verdicts)} faults, {sums}"]


def _order(entry: tuple[str, str]) -> tuple[bool, str, int, str]:
    """The rows of the tables first, A2 before A10."""
    fault, injected = entry
    return fault not in ROWS, fault[:1], int(fault[1:]) if fault in ROWS else 0, f"{fault} {injected}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the faults, if the run was asked for them alone."""
    if config.option.markexpr != "fault" or config.option.collectonly:
        return
    found: dict[tuple[str, str], Trials] = {}
    for kind in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(kind, []):
            if kind == "passed" and report.when != "call":
                continue
            for fault, injected, trials in count_trials(kind, report):
                of_fault = found.setdefault((fault, injected), Trials())
                of_fault.add(recovered=trials.recovered, loud=trials.loud, silent=trials.silent, seconds=trials.seconds)
                of_fault.why += trials.why
    terminalreporter.section("faults")
    for line in lines_of(found, is_whole=is_whole(config)):
        terminalreporter.write_line(line)
