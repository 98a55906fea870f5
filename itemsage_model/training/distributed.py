"""Several processes as one: set-up, gathering, agreement. The only user of torch.distributed.

Every function but `start` and `stop` must be called by all ranks in the same order, and is the identity in a single
process. A rank that waits in vain fails after the timeout; nothing waits for ever.
"""

from __future__ import annotations

import gc
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from itemsage_model.training.ranks import MEETING_PLACE
from schemas.errors import DeadlineError

MAX_TIMEOUT_SECONDS = 3_600

_SIGN_OF_LIFE_SECONDS = 1.0
"""How often a rank that works alone lets the others hear from it."""
_SIGN_SECONDS = 5.0
"""How long a rank that waited in vain waits for the others to say the same: they do within moments, if they can."""

_WAITED_IN_VAIN = re.compile("timed out|timeout", re.IGNORECASE)
_LOST = re.compile("connection (closed|reset|refused)|closed by peer|reset by peer|broken pipe", re.IGNORECASE)


def start(timeout_seconds: int = 300) -> torch.device:
    """Join the process group that the environment describes (`ranks`, or torchrun); without one, stay alone.

    The ranks of one machine meet in a file, so that no store listens on a port; those of torchrun in its store.
    NCCL where every local rank has a GPU of its own, else gloo on the CPU.

    Args:
        timeout_seconds: How long a rank waits for another before it fails.

    Returns:
        The device of this rank.

    Raises:
        ValueError: the timeout is not between 0 and an hour.
    """
    if not 0 < timeout_seconds <= MAX_TIMEOUT_SECONDS:
        raise ValueError(f"timeout_seconds must be above 0 and at most {MAX_TIMEOUT_SECONDS}, found {timeout_seconds}")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    device = torch.device("cpu")
    if torch.cuda.is_available() and torch.cuda.device_count() >= local_ranks:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if ranks > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        wait = timedelta(seconds=timeout_seconds)
        if meeting_place := os.environ.get(MEETING_PLACE):
            rank = int(os.environ["RANK"])
            place = f"file://{meeting_place}"
            dist.init_process_group(backend, init_method=place, rank=rank, world_size=ranks, timeout=wait)
        else:
            store = _store_of_torchrun(wait)
            dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=ranks, timeout=wait)
    return device


def _store_of_torchrun(wait: timedelta) -> Any:
    """The store in which the ranks of torchrun find each other, where those of a start before left their addresses.

    torchrun keeps one store over its restarts, and torch 2.12 does not tell them apart: every other restart on one
    machine ended with `connection refused`, by an address of a process that was killed.
    """
    store, _, _ = next(iter(dist.rendezvous("env://", timeout=wait)))  # type: ignore[attr-defined]
    return dist.distributed_c10d.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def naming_silent_ranks(timeout_seconds: int) -> Iterator[None]:
    """Makes the failure of a wait for other ranks an error that names those that give no sign of life.

    Args:
        timeout_seconds: How long was waited, for the error.

    Raises:
        DeadlineError: a rank has ended, is frozen or slower than that.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or isinstance(error, DeadlineError):
            raise
        if _LOST.search(str(error)):
            named = "that one of them has ended: see its own error"
        elif _WAITED_IN_VAIN.search(str(error)):
            silent = _silent_ranks()
            named = f"no sign of rank {', '.join(map(str, silent))}" if silent else "that all of them wait by now"
        else:
            raise
        raise DeadlineError(
            f"rank {rank()} of {world_size()}",
            expected=f"the other processes within {timeout_seconds} s (deadlines.rank_seconds)",
            found=f"{named} ({' '.join(str(error).split())[:200]})",
            cure="Look at that process and its machine, and run train again: it resumes from its last checkpoint.",
        ) from error


def _silent_ranks() -> list[int]:
    """The ranks that do not say that they have failed too, by the store that all ranks share."""
    store = dist.distributed_c10d._get_default_store()
    store.set(f"waited in vain/{rank()}", "yes")
    time.sleep(_SIGN_SECONDS)
    return [other for other in range(world_size()) if not store.check([f"waited in vain/{other}"])]


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        # Whatever still holds the group in a cycle would let its threads outlive it, into the interpreter's end.
        gc.collect()
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_rows(tensor: Tensor) -> Tensor:
    """All ranks' rows, in the order of ranks, without gradient; ranks may have different numbers of rows."""
    return _gather(tensor.detach())[0] if world_size() > 1 else tensor.detach()


