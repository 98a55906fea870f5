"""What a run starts ends with it, whatever ends the run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import time
from schemas.orphans import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {!r}], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
@pytest.mark.parametrize(
    ("variable", "ends"), [("TORCHELASTIC_RUN_ID", True), ("ITEMSAGE_LEASE", True), ("NONE", False)]
)
@pytest.mark.fault("B3", "recovered", "kill -9 of the launcher whose rank runs in a session of its own")
def test_a_rank_ends_with_its_launcher_even_by_kill_9(variable: str, ends: bool) -> None:
    command = [sys.executable, "-c", PARENT.format(CHILD)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {variable: "1 2"}
    ) as parent:
        assert parent.stdout
        lines = {parent.stdout.readline().strip() for _ in range(2)}
        [pid] = [int(line) for line in lines if line != "ready"]
        parent.kill()
        parent.wait()
        try:
            deadline = time.monotonic() + (20 if ends else 0.5)
            while is_running(pid) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert is_running(pid) is not ends
        finally:
            if is_running(pid):
                os.kill(pid, 9)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
