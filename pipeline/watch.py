"""Ends a process group when the process at the other end of this one's standard input is gone.

    python pipeline/watch.py < pipe        the pipe's first line is the group's number

Whatever ends the front door closes that pipe, SIGKILL too: its stages end with it, and do not go on unseen.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

_GRACE_SECONDS = 20


def end_group(group: int, reap: Callable[[], object] = lambda: None) -> None:
    """Ask a process group to end, wait until nothing is left of it, and after a while make it end.

    Args:
        group: Its number.
        reap: Asks for the exit codes of those of the group that this process has started: until then they count.
    """
    deadline = time.monotonic() + _GRACE_SECONDS
    try:
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < deadline:
            reap()
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # the group has ended


def main() -> None:
    """Wait for the pipe's end; then end the group, if it ever began."""
    group = sys.stdin.readline().strip()
    sys.stdin.read()
    if group.isdigit():
        end_group(int(group))


if __name__ == "__main__":
    main()
