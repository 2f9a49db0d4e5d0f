"""A work queue over threads: a slow item holds up nobody but its own worker."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkQueue(Generic[Item, Result]):
    """Runs `work` for each item, at most `concurrency` at one time.

    `work` must not raise: what goes wrong belongs in its result.
    """

    def __init__(self, items: Sequence[Item], work: Callable[[Item], Result], concurrency: int) -> None:
        self._items = iter(items)
        self._work = work
        self._lock = threading.Lock()
        self._results: queue.SimpleQueue[Result | BaseException | None] = queue.SimpleQueue()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._run, name=f"multitenant-worker-{i}", daemon=True)
            for i in range(max(1, min(concurrency, len(items))))
        ]

    def stop(self) -> None:
        """Start nothing new; what runs is finished."""
        self._stopped = True

    def _next(self) -> Item | None:
        with self._lock:
            return None if self._stopped else next(self._items, None)

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                self._results.put(self._work(item))
        except BaseException as error:
            self._results.put(error)
        finally:
            self._results.put(None)

    def __iter__(self) -> Iterator[Result]:
        """The results as they come. Leaving early (Ctrl-C) stops the queue and waits for what runs."""
        for thread in self._threads:
            thread.start()
        running = len(self._threads)
        try:
            while running:
                result = self._results.get()
                if result is None:
                    running -= 1
                elif isinstance(result, BaseException):
                    raise result
                else:
                    yield result
        finally:
            self.stop()
            for thread in self._threads:
                thread.join()
