"""Which ports a process and all that it started listen on, looked at while they run."""

from __future__ import annotations

import ipaddress
import subprocess
import time
from contextlib import suppress

import psutil


def listening(pid: int) -> set[tuple[str, str]]:
    """(address, name of the process) of every TCP port that a process or a descendant of it listens on."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in (top, *top.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                name = process.name()
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN:
                        found.add((connection.laddr.ip, name))
    return found


def watched(child: subprocess.Popen[str], seconds: float = 300) -> set[tuple[str, str]]:
    """Everything that a running command listened on until it ended."""
    found: set[tuple[str, str]] = set()
    deadline = time.monotonic() + seconds
    while child.poll() is None:
        assert time.monotonic() < deadline, f"still running after {seconds} s"
        found |= listening(child.pid)
        time.sleep(0.1)
    return found


def off_loopback(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of them that another machine could reach."""
    return {(address, name) for address, name in found if not _is_loopback(address)}


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)
