"""Asking all tenants: one statement for many, against a loop of sessions.

Each with a manager that knows all tenants already, and with a new one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, func, select

from sqlalchemy_multitenant import AsyncTenantManager, TenantConfig, TenantManager, for_all_tenants

from .database import Base, User, make_config, own_database
from .report import Report, compare
from .rounds import Variant, measure

TENANTS, ROUNDS, ROWS = 1000, 5, 3
COUNT = select(func.count()).select_from(User)
AIM = "aim: at least 10 times the throughput of the loop"
POOL = 2


def run(server: URL, folder: Path, rounds: int | None, say: Callable[[str], object]) -> Iterator[Report]:
    """Count the rows of 1,000 tenants."""
    with own_database(server) as url:
        config = make_config(url, folder / "questions", Base, pool_size=POOL)
        names = [f"t{number}" for number in range(TENANTS)]
        say(f"creating {TENANTS} tenants ...")
        with TenantManager(config) as manager:
            manager.create_tenants(names)
        engine = create_engine(url)
        _fill(engine, names)
        engine.dispose()
        say("asking all of them ...")
        for kind, variants in (("sync", _sync), ("asyncio", _async)):
            samples = measure(list(variants(config, names)), rounds or ROUNDS, lambda _: None, TENANTS)
            title = f"a count over {TENANTS:,} tenants, {kind}"
            yield compare(title, "tenant", samples, ["loop, known tenants", "loop, new manager"], note=AIM)


def _fill(engine: Engine, names: list[str]) -> None:
    with engine.begin() as connection:
        for name in names:
            connection.exec_driver_sql(
                f"INSERT INTO tenant_{name}.users SELECT n, 'x', 'x', n FROM generate_series(1, {ROWS}) AS n"
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


def _sync(config: TenantConfig, names: list[str]) -> Iterator[Variant[None]]:
    manager = TenantManager(config)

    def ask(manager: TenantManager) -> None:
        assert sum(n for _, n in for_all_tenants(manager, COUNT)) == TENANTS * ROWS

    def loop(manager: TenantManager) -> None:
        counts = []
        for name in names:
            with manager.get_db(name).session() as session:
                counts.append(session.scalar(COUNT) or 0)
        assert sum(counts) == TENANTS * ROWS

    def anew(work: Callable[[TenantManager], None]) -> None:
        with TenantManager(config) as fresh:
            work(fresh)

    yield Variant("for_all_tenants", lambda _: ask(manager))
    yield Variant("loop, known tenants", lambda _: loop(manager))
    yield Variant("for_all_tenants, new manager", lambda _: anew(ask))
    yield Variant("loop, new manager", lambda _: anew(loop))


def _async(config: TenantConfig, names: list[str]) -> Iterator[Variant[None]]:
    runner = asyncio.Runner()
    manager = AsyncTenantManager(config)

    async def ask(manager: AsyncTenantManager) -> None:
        counts = [n async for _, n in for_all_tenants(manager, COUNT)]
        assert sum(counts) == TENANTS * ROWS

    async def loop(manager: AsyncTenantManager) -> None:
        counts = []
        for name in names:
            async with manager.get_db(name).session() as session:
                counts.append(await session.scalar(COUNT) or 0)
        assert sum(counts) == TENANTS * ROWS

    async def ask_anew() -> None:
        async with AsyncTenantManager(config) as fresh:
            await ask(fresh)

    async def loop_anew() -> None:
        async with AsyncTenantManager(config) as fresh:
            await loop(fresh)

    yield Variant("for_all_tenants", lambda _: runner.run(ask(manager)))
    yield Variant("loop, known tenants", lambda _: runner.run(loop(manager)))
    yield Variant("for_all_tenants, new manager", lambda _: runner.run(ask_anew()))
    yield Variant("loop, new manager", lambda _: runner.run(loop_anew()))
