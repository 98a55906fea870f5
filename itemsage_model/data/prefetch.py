"""Prefetching: a background thread makes items while the consumer works."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """Items made by a background thread; an error there is raised where the next item is taken.

    Args:
        source: What makes the items; it may be endless.
        depth: How many may wait.
    """

    def __init__(self, source: Iterable[Item], depth: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(iter(source),), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            item = self._queue.get()
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        while self._thread.is_alive():
            # Makes room for an item that the thread may be waiting to put down.
            with suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(0.01)

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
