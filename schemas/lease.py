"""Who writes a warehouse: a lease in `<warehouse>/_runs/lease`, held for a whole run or for one stage.

The file names every holder: its work, logical date, machine, process, start and last heartbeat, and a generation that
rises with each lease that is given. A holder that is gone (its process has ended; on another machine: no heartbeat for
five minutes) is struck out when the next one asks. Whoever asks while another whole run, the same stage or a run of
another date holds the warehouse is refused, with the holder's name. `require_held` is the fence right before a commit:
it fails where the lease was given to somebody else, or where the run that started this stage is gone.

On a file system the file changes under a lock. An object store has none: of two that ask in the same instant both may
start, but the file names only the later one, so that the other fails at its first commit.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from pyarrow import fs

from schemas.errors import EXIT_FAILED, InputError
from schemas.storage import file_system, read_bytes, write_bytes
from schemas.warehouse import Warehouse

WHOLE_RUN = "itemsage run"
VARIABLE = "ITEMSAGE_LEASE"
"""Environment variable by which a run passes its lease on to the stages that it starts: `<token> <warehouse>`."""

_HEARTBEAT_SECONDS = 30.0
_EXPIRES_SECONDS = 300.0


class LeaseError(RuntimeError):
    """Somebody else writes the warehouse, or this run's lease is gone; nothing was committed, a retry may help."""

    exit_code = EXIT_FAILED


