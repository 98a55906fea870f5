"""The harness of the benchmarks: turns, ratios, verdicts, and that a failure is never mistaken for a success."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as everything
from benchmarks.contest import CannotRun, Contender, Outcome, Performance, Row, compete, judge, repeat, require
from benchmarks.report import Options, print_rows, read_rows, write_rows
from benchmarks.spark_tables import task_seconds, worst_straggler

ROOT = Path(__file__).resolve().parents[2]


def ticking(log: Path, name: str, seconds: float) -> Any:
    """A contender that says which turn it had and when, and needs more for the first."""
    turns = 0

    def turn() -> dict[str, Any]:
        nonlocal turns
        turns += 1
        with log.open("a") as file:
            file.write(f"{name}{turns} ")
        return {"units": 2, "seconds": seconds * (100 if turns == 1 else turns), "process": os.getpid()}

    return turn


def hoarding(megabytes: int) -> Any:
    def turn() -> dict[str, Any]:
        # Gone at once: a look now and then would miss it.
        bytearray(os.urandom(1 << 10)) * (megabytes << 10)
        return {}

    return turn


def absent() -> Any:
    raise CannotRun("there is none here")


def broken() -> Any:
    def turn() -> dict[str, Any]:
        raise ValueError("a cause of its own")

    return turn


def test_contenders_alternate_in_processes_of_their_own_and_the_first_round_is_dropped(tmp_path: Path):
    log = tmp_path / "log"
    outcome = compete([Contender("a", ticking, (log, "a", 1.0)), Contender("b", ticking, (log, "b", 3.0))], 4)
    assert log.read_text() == "a1 b1 a2 b2 a3 b3 a4 b4 "
    assert outcome.performances["a"].seconds == [1.0, 1.5, 2.0]
    assert outcome.ratios("a", "b") == [3.0, 3.0, 3.0]
    assert outcome.fastest(["a", "b"]) == "a"
    processes = {turn["process"] for performance in outcome.performances.values() for turn in performance.figures}
    assert len(processes | {os.getpid()}) == 3


def test_a_single_round_counts():
    outcome = compete([Contender("only", hoarding, (1,))], 1)
    assert len(outcome.performances["only"].seconds) == 1


def test_peak_memory_is_each_contenders_own():
    outcome = compete([Contender("modest", hoarding, (1,)), Contender("greedy", hoarding, (200,))], 1)
    modest, greedy = (outcome.performances[name].peak_bytes for name in ("modest", "greedy"))
    assert 190e6 < greedy - modest < 260e6


def test_who_cannot_run_is_named_and_the_others_go_on():
    outcome = compete([Contender("absent", absent), Contender("there", hoarding, (1,))], 2)
    assert outcome.absent == {"absent": "there is none here"}
    assert list(outcome.performances) == ["there"]


def test_a_failing_contender_stops_the_contest_with_its_own_words():
    with pytest.raises(RuntimeError, match=r"(?s)broken: .*a cause of its own"):
        compete([Contender("broken", broken)], 1)


def test_ratios_are_taken_within_a_round():
    # A slow moment hits both: every ratio is 2, though the times differ tenfold.
    performances = {"a": Performance([1.0, 10.0]), "b": Performance([2.0, 20.0])}
    assert Outcome(performances, {}).ratios("a", "b") == [2.0, 2.0]


@pytest.mark.parametrize(
    ("values", "bars", "held"),
    [
        ([14.0, 16.0, 15.0], {"at_least": 15}, True),
        ([14.0, 90.0, 14.9], {"at_least": 15}, False),
        ([1.3, 1.0, 9.0], {"at_most": 1.3}, True),
        ([1.4, 1.4, 1.0], {"at_most": 1.3}, False),
        ([5.0], {}, None),
    ],
)
def test_the_median_is_held_against_the_bar(values: list[float], bars: dict[str, float], held: bool | None):
    row = judge("1", "what", "whom", values, **bars)
    assert row.held is held
    assert (row.minimum, row.maximum) == (min(values), max(values))


def test_a_condition_that_does_not_hold_stops_the_benchmark():
    require(True, "fine")
    with pytest.raises(AssertionError, match="differs"):
        require(False, "differs")


def test_repeat_counts_units_until_the_time_has_passed():
    figures = repeat(lambda: time.sleep(0.01), 5, 0.05)
    assert figures["units"] % 5 == 0
    assert 5 <= figures["units"] <= 25
    assert figures["seconds"] >= 0.05


def test_a_straggler_is_found_in_the_worst_stage_that_matters():
    stages = {0: [1.0, 1.0, 4.0], 1: [0.001, 0.001, 0.1], 2: [9.0, 1.0], 3: [2.0, 2.0, 2.0]}
    worst, stage = worst_straggler(stages, 0.2)
    assert worst == 4.0
    assert stage.startswith("stage 0: 3 tasks")
    assert worst_straggler({}, 0.2)[0] == 1.0


def test_rows_survive_the_way_through_json(tmp_path: Path):
    rows = [judge("1", "what", "whom", [2.0], at_least=1), Row("2", "b", "", None, None, None, "", None, "no GPU")]
    write_rows(tmp_path / "rows.json", rows, {"machine": {"cores": 2}})
    assert read_rows(tmp_path / "rows.json") == rows
    assert json.loads((tmp_path / "rows.json").read_text())["machine"] == {"cores": 2}
    assert read_rows(tmp_path / "none.json") == []


def test_the_table_says_what_held_and_what_did_not_run(capsys: pytest.CaptureFixture[str]):
    print_rows(
        [
            judge("1", "good", "x", [2.0], at_least=1),
            judge("2", "bad", "x", [2.0], at_least=3),
            judge("3", "for information", "x", [2.0]),
            Row("4", "elsewhere", "x", None, None, None, "", None, "no GPU"),
            Row("5", "crashed", "", None, None, None, "", False, "failed with exit code 1"),
        ]
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert [line.split("  ")[-1].split()[-1] for line in lines] == ["yes", "no", "-", "run", "no"]


@pytest.mark.parametrize(
    ("reported", "reason", "missing"),
    [
        ([], "failed with exit code 1", ["1", "2"]),
        (["1"], "failed with exit code 1", ["2"]),
        (["1", "2"], "failed with exit code 1", ["2"]),
        (["1"], "", ["2"]),
        (["1", "2"], "", []),
    ],
)
def test_rows_that_a_failed_benchmark_owes_are_not_held(reported: list[str], reason: str, missing: list[str]):
    rows = [judge(number, "what", "whom", [99.0], at_least=1) for number in reported]
    owed = everything.missing_rows("encoder", rows, reason)
    assert [row.row for row in owed] == missing
    assert all(row.held is False and row.why for row in owed)


def test_a_benchmark_that_crashes_is_reported_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(everything.BENCHMARKS, "no_such_benchmark", ("1",))
    (row,) = everything.run_benchmark("no_such_benchmark", [])
    assert row.held is False
    assert "exit code 1" in row.why


def test_every_script_of_the_table_exists_and_every_row_has_one():
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert everything.BENCHMARKS.keys() <= scripts
    numbers = [number for owed in everything.BENCHMARKS.values() for number in owed]
    assert numbers == [*map(str, range(1, 12)), "push", "graph", "pictures", "texts", "gpu"]


def test_small_sizes_are_for_trying_out(tmp_path: Path):
    assert Options(0, small=True, scratch=tmp_path).choose(100, 1) == 1
    assert Options(0, small=False, scratch=tmp_path).choose(100, 1) == 100


def test_a_task_takes_its_run_time_less_garbage_collection(tmp_path: Path) -> None:
    tasks = [{"Executor Run Time": 900, "JVM GC Time": 400}, {"Executor Run Time": 5, "JVM GC Time": 8}, {}]
    events = [{"Event": "SparkListenerTaskEnd", "Stage ID": 3, "Task Metrics": metrics} for metrics in tasks]
    lines = [json.dumps(event) for event in [{"Event": "SparkListenerLogStart"}, *events]]
    (tmp_path / "log").write_text("\n".join(lines))
    assert task_seconds(tmp_path) == {3: [0.5, 0.0, 0.0]}
