"""A process that somebody started for a piece of work does not outlive whoever started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from schemas.lease import VARIABLE

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have this process end when its parent does, even by SIGKILL: a rank of torchrun, a stage of a whole run.

    A trainer that a person started goes on without its shell. Linux only; elsewhere nothing happens, and a stage that
    is left behind is stopped by the lease when it would commit.
    """
    if not sys.platform.startswith("linux") or not {VARIABLE, "TORCHELASTIC_RUN_ID"} & set(os.environ):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # It may have ended before we asked.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
