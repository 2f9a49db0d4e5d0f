"""`assert_isolated`: holds two tenants of an application against each other."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from ..checks import check, is_count

C = TypeVar("C")

_ERROR = 400


def assert_isolated(
    client_a: C,
    client_b: C,
    *,
    write: Callable[[C, str], object],
    read: Callable[[C], object],
    rounds: int = 20,
    concurrency: int = 4,
) -> None:
    """Let two tenants write and read at one time, and see that each finds its own and never the other's.

        assert_isolated(
            client("acme"),
            client("globex"),
            write=lambda client, marker: client.post("/users", json={"name": marker}),
            read=lambda client: client.get("/users"),
        )

    What is written is looked for in the text of what is read, or in its JSON. Clients may be those of httpx,
    of Starlette, FastAPI, Litestar and Flask, or whatever the two callables take: a `TenantDb`, for one.

    Args:
        client_a: acts for one tenant.
        client_b: acts for another one.
        write: stores the marker it is given, a word that occurs nowhere else, so that `read` finds it.
        read: reads all that there is; called with either client.
        rounds: how often each tenant writes and reads. More than the application has connections, so that the
            tenants meet on them.
        concurrency: how many threads do that at one time.

    Raises:
        AssertionError: a tenant has found what the other one wrote, or not what it wrote itself; or something
            was answered with a status of 400 or more.
        ConfigurationError: `rounds` or `concurrency` is no number above 0.
    """
    trial = _Trial(client_a, client_b, rounds, concurrency)

    def turn(side: str) -> None:
        client, marker = trial.begin(side)
        trial.check_written(side, write(client, marker))
        trial.check_read(side, read(client))

    with ThreadPoolExecutor(concurrency) as threads:
        for done in [threads.submit(turn, side) for side in trial.turns]:
            done.result()
    for side in "ab":
        trial.check_last(side, read(trial.clients[side]))


async def assert_isolated_async(
    client_a: C,
    client_b: C,
    *,
    write: Callable[[C, str], Awaitable[object]],
    read: Callable[[C], Awaitable[object]],
    rounds: int = 20,
    concurrency: int = 4,
) -> None:
    """The same, awaited: for `httpx.AsyncClient` and its like. See `assert_isolated`."""
    trial = _Trial(client_a, client_b, rounds, concurrency)
    places = asyncio.Semaphore(concurrency)

    async def turn(side: str) -> None:
        async with places:
            client, marker = trial.begin(side)
            trial.check_written(side, await write(client, marker))
            trial.check_read(side, await read(client))

    try:
        async with asyncio.TaskGroup() as tasks:
            for side in trial.turns:
                tasks.create_task(turn(side))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # as the first of the threads does
    for side in "ab":
        trial.check_last(side, await read(trial.clients[side]))


class _Trial(Generic[C]):
    """What either side has written, and may therefore find."""

    def __init__(self, client_a: C, client_b: C, rounds: int, concurrency: int) -> None:
        for name, value in (("rounds", rounds), ("concurrency", concurrency)):
            check(is_count(value) and value >= 1, name, value, "a whole number, at least 1")
        self.clients = {"a": client_a, "b": client_b}
        self.turns = "ab" * rounds
        self._written: dict[str, list[str]] = {"a": [], "b": []}

    def begin(self, side: str) -> tuple[C, str]:
        marker = f"{side}{secrets.token_hex(8)}"
        self._written[side].append(marker)
        return self.clients[side], marker

    def check_written(self, side: str, answer: object) -> None:
        _check_status(f"client_{side}: what it wrote", answer)
        self._check_foreign(side, answer)

    def check_read(self, side: str, answer: object) -> None:
        _check_status(f"client_{side}: what it read", answer)
        self._check_foreign(side, answer)

    def _check_foreign(self, side: str, answer: object) -> None:
        found = f"{_text(answer)} {getattr(answer, 'headers', '')}"
        other = "b" if side == "a" else "a"
        for marker in list(self._written[other]):
            if marker in found:
                raise AssertionError(f"client_{side} finds {marker}, which client_{other} has written")

    def check_last(self, side: str, answer: object) -> None:
        """After all is written: nothing of the other's; and all of its own, or nothing was shown."""
        self.check_read(side, answer)
        found = _text(answer)
        missing = [marker for marker in self._written[side] if marker not in found]
        if missing:
            raise AssertionError(
                f"client_{side} does not find {len(missing)} of the {len(self._written[side])} words that it "
                f"has written itself, such as {missing[0]}: does `read` find what `write` stores?"
            )


def _check_status(what: str, answer: object) -> None:
    status = getattr(answer, "status_code", None)
    if isinstance(status, int) and status >= _ERROR:
        raise AssertionError(f"{what} was answered with {status}: {_text(answer)[:500]}")


def _text(answer: object) -> str:
    """What is in an answer, as text."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, bytes):
        return answer.decode("utf-8", "replace")
    for name in ("text", "get_data"):  # of httpx and Starlette; of Flask
        found: Any = getattr(answer, name, None)
        if isinstance(found, str):
            return found
        if callable(found) and name == "get_data":
            return str(found(as_text=True))
    return json.dumps(answer, default=str, ensure_ascii=False)
