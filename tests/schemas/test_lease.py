"""Who writes a warehouse: one winner, named; whoever lost its lease, or its run, commits nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from schemas import lease
from schemas.errors import InputError
from schemas.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from schemas.lease import hold, require_held
from schemas.warehouse import Warehouse
with hold(Warehouse(sys.argv[1]), sys.argv[2], sys.argv[3]) as lease:
    print(lease.passed_on, flush=True)
    sys.stdin.readline()
    require_held()
    print("committed", flush=True)
"""


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(f"{tmp_path}/shop")


def start(warehouse: Warehouse, work: str, as_of: str = "2026-03-01", **environment: str) -> subprocess.Popen[str]:
    """Another process that holds the warehouse until it is sent a line, and then commits."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, warehouse.uri, work, as_of], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment,
    )  # fmt: skip


def holders(warehouse: Warehouse) -> list[str]:
    return [holder["work"] for holder in json.loads(Path(warehouse.lease).read_text())["holders"]]


@pytest.mark.fault("F1", "loud", "a second whole run, of another date, on a warehouse that one is writing")
def test_of_two_runs_one_wins_and_the_other_says_who_has_it(warehouse: Warehouse) -> None:
    with start(warehouse, lease.WHOLE_RUN) as first:
        assert first.stdout
        assert first.stdout.readline()
        for work, date in ((lease.WHOLE_RUN, "2026-02-27"), ("score_catalog", "2026-03-01")):
            with (
                pytest.raises(
                    lease.LeaseError, match=rf"found itemsage run of 2026-03-01, process {first.pid} on \S+, "
                ),
                lease.hold(warehouse, work, date),
            ):
                pass
        assert "committed" in first.communicate("\n")[0]
    assert holders(warehouse) == []
    with lease.hold(warehouse, lease.WHOLE_RUN, "2026-02-27"):
        assert holders(warehouse) == [lease.WHOLE_RUN]


def test_different_stages_of_one_date_may_run_side_by_side(warehouse: Warehouse) -> None:
    with lease.hold(warehouse, "embed_queries", "d"), lease.hold(warehouse, "build_vocabulary", "d"):
        assert holders(warehouse) == ["embed_queries", "build_vocabulary"]
        for work, date in (("embed_queries", "d"), ("train", "another"), (lease.WHOLE_RUN, "d")):
            with pytest.raises(lease.LeaseError), lease.hold(warehouse, work, date):
                pass
        lease.require_held()
    lease.require_held()


def test_a_generation_rises_with_every_lease(warehouse: Warehouse) -> None:
    for generation in (1, 2, 3):
        with lease.hold(warehouse, "train", "d"):
            assert json.loads(Path(warehouse.lease).read_text())["generation"] == generation


@pytest.mark.fault("B3", "recovered", "kill -9 of the run that holds the warehouse; another begins at once")
def test_a_killed_run_does_not_keep_the_warehouse(warehouse: Warehouse) -> None:
    with start(warehouse, lease.WHOLE_RUN) as killed:
        assert killed.stdout
        assert killed.stdout.readline()
        killed.kill()
        # Not waited for: a process that has ended and that nobody has asked for is gone too.
        wait_for(lambda: Path(f"/proc/{killed.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        with lease.hold(warehouse, lease.WHOLE_RUN, "d"):
            assert holders(warehouse) == [lease.WHOLE_RUN]


@pytest.mark.fault("B3", "loud", "kill -9 of a whole run; the stage that it leaves behind is about to commit")
def test_an_orphan_does_not_commit(warehouse: Warehouse) -> None:
    with start(warehouse, lease.WHOLE_RUN) as run:
        assert run.stdout
        passed_on = run.stdout.readline().strip()
        with start(warehouse, "train", **{lease.VARIABLE: passed_on}) as stage:
            assert stage.stdout
            assert stage.stdout.readline().strip() == passed_on
            run.kill()
            run.wait()
            output, errors = stage.communicate("\n")
    assert "committed" not in output
    assert "LeaseError" in errors
    assert f"expected itemsage run of 2026-03-01, process {run.pid}" in errors
    assert "left this stage behind. Nothing was committed" in errors


@pytest.mark.fault("B3", "loud", "a run that was stopped, and taken for dead, goes on after another took its place")
def test_a_zombie_does_not_commit(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease.hold(warehouse, lease.WHOLE_RUN, "2026-03-01"):
        with monkeypatch.context() as patch:
            patch.setattr(lease.Holder, "is_alive", property(lambda holder: False))
            newer = lease._acquire(warehouse, lease.WHOLE_RUN, "2026-03-02")
        with pytest.raises(lease.LeaseError, match=r"found that of itemsage run of 2026-03-02, .*\(lease 2\)"):
            lease.require_held()
        newer.require()
    newer.require()


def test_a_stage_joins_the_run_that_started_it_and_no_other_warehouses(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with lease.hold(warehouse, lease.WHOLE_RUN, "d") as run:
        monkeypatch.setenv(lease.VARIABLE, run.passed_on)
        with lease.hold(warehouse, "train", "d") as joined:
            assert joined.token == run.token
        assert holders(warehouse) == [lease.WHOLE_RUN]
        with lease.hold(Warehouse(f"{tmp_path}/another"), "train", "d") as own:
            assert own.token != run.token


def test_a_holder_elsewhere_counts_as_gone_when_its_heartbeat_stops(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_HEARTBEAT_SECONDS", 0.01)
    with lease.hold(warehouse, "train", "d"):
        first = lease._read(warehouse)[1][0]
        wait_for(lambda: lease._read(warehouse)[1][0].heartbeat > first.heartbeat)
    elsewhere = replace(first, machine="another")
    assert replace(elsewhere, heartbeat=time.time()).is_alive
    assert not replace(elsewhere, heartbeat=time.time() - 301).is_alive


def test_a_process_with_the_number_of_another_is_not_that_one(warehouse: Warehouse) -> None:
    with lease.hold(warehouse, "train", "d"):
        [mine] = lease._read(warehouse)[1]
    assert mine.is_alive
    assert not replace(mine, process_start="1").is_alive
    assert not replace(mine, pid=2**22 + 1).is_alive


def test_a_damaged_lease_is_named(warehouse: Warehouse) -> None:
    with lease.hold(warehouse, "train", "d"):
        pass
    Path(warehouse.lease).write_text("{")
    with pytest.raises(InputError, match=r"lease, \S+/_runs/lease: .*remove the file"), lease.hold(warehouse, "x", "d"):
        pass


def wait_for(holds: object) -> None:
    deadline = time.monotonic() + 20
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_gives_the_lease_back(warehouse: Warehouse) -> None:
    with start(warehouse, lease.WHOLE_RUN) as run:
        assert run.stdout
        assert run.stdout.readline()
        run.send_signal(signal.SIGINT)
        run.communicate()
    assert holders(warehouse) == []
