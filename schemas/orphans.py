"""A process that somebody started for a piece of work does not outlive whoever started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

from schemas.lease import VARIABLE

ENDS_WITH_INPUT = "ITEMSAGE_ENDS_WITH_LAUNCHER"
"""Environment variable of a rank whose standard input is a pipe that closes when whoever started it ends."""

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have this process end when whoever started it does, even by SIGKILL; for the beginning of a program.

    A rank sees it by the pipe that our launchers hold, on any system. A rank of torchrun and a stage of a whole run
    have none, and are told by Linux; elsewhere nothing happens, and a stage that is left behind is stopped by the lease
    when it would commit. A trainer that a person started goes on without its shell.
    """
    if ENDS_WITH_INPUT in os.environ:
        threading.Thread(target=_wait_for_the_end_of_input, daemon=True).start()
    elif sys.platform.startswith("linux") and {VARIABLE, "TORCHELASTIC_RUN_ID"} & set(os.environ):
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # It may have ended before we asked.
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_the_end_of_input() -> None:
    # Not sys.stdin, whose lock this thread would hold into the interpreter's end.
    os.read(0, 1)
    os._exit(128 + signal.SIGTERM)
