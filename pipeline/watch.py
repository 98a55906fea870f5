"""Ends a process group when the process at the other end of this one's standard input is gone.

    python pipeline/watch.py < pipe        the pipe's first line is the group's number

Whatever ends the front door closes that pipe, SIGKILL too: its stages end with it, and do not go on unseen.
"""

from __future__ import annotations

import os
import signal
import sys
import time

_GRACE_SECONDS = 20


def main() -> None:
    """Wait for the pipe's end; then ask the group to end, and after a while make it."""
    group = sys.stdin.readline()
    sys.stdin.read()
    deadline = time.monotonic() + _GRACE_SECONDS
    try:
        os.killpg(int(group), signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(0.2)
            os.killpg(int(group), 0)
        os.killpg(int(group), signal.SIGKILL)
    except (ProcessLookupError, PermissionError, ValueError):
        return  # the group has ended, or never began


if __name__ == "__main__":
    main()