def gather_rows_with_gradient(tensor: Tensor) -> Tensor:
    """All ranks' rows, in the order of ranks; each rank's rows get the sum of all ranks' gradients.

    Backward is a collective too: the result must enter the loss on every rank.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _GatherRows.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Elementwise sum, without gradient."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def min_over_ranks(tensor: Tensor) -> Tensor:
    """Elementwise minimum, without gradient."""
    return _reduced(tensor, dist.ReduceOp.MIN)


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Elementwise maximum, without gradient."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def barrier() -> None:
    """Wait until every rank is here; a process may end after it.

    Not a sum of ours: gloo's thread frees the tensors of a collective after it has returned, and where the interpreter
    is ending by then, the process aborts.
    """
    if world_size() > 1:
        dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


def on_first(work: Callable[[], None]) -> None:
    """Do something on rank 0 while the others wait, however long it takes: they hear from it meanwhile.

    Args:
        work: Without collectives of its own; what it raises is raised on rank 0.
    """
    if world_size() == 1:
        work()
        return
    is_done, errors = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            is_done.set()

    if rank() == 0:
        threading.Thread(target=run, daemon=True).start()
    else:
        is_done.set()
    while not min_over_ranks(torch.tensor(int(is_done.is_set()), device=_device())):
        is_done.wait(_SIGN_OF_LIFE_SECONDS)  # the others go on to wait for the first in the collective
    if errors:
        raise errors[0]


def same_on_all_ranks(what: str, text: str) -> None:
    """Check that all ranks hold the same text, such as settings or a manifest.

    Args:
        what: Its name, for the error.
        text: This rank's version.

    Raises:
        RuntimeError: some rank's differs from rank 0's; raised on every rank.
    """
    digest = list(hashlib.sha256(text.encode()).digest())
    digests = gather_rows(torch.tensor([digest], dtype=torch.int64, device=_device()))
    differing = (digests != digests[0]).any(dim=1).nonzero().flatten().tolist()
    if differing:
        raise RuntimeError(
            f"{what}: expected the same on all {world_size()} processes; found another than rank 0's on ranks "
            f"{differing}. Start every process on the same files, settings and table versions."
        )


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks forward; summed gradient of the own rows backward."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        gathered, row_counts = _gather(tensor)
        ctx.first_row, ctx.row_count = sum(row_counts[: rank()]), len(tensor)
        return gathered

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient).narrow(0, ctx.first_row, ctx.row_count)


def _gather(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """All ranks' rows, and how many each rank has. Collectives want equal shapes, so shorter ranks are padded."""
    counts = torch.zeros(world_size(), dtype=torch.int64, device=tensor.device)
    counts[rank()] = len(tensor)
    row_counts: list[int] = sum_over_ranks(counts).tolist()
    max_rows = max(row_counts)
    padded = tensor.new_zeros(max_rows, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    gathered = tensor.new_empty(world_size(), max_rows, *tensor.shape[1:])
    dist.all_gather(list(gathered.unbind()), padded)
    return torch.cat([rows[:count] for rows, count in zip(gathered, row_counts, strict=True)]), row_counts


def _reduced(tensor: Tensor, operation: Any) -> Tensor:
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(result, operation)
    return result


def _device() -> torch.device:
    """Where small tensors of our own must lie for the backend."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
