"""A coroutine whose first step is taken at once, so that its message is on the way before anybody waits."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any


class InFlight:
    """Runs `coroutine` up to where it waits for its first answer; awaiting the object does the rest, once.

    A task would do the same, but take a turn of the event loop before it begins. Belongs to the task that
    made it.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, object]) -> None:
        self._coroutine = coroutine
        self._error: BaseException | None = None
        self._waits_for: Any = None
        self._step(None)

    def _step(self, thrown: BaseException | None) -> None:
        try:
            step = self._coroutine.send(None) if thrown is None else self._coroutine.throw(thrown)
        except StopIteration:
            self._waits_for = None
        except BaseException as error:
            self._waits_for, self._error = None, error
        else:
            self._waits_for = step

    def __await__(self) -> Generator[Any, Any, None]:
        # What asyncio's own tasks do with the futures that a coroutine yields.
        while (future := self._waits_for) is not None:
            thrown: BaseException | None = None
            if not future.done():
                try:
                    yield future
                except BaseException as error:
                    thrown = error
            self._step(thrown)
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """Nobody will wait any more: the connection is being closed."""
        if self._waits_for is not None:
            self._waits_for.cancel()
            self._coroutine.close()
            self._waits_for = None
