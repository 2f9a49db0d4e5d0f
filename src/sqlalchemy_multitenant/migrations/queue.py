"""A work queue over threads: a slow item holds up nobody but its own worker."""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkQueue(Generic[Item, Result]):
    """Runs `work` for each item, at most `concurrency` at one time.

    `work` must not raise: what goes wrong belongs in its result. It returns None for an item that it has put
    back (`again`).

    Args:
        abandon: called on a second Ctrl-C: is to have what runs end soon.
    """

    def __init__(
        self,
        items: Sequence[Item],
        work: Callable[[Item], Result | None],
        concurrency: int,
        abandon: Callable[[], object] | None = None,
    ) -> None:
        self._items = iter(items)
        self._later: list[tuple[float, int, Item]] = []
        self._numbers = count()
        self._work, self._abandon = work, abandon
        self._changed = threading.Condition()
        self._results: queue.SimpleQueue[Result | BaseException | None] = queue.SimpleQueue()
        self._stopped = False
        self._running = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"multitenant-worker-{i}", daemon=True)
            for i in range(max(1, min(concurrency, len(items))))
        ]

    def stop(self) -> None:
        """Start nothing new; what runs is finished."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def again(self, item: Item, after_s: float) -> None:
        """Put an item back, behind all others, to be tried after so many seconds."""
        with self._changed:
            heapq.heappush(self._later, (time.monotonic() + after_s, next(self._numbers), item))
            self._changed.notify()

    def _next(self) -> Item | None:
        with self._changed:
            while not self._stopped:
                if (item := next(self._items, None)) is not None:
                    return item
                if not self._later:
                    return None
                wait_s = self._later[0][0] - time.monotonic()
                if wait_s <= 0:
                    return heapq.heappop(self._later)[2]
                self._changed.wait(wait_s)
            return None

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                if (result := self._work(item)) is not None:
                    self._results.put(result)
        except BaseException as error:
            self._results.put(error)
        finally:
            self._results.put(None)
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def __iter__(self) -> Iterator[Result]:
        """The results as they come. Leaving early (Ctrl-C) stops the queue and waits for what runs."""
        self._running = running = len(self._threads)
        for thread in self._threads:
            thread.start()
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
            try:
                self._wait()
            except KeyboardInterrupt:
                if self._abandon is not None:
                    self._abandon()
                self._wait()
                raise

    def _wait(self) -> None:
        """Until no worker runs. Not by Thread.join(): once interrupted, it takes its thread for ended, up to
        Python 3.12."""
        with self._changed:
            while self._running:
                self._changed.wait()
