"""Runs one test body over each driver: sync psycopg, async psycopg, asyncpg."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import AsyncTenantManager, TenantConfig, TenantManager

R = TypeVar("R")

DRIVERS = ("psycopg", "psycopg-async", "asyncpg")


class Harness:
    """A manager under one driver. Bodies are sync: asyncio runs them with `run_sync`."""

    name: str

    def session(self, tenant: str, body: Callable[[Session], R], **options: Any) -> R:
        """Run `body` in a session, which is rolled back unless it commits."""
        raise NotImplementedError

    def connection(self, tenant: str, body: Callable[[Connection], R], **options: Any) -> R:
        """Run `body` on a connection."""
        raise NotImplementedError

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the manager."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class SyncHarness(Harness):
    name = "psycopg"

    def __init__(self, config: TenantConfig) -> None:
        self.manager = TenantManager(config)

    def session(self, tenant: str, body: Callable[[Session], R], **options: Any) -> R:
        with self.manager.get_db(tenant).session(**options) as session:
            return body(session)

    def connection(self, tenant: str, body: Callable[[Connection], R], **options: Any) -> R:
        with self.manager.get_db(tenant).connect(**options) as connection:
            return body(connection)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.manager, method)(*args, **kwargs)

    def close(self) -> None:
        self.manager.close()


class AsyncHarness(Harness):
    def __init__(self, config: TenantConfig, name: str) -> None:
        self.name = name
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.manager = AsyncTenantManager(config)

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def session(self, tenant: str, body: Callable[[Session], R], **options: Any) -> R:
        async def work() -> R:
            async with self.manager.get_db(tenant).session(**options) as session:
                return await session.run_sync(body)

        return self.run(work())

    def connection(self, tenant: str, body: Callable[[Connection], R], **options: Any) -> R:
        async def work() -> R:
            async with self.manager.get_db(tenant).connect(**options) as connection:
                return await connection.run_sync(body)

        return self.run(work())

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        async def work() -> Any:
            result = getattr(self.manager, method)(*args, **kwargs)
            return await result if asyncio.iscoroutine(result) else result

        return self.run(work())

    def close(self) -> None:
        self.run(self.manager.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def make_harness(
    name: str, make_config: Callable[..., TenantConfig], default_url: Any, /, **options: Any
) -> Harness:
    """The harness of a driver."""
    url = options.pop("url", default_url)
    if name == "psycopg":
        return SyncHarness(make_config(url=url, **options))
    driver = "asyncpg" if name == "asyncpg" else "psycopg"
    return AsyncHarness(make_config(url=url.set(drivername=f"postgresql+{driver}"), **options), name)
