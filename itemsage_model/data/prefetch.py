"""Prefetching: a background thread makes items while the consumer works, and may not keep it waiting for ever."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from schemas.errors import DeadlineError

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """Items made by a background thread; an error there is raised where the next item is taken.

    Args:
        source: What makes the items; it may be endless.
        depth: How many may wait.
        wait_seconds: How long the consumer waits for an item, as deadlines.read_seconds says; None = for ever.
        doing: Says what the source does at the moment, for the error of an item that does not come.
    """

    def __init__(
        self,
        source: Iterable[Item],
        depth: int,
        wait_seconds: float | None = None,
        doing: Callable[[], str] = lambda: "nothing",
    ) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._wait_seconds, self._doing = wait_seconds, doing
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(iter(source),), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            try:
                item = self._queue.get(timeout=self._wait_seconds)
            except queue.Empty:
                raise DeadlineError(
                    "reading",
                    expected=f"the next rows within {self._wait_seconds} s (deadlines.read_seconds)",
                    found=f"none; being read: {self._doing()}",
                    cure="See that the storage answers, and run the stage again; raise the deadline if it is slow.",
                ) from None
            if item is _END:
                return
            if isinstance(item, Exception):
                raise item
            if isinstance(item, BaseException):  # a SystemExit would end this process too, with any exit code
                raise RuntimeError(f"reading ended with {item!r}") from item
            yield item

    def close(self) -> None:
        """Stop the thread; one that hangs longer than the deadline is left to the end of the process."""
        self._stop.set()
        started = time.monotonic()
        while self._thread.is_alive():
            # Makes room for an item that the thread may be waiting to put down.
            with suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(0.01)
            if self._wait_seconds is not None and time.monotonic() - started > self._wait_seconds:
                return

    def _fill(self, source: Iterator[Item]) -> None:
        try:
            for item in source:
                self._queue.put(item)
                if self._stop.is_set():
                    return
            self._queue.put(_END)
        except BaseException as error:
            self._queue.put(error)


_END = object()
