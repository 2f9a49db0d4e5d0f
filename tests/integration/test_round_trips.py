"""The request path is the hot path: a scoped transaction takes no more round trips than a plain one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from sqlalchemy import URL, create_engine, event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import AsyncTenantManager, TenantManager
from tests.conftest import MakeConfig
from tests.models import User
from tests.proxies import CountingProxy

ROUNDS = 10


@pytest.fixture
def proxy(url: URL) -> Iterator[CountingProxy]:
    proxy = CountingProxy(url)
    yield proxy
    proxy.close()


def trips_of(proxy: CountingProxy, work: Callable[[], object]) -> float:
    """Round trips per call, once everything is warm."""
    for _ in range(ROUNDS):
        work()
    before = proxy.settled_trips()
    for _ in range(ROUNDS):
        work()
    return (proxy.settled_trips() - before) / ROUNDS


def read(session: Session) -> None:
    session.scalars(select(User)).all()


def read_and_commit(session: Session) -> None:
    session.scalars(select(User)).all()
    session.commit()


@pytest.mark.parametrize("body", [read, read_and_commit])
def test_psycopg(proxy: CountingProxy, make_config: MakeConfig, body: Callable[[Session], None]) -> None:
    engine = create_engine(proxy.url, connect_args={"options": "-c search_path=tenant_a"})

    def plain() -> None:
        with Session(engine) as session:
            body(session)

    expected = trips_of(proxy, plain)
    engine.dispose()
    with TenantManager(make_config(url=proxy.url)) as manager:

        def scoped(tenant: str) -> None:
            with manager.get_db(tenant).session() as session:
                body(session)

        assert trips_of(proxy, lambda: (scoped("a"), scoped("b"))) / 2 <= expected == 3


def trips_of_async(proxy: CountingProxy, work: Callable[[], Awaitable[object]]) -> Awaitable[float]:
    async def count() -> float:
        for _ in range(ROUNDS):
            await work()
        before = proxy.settled_trips()
        for _ in range(ROUNDS):
            await work()
        return (proxy.settled_trips() - before) / ROUNDS

    return count()


def pinned(url: URL, **connect_args: object) -> AsyncEngine:
    """An ordinary engine whose connections stay in one schema."""
    engine = create_async_engine(url, connect_args=connect_args)

    @event.listens_for(engine.sync_engine, "connect")
    def pin(dbapi_connection, record):  # type: ignore[no-untyped-def]
        cursor = dbapi_connection.cursor()
        cursor.execute("SET search_path TO tenant_a")
        cursor.close()
        dbapi_connection.commit()

    return engine


@pytest.mark.parametrize(
    ("driver", "connect_args"),
    [("psycopg", {}), ("asyncpg", {"prepared_statement_cache_size": 0})],
)
@pytest.mark.parametrize("body", [read, read_and_commit])
def test_asyncio(
    proxy: CountingProxy,
    make_config: MakeConfig,
    driver: str,
    connect_args: dict[str, object],
    body: Callable[[Session], None],
) -> None:
    url = proxy.url.set(drivername=f"postgresql+{driver}")

    async def main() -> tuple[float, float]:
        engine = pinned(url, **connect_args)

        async def plain() -> None:
            async with AsyncSession(engine) as session:
                await session.run_sync(body)

        expected = await trips_of_async(proxy, plain)
        await engine.dispose()
        async with AsyncTenantManager(make_config(url=url)) as manager:

            async def scoped() -> None:
                for tenant in ("a", "b"):
                    async with manager.get_db(tenant).session() as session:
                        await session.run_sync(body)

            return await trips_of_async(proxy, scoped) / 2, expected

    found, expected = asyncio.run(main())
    assert found <= expected


def test_asyncpg_with_its_statement_cache(proxy: CountingProxy, make_config: MakeConfig) -> None:
    url = proxy.url.set(drivername="postgresql+asyncpg")

    async def main() -> tuple[float, float]:
        engine = pinned(url)

        async def plain() -> None:
            async with AsyncSession(engine) as session:
                await session.scalars(select(User.name))

        expected = await trips_of_async(proxy, plain)
        await engine.dispose()
        config = make_config(url=url, connect_args={"prepared_statement_cache_size": 100})
        async with AsyncTenantManager(config) as manager:

            async def scoped() -> None:
                for tenant in ("a", "b"):
                    async with manager.get_db(tenant).session() as session:
                        await session.scalars(select(User.name))

            return await trips_of_async(proxy, scoped) / 2, expected

    found, expected = asyncio.run(main())
    assert found <= expected == 3
