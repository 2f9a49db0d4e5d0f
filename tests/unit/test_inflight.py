"""A coroutine whose first step is taken at once."""

from __future__ import annotations

import asyncio

import pytest

from sqlalchemy_multitenant.engines.inflight import InFlight


def test_the_first_step_is_taken_at_once_and_the_rest_when_awaited() -> None:
    steps: list[str] = []

    async def work(answer: asyncio.Future[str]) -> None:
        steps.append("sent")
        steps.append(await answer)
        steps.append(await answer)  # done already: no turn of the loop

    async def main() -> None:
        answer = asyncio.get_running_loop().create_future()
        flight = InFlight(work(answer))
        assert steps == ["sent"]
        answer.set_result("read")
        await flight
        await flight
        assert steps == ["sent", "read", "read"]

    asyncio.run(main())


def test_an_error_waits_for_who_waits() -> None:
    async def work() -> None:
        raise ValueError("no")

    async def main() -> None:
        flight = InFlight(work())
        flight.abandon()  # nothing is under way any more
        with pytest.raises(ValueError, match="no"):
            await flight

    asyncio.run(main())


def test_a_cancelled_wait_reaches_the_coroutine() -> None:
    seen: list[str] = []

    async def work(answer: asyncio.Future[None]) -> None:
        try:
            await answer
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> None:
        flight = InFlight(work(asyncio.get_running_loop().create_future()))

        async def wait() -> None:
            await flight

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["cancelled"]

    asyncio.run(main())


def test_who_abandons_it_ends_the_coroutine() -> None:
    seen: list[str] = []

    async def work(answer: asyncio.Future[None]) -> None:
        try:
            await answer
        finally:
            seen.append("closed")

    async def main() -> None:
        answer = asyncio.get_running_loop().create_future()
        flight = InFlight(work(answer))
        flight.abandon()
        assert seen == ["closed"]
        assert answer.cancelled()

    asyncio.run(main())
