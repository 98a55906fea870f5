"""Ranks of one machine: true exit codes, nothing left behind, no port for anybody else. Also the program they run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from itemsage_model.training import ranks
from itemsage_model.training.ranks import loopback_interface, run_ranks
from tests.sockets import off_loopback, watched

ROOT = Path(__file__).resolve().parents[3]
START = "import os, sys, time, signal\nrank = int(os.environ['RANK'])\n"


def code_of(program: str, processes: int = 2) -> int:
    return run_ranks(["-c", START + program], processes, {"settings.json": "{}"})


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("assert open(sys.argv[1] + '/settings.json').read() == '{}'", 0),
        ("sys.exit(3 if rank == 1 else 1)", 3),
        ("time.sleep(0.3 * rank); sys.exit(2 if rank == 1 else 1)", 2),
        ("sys.exit(1 if rank == 0 else 0)", 1),
        ("sys.exit(7 * rank)", 7),
    ],
)
@pytest.mark.fault("exit", "loud", "a rank that fails: its own exit code, 2 and 3 before the 1 of who lost it")
def test_the_exit_code_is_that_of_the_rank_at_fault(program: str, code: int) -> None:
    assert code_of(program) == code


@pytest.mark.fault("D3", "loud", "one rank of two killed: the other is ended, exit code 1, and the line says so")
def test_a_killed_rank_ends_the_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ranks, "_OTHERS_SECONDS", 0.3)
    started = time.monotonic()
    assert code_of("os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)") == 1
    assert time.monotonic() - started < 20
    assert "error: training process 1 of 2 was killed by SIGKILL; a retry goes on" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.fault("D3", "loud", "the launcher of the ranks killed: no rank trains on as an orphan")
def test_no_rank_outlives_whoever_started_it(number: signal.Signals, tmp_path: Path) -> None:
    """Also where nothing but the launcher itself is killed."""
    of_rank = (
        f"open(r'{tmp_path}' + f'/{{rank}}', 'w').write(str(os.getpid()))\n"
        "from schemas.orphans import end_with_parent\nend_with_parent()\ntime.sleep(60)"
    )
    program = f"from itemsage_model.training.ranks import run_ranks\nrun_ranks(['-c', {START + of_rank!r}], 2, {{}})"
    launcher = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    deadline = time.monotonic() + 30
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("0", "1")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pids = [int((tmp_path / name).read_text()) for name in ("0", "1")]
    os.kill(launcher.pid, number)
    launcher.wait(30)
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=15)
    assert not alive


@pytest.mark.fault("S1", "loud", "whoever reaches a port of the training: there is none off the loopback interface")
def test_ranks_listen_on_loopback_alone() -> None:
    program = f"from itemsage_model.training.ranks import run_ranks\nrun_ranks([{__file__!r}], 2, {{}})"
    # Whoever has named another interface for jobs of many machines: ranks of one need none.
    others = [name for name, entries in psutil.net_if_addrs().items()
              if name != loopback_interface() and any(entry.family == socket.AF_INET for entry in entries)]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"GLOO_SOCKET_IFNAME": others[0]} if others else {}
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, text=True, env=environment)
    found = watched(child)
    assert child.returncode == 0
    assert found, "gloo's own sockets were not seen: the test looks at nothing"
    assert not off_loopback(found)


if __name__ == "__main__":
    import torch

    from itemsage_model.training import distributed

    distributed.start()
    assert distributed.sum_over_ranks(torch.ones(1)).item() == 2
    time.sleep(1)
    distributed.barrier()
    distributed.stop()
