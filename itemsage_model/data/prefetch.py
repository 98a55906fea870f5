"""Doing the next things while the last one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

Thing = TypeVar("Thing")


class Ahead(Generic[Thing]):
    """Things made ahead of use in a thread of their own; an error there is raised where the next one is taken.

    Args:
        things: What makes them; it may be endless.
        depth: How many may wait.
    """

    def __init__(self, things: Iterable[Thing], depth: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(iter(things),), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Thing]:
        while True:
            thing = self._queue.get()
            if thing is _END:
                return
            if isinstance(thing, BaseException):
                raise thing
            yield thing

    def close(self) -> None:
        """Stop making things."""
        self._stop.set()
        while self._thread.is_alive():
            # Makes room for a thing that the thread may be waiting to put down.
            with suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(0.01)

    def _fill(self, things: Iterator[Thing]) -> None:
        try:
            for thing in things:
                self._queue.put(thing)
                if self._stop.is_set():
                    return
            self._queue.put(_END)
        except BaseException as error:
            self._queue.put(error)


_END = object()
