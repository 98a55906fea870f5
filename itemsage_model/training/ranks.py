"""Several training processes on one machine: started here, meeting in a private folder, and ended together.

In the place of torchrun: its store listens on every interface of the machine and unpickles what it is sent, and every
exit code becomes 1. Here the ranks meet in a file, and what they send each other stays on the loopback interface.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from schemas.errors import EXIT_FAILED, EXIT_INPUT, EXIT_SETTINGS
from schemas.orphans import ENDS_WITH_INPUT

MEETING_PLACE = "ITEMSAGE_MEETING_PLACE"
"""Environment variable of a rank: the file in which the ranks of this machine find each other."""

_OTHERS_SECONDS = 10.0
"""What the other ranks have, when one has failed, to end by themselves and say why."""
_END_SECONDS = 10.0
_POLL_SECONDS = 0.1


def run_ranks(program: list[str], processes: int, files: dict[str, str]) -> int:
    """Run a program once for each rank and wait for all; where one fails, the others are ended.

    Args:
        program: Arguments of this Python; the private folder's path is added as the last one.
        processes: Number of ranks.
        files: Name -> text of the files that the private folder holds; only this user may read it.

    Returns:
        The exit code: 0; that of a rank that says no retry will help (settings, input); else that of the first to
        fail, and 1 for a rank that was killed.
    """
    with tempfile.TemporaryDirectory(prefix="itemsage-ranks-") as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        before = [(one, signal.signal(one, _exit)) for one in (signal.SIGTERM, signal.SIGHUP)]
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(processes):
                environment = _environment(rank, processes, f"{folder}/store")
                command = [sys.executable, *program, folder]
                # Its end of the pipe closes when this process ends, however that happens; see `end_with_parent`.
                ranks.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE))
            return _wait(ranks)
        finally:
            _end(ranks)
            for number, handler in before:
                signal.signal(number, handler)


def loopback_interface() -> str:
    """Name of the loopback interface: lo on Linux, lo0 on macOS."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")


def _environment(rank: int, processes: int, store: str) -> dict[str, str]:
    """What torchrun would set, without its store; and no interface but loopback for gloo and NCCL."""
    return {"OMP_NUM_THREADS": "1"} | os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        MEETING_PLACE: store, ENDS_WITH_INPUT: "1",
        "GLOO_SOCKET_IFNAME": loopback_interface(), "NCCL_SOCKET_IFNAME": loopback_interface(),
    }  # fmt: skip


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    while all(rank.poll() in (None, 0) for rank in ranks):
        if all(rank.returncode == 0 for rank in ranks):
            return 0
        time.sleep(_POLL_SECONDS)
    first = next(number for number, rank in enumerate(ranks) if rank.returncode not in (None, 0))
    deadline = time.monotonic() + _OTHERS_SECONDS
    while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
        time.sleep(_POLL_SECONDS)
    codes = [rank.returncode for rank in ranks]
    for number, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            print(f"error: training process {number} of {len(ranks)} was killed by {name}; a retry goes on", flush=True)
    # Whoever loses another rank fails with 1; only the one at fault knows that a retry is in vain.
    lasting = [code for code in codes if code in (EXIT_SETTINGS, EXIT_INPUT)]
    return lasting[0] if lasting else max(codes[first], EXIT_FAILED)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        with suppress(ProcessLookupError):
            rank.terminate()
    deadline = time.monotonic() + _END_SECONDS
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:  # stopped, or stuck in a driver
            rank.kill()
            rank.wait()
        if rank.stdin:
            rank.stdin.close()


def _exit(number: int, _: object) -> None:
    sys.exit(128 + number)
