"""Every known fault is injected by a test, and the report of `make faults` counts what became of it."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fault_report import Trials, count_trials, lines_of
from tests.fault_rows import NOT_INJECTED, ROWS


def marked() -> set[str]:
    """The ids that markers in the tests' code name."""
    trees = (ast.parse(path.read_text()) for path in Path(__file__).parent.rglob("*.py"))
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        call.args[0].value
        for call in calls
        if ast.unparse(call.func) == "pytest.mark.fault" and isinstance(call.args[0], ast.Constant)
    }


def test_every_row_is_injected() -> None:
    assert ROWS.keys() - marked() == set()
    assert NOT_INJECTED.keys() <= ROWS.keys()


def report(*properties: tuple[str, str], duration: float = 2.0) -> Any:
    return SimpleNamespace(user_properties=list(properties), duration=duration, nodeid="t.py::t", longrepr=("", 1, "x"))


LOUD, COUNTED = ("fault", "A2\tloud\ta table"), ("trials", '{"recovered": 3, "loud": 2, "silent": 0, "seconds": 0.5}')


@pytest.mark.parametrize(
    ("kind", "properties", "expected"),
    [
        ("passed", [LOUD], (0, 1, 0, 2.0)),
        ("passed", [("fault", "A2\trecovered\ta table")], (1, 0, 0, 2.0)),
        ("passed", [LOUD, COUNTED], (3, 2, 0, 0.5)),
        ("failed", [LOUD], (0, 0, 1, 0.0)),
        ("failed", [LOUD, COUNTED], (3, 2, 1, 0.5)),
        ("skipped", [LOUD], (0, 0, 1, 0.0)),
        ("error", [LOUD], (0, 0, 1, 0.0)),
        ("failed", [], (0, 0, 1, 0.0)),
    ],
)
def test_what_fails_or_is_skipped_is_silent(
    kind: str, properties: list[tuple[str, str]], expected: tuple[int, int, int, float]
) -> None:
    [(_, _, trials)] = count_trials(kind, report(*properties))
    assert (trials.recovered, trials.loud, trials.silent, trials.seconds) == expected


def test_a_row_without_a_trial_is_silent_and_the_sums_are_of_faults() -> None:
    every = {(row, "injected"): Trials(recovered=2) for row in ROWS}
    assert lines_of(dict(every), is_whole=True)[-1] == f"{len(ROWS)} faults, {len(ROWS)} recovered, 0 loud, 0 silent"
    del every["A2", "injected"]
    every["S1", "a port"] = Trials(recovered=1, loud=1, seconds=0.25)
    lines = lines_of(dict(every), is_whole=True)
    assert lines[-1] == f"{len(ROWS) + 1} faults, {len(ROWS) - 1} recovered, 1 loud, 1 silent"
    assert any(line.split()[:6] == ["A2", "1", "0", "0", "1", "-"] for line in lines)
    assert any(line.split()[:6] == ["S1", "2", "1", "1", "0", "0.25"] for line in lines)
    assert lines_of(dict(every), is_whole=False)[-1].endswith("1 loud, 0 silent")
    ids = [line.split()[0] for line in lines if line.startswith("A")]
    assert ids[:15] == [f"A{number}" for number in range(1, 16)]