@dataclass(frozen=True)
class Holder:
    """One process that may write the warehouse.

    Attributes:
        token: Names this lease alone.
        generation: Number of the lease; each is higher than those before.
        work: A stage's name, or WHOLE_RUN.
        as_of: The logical date, ISO.
        host: Name of its machine.
        machine: The machine since its start, and in a container the container: where a process id means one process.
        pid: Its process id.
        process_start: When that process began, as the machine says it.
        started: When the lease was given, seconds since 1970.
        heartbeat: When it last said that it is there.
    """

    token: str
    generation: int
    work: str
    as_of: str
    host: str
    machine: str
    pid: int
    process_start: str
    started: float
    heartbeat: float

    @property
    def is_alive(self) -> bool:
        """Whether it still runs, as far as one can tell from here."""
        if self.machine == _machine():
            return _start_of(self.pid) == self.process_start
        return time.time() - self.heartbeat < _EXPIRES_SECONDS

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.started))
        return (
            f"{self.work} of {self.as_of}, process {self.pid} on {self.host}, since {since} (lease {self.generation})"
        )

    def excludes(self, other: Holder) -> bool:
        """Whether two must not write a warehouse at once: but for different stages of one date, always."""
        return WHOLE_RUN in (self.work, other.work) or self.work == other.work or self.as_of != other.as_of


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds, or works under; `token` names its holder."""

    warehouse: Warehouse
    token: str

    @property
    def passed_on(self) -> str:
        """What `VARIABLE` holds in the processes that work under this lease."""
        return f"{self.token} {self.warehouse.place()}"

    def require(self) -> None:
        """Fail if the lease is gone.

        Raises:
            LeaseError: it was given to somebody else, or its holder has ended.
        """
        _, holders = _read(self.warehouse)
        mine = next((holder for holder in holders if holder.token == self.token), None)
        if mine is None:
            now = "; ".join(map(str, holders)) or "nobody"
            raise LeaseError(
                f"lease on {self.warehouse.uri}: expected this run's; found that of {now}. Nothing was committed: this "
                "run was taken for dead, or its lease was removed. Let one run write a warehouse at a time."
            )
        if not mine.is_alive:
            raise LeaseError(
                f"lease on {self.warehouse.uri}: expected {mine} to run; found that it has ended, and left this stage "
                "behind. Nothing was committed. Run it again."
            )


_held: list[Lease] = []
"""Of this process, by all its threads."""


def require_held() -> None:
    """Fail if a lease of this process is gone; the fence before a commit.

    Raises:
        LeaseError: as of `Lease.require`.
    """
    for lease in list(_held):
        lease.require()


@contextmanager
def hold(warehouse: Warehouse, work: str, as_of: str) -> Iterator[Lease]:
    """Hold the warehouse for the length of a block; a stage that a whole run has started works under that run's lease.

    Args:
        warehouse: What is written.
        work: A stage's name, or WHOLE_RUN.
        as_of: The logical date, ISO.

    Raises:
        LeaseError: somebody else holds it, or the run that started this stage is gone.
        InputError: the lease file is damaged.
    """
    token, _, place = os.environ.get(VARIABLE, "").partition(" ")
    if token and place == warehouse.place():
        lease, is_own = Lease(warehouse, token), False
        lease.require()
    else:
        lease, is_own = _acquire(warehouse, work, as_of), True
    is_over = threading.Event()
    if is_own:
        threading.Thread(target=_keep_alive, args=(lease, is_over), daemon=True).start()
    _held.append(lease)
    try:
        yield lease
    finally:
        _held.remove(lease)
        is_over.set()
        if is_own:
            # What is left there names a process that has ended.
            with suppress(OSError, InputError):
                _change(lease, None)


def _acquire(warehouse: Warehouse, work: str, as_of: str) -> Lease:
    now, pid = time.time(), os.getpid()
    with _locked(warehouse):
        generation, holders = _read(warehouse)
        asking = Holder(
            uuid4().hex, generation + 1, work, as_of, socket.gethostname(), _machine(), pid, _start_of(pid), now, now
        )
        alive = [holder for holder in holders if holder.is_alive]
        for holder in alive:
            if holder.excludes(asking):
                raise LeaseError(
                    f"warehouse {warehouse.uri}: expected that nobody else writes it; found {holder}. Nothing was "
                    f"written. Wait until it has ended, or end it. A holder on another machine that sends no heartbeat "
                    f"counts as gone after {_EXPIRES_SECONDS:.0f} s."
                )
        _write(warehouse, asking.generation, [*alive, asking])
    return Lease(warehouse, asking.token)


def _keep_alive(lease: Lease, is_over: threading.Event) -> None:
    while not is_over.wait(_HEARTBEAT_SECONDS):
        # A storage that does not answer once answers the next time; the fence before a commit decides.
        with suppress(OSError, InputError):
            _change(lease, time.time())


def _change(lease: Lease, heartbeat: float | None) -> None:
    """Renew the heartbeat of a lease; None gives it up. One that is gone stays gone."""
    with _locked(lease.warehouse):
        generation, holders = _read(lease.warehouse)
        if mine := [holder for holder in holders if holder.token == lease.token]:
            others = [holder for holder in holders if holder.token != lease.token]
            renewed = [] if heartbeat is None else [replace(mine[0], heartbeat=heartbeat)]
            _write(lease.warehouse, generation, [*others, *renewed])


def _read(warehouse: Warehouse) -> tuple[int, list[Holder]]:
    """Generation of the newest lease, and who holds one."""
    try:
        values = json.loads(read_bytes(warehouse.lease))
        return int(values["generation"]), [Holder(**holder) for holder in values["holders"]]
    except FileNotFoundError:
        return 0, []
    except (ValueError, KeyError, TypeError) as error:
        cure = "If nobody writes the warehouse, remove the file and run again."
        raise InputError("lease", warehouse.lease, expected="a lease file", found=f"{error}", cure=cure) from error


def _write(warehouse: Warehouse, generation: int, holders: list[Holder]) -> None:
    values = {"generation": generation, "holders": [asdict(holder) for holder in holders]}
    write_bytes(warehouse.lease, (json.dumps(values, indent=2) + "\n").encode())


@contextmanager
def _locked(warehouse: Warehouse) -> Iterator[None]:
    """Change the lease file alone, where the warehouse lies on a file system: the lock ends with the process."""
    system, folder = file_system(warehouse.records)
    if not isinstance(system, fs.LocalFileSystem):
        yield
        return
    import fcntl  # noqa: PLC0415 (not on every system)

    system.create_dir(folder, recursive=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def _start_of(pid: int) -> str:
    """When a process began, in the machine's clock ticks; `running` where there is no /proc; empty = it is gone."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in ("Z", "X") else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
