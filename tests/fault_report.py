"""What `make faults` prints: one line a fault, with what became of it when a test injected it."""

from __future__ import annotations

from collections import Counter

import pytest

OUTCOMES = ("recovered", "refused")
"""What a test may promise: the result is right all the same, or the run ends loudly with the cause and the cure."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Send what each test's marker says with its report, also from another process."""
    for item in items:
        for marker in item.iter_markers("fault"):
            fault, outcome, injected = marker.args
            assert outcome in OUTCOMES, f"{item.nodeid}: {outcome}"
            item.user_properties.append(("fault", f"{fault}\t{outcome}\t{injected}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the faults, if the run was asked for them alone."""
    if config.option.markexpr != "fault":
        return
    lines: Counter[str] = Counter()
    held = 0
    for kind in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(kind, []):
            if kind == "passed" and report.when != "call":
                continue
            for fault, outcome, injected in (
                value.split("\t") for name, value in report.user_properties if name == "fault"
            ):
                held += kind == "passed"
                verdict = outcome if kind == "passed" else f"NOT {outcome} ({kind})"
                lines[f"{fault:8} {verdict:12} {injected}"] += 1
    terminalreporter.section("faults")
    for line, count in sorted(lines.items()):
        terminalreporter.write_line(line + (f" ({count} ways)" if count > 1 else ""))
    silent = sum(lines.values()) - held
    terminalreporter.write_line(
        f"{len(lines)} faults, injected in {sum(lines.values())} ways: {silent} silent or not handled"
    )
