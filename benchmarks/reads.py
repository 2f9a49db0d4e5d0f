"""Reading one row of one of many tenants through the ORM: ours against what one writes by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Generic, TypeVar

from sqlalchemy import Engine, Select, create_engine, event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import AsyncTenantManager, TenantManager

from .database import ROWS, TENANTS, User, World
from .report import Report, compare
from .rounds import Samples, Variant, measure

ROUNDS, SERIES, READS_PER_ROUND = 160, 20, 40
AIMS = "aims: at least 0.95 of translate_map, at least 0.85 of pinned"
ASYNCPG_NOTE = (
    "ours_cached: connect_args={'prepared_statement_cache_size': 100}; "
    "the plain ones have SQLAlchemy's cache of prepared statements"
)
PLAIN = ("pinned", "translate_map", "set_local")

Variants = list[Variant[Sequence["Read"]]]
MakeVariants = Callable[[], AbstractContextManager[Variants]]
AnySession = TypeVar("AnySession", Session, AsyncSession)


@dataclass(frozen=True, slots=True)
class Read:
    """Which row to read: the tenant's number and the primary key."""

    tenant: int
    pk: int


@dataclass(frozen=True)
class Way(Generic[AnySession]):
    """A way to reach tenants.

    Attributes:
        open: makes a session for the tenant of this number.
        first: makes the SQL to send before anything else, or None.
        pinned: whether it reaches tenant 0 only.
    """

    name: str
    open: Callable[[int], AnySession]
    first: Callable[[int], str] | None = None
    pinned: bool = False

    def place(self, reads: Sequence[Read]) -> Sequence[Read]:
        """`reads`, of the tenants that are in reach."""
        return [Read(0, read.pk) for read in reads] if self.pinned else reads


def _statement(read: Read) -> Select[User]:
    return select(User).where(User.id == read.pk)


def _check(read: Read, user: User | None) -> None:
    assert user is not None, read
    assert user.name == f"t{read.tenant}-{read.pk}", (read, user.name)


def _read(way: Way[Session], reads: Sequence[Read]) -> None:
    for read in way.place(reads):
        with way.open(read.tenant) as session:
            if way.first is not None:
                session.connection().exec_driver_sql(way.first(read.tenant))
            _check(read, session.scalar(_statement(read)))


async def _read_async(way: Way[AsyncSession], reads: Sequence[Read]) -> None:
    for read in way.place(reads):
        async with way.open(read.tenant) as session:
            if way.first is not None:
                await (await session.connection()).exec_driver_sql(way.first(read.tenant))
            _check(read, await session.scalar(_statement(read)))


def _plain_ways(
    world: World, make_engine: Callable[[], Engine], opener: Callable[[Engine], Callable[[], AnySession]]
) -> list[Way[AnySession]]:
    """What one writes by hand, with the defaults of SQLAlchemy and of the driver."""
    pinned, mapped, local = make_engine(), make_engine(), make_engine()

    @event.listens_for(pinned, "connect")
    def pin(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET search_path TO {world.schemas[0]}")
        cursor.close()
        connection.commit()

    open_pinned, open_local = opener(pinned), opener(local)
    options = [{"schema_translate_map": {None: schema}} for schema in world.schemas]
    open_mapped = [opener(mapped.execution_options(**option)) for option in options]
    return [
        Way("pinned", lambda _: open_pinned(), pinned=True),
        Way("translate_map", lambda tenant: open_mapped[tenant]()),
        Way("set_local", lambda _: open_local(), lambda n: f"SET LOCAL search_path TO {world.schemas[n]}"),
    ]


@contextmanager
def _sync_variants(world: World) -> Iterator[Variants]:
    engines: list[Engine] = []

    def make_engine() -> Engine:
        engines.append(create_engine(world.url, pool_size=1, max_overflow=0))
        return engines[-1]

    ways = _plain_ways(world, make_engine, lambda engine: partial(Session, engine))
    with TenantManager(world.config()) as manager:
        ways.append(Way("ours", lambda tenant: manager.get_db(world.tenants[tenant]).session()))
        yield [Variant(way.name, partial(_read, way)) for way in ways]
    for engine in engines:
        engine.dispose()


def _run_async(runner: asyncio.Runner, way: Way[AsyncSession], reads: Sequence[Read]) -> None:
    runner.run(_read_async(way, reads))


def _manage(world: World, driver: str, **connection: Any) -> AsyncTenantManager:
    return AsyncTenantManager(world.config(driver, **connection))


@contextmanager
def _async_variants(world: World, driver: str) -> Iterator[Variants]:
    engines: list[AsyncEngine] = []

    def make_engine() -> Engine:
        url = world.url.set(drivername=f"postgresql+{driver}")
        engines.append(create_async_engine(url, pool_size=1, max_overflow=0))
        return engines[-1].sync_engine

    ways = _plain_ways(
        world, make_engine, lambda engine: partial(AsyncSession, AsyncEngine(engine), expire_on_commit=False)
    )
    managers = {"ours": _manage(world, driver)}
    if driver == "asyncpg":
        managers["ours_cached"] = _manage(world, driver, connect_args={"prepared_statement_cache_size": 100})
    for name, manager in managers.items():
        ways.append(_ours_async(name, manager, world))
    with asyncio.Runner() as runner:
        yield [Variant(way.name, partial(_run_async, runner, way)) for way in ways]
        for manager in managers.values():
            runner.run(manager.close())
        for engine in engines:
            runner.run(engine.dispose())


def _ours_async(name: str, manager: AsyncTenantManager, world: World) -> Way[AsyncSession]:
    return Way(name, lambda tenant: manager.get_db(world.tenants[tenant]).session())


def _make_reads(random: Random) -> list[Read]:
    return [Read(random.randrange(TENANTS), random.randint(1, ROWS)) for _ in range(READS_PER_ROUND)]


def _measure(title: str, make_variants: MakeVariants, rounds: int, note: str = AIMS) -> Report:
    """Each series has new connections: which core a server process was put on stays with it."""
    samples = Samples()
    series = min(SERIES, rounds)
    for number in range(series):
        with make_variants() as variants:
            # Every tenant once, so that none is looked up and no statement compiled while it is timed.
            for variant in variants:
                variant.run([Read(tenant, 1) for tenant in range(TENANTS)])
            samples.add(measure(variants, rounds // series, _make_reads, READS_PER_ROUND, seed=number))
    return compare(title, "read", samples, PLAIN, note=note)


def run(world: World, rounds: int | None, progress: Callable[[str], object]) -> Iterator[Report]:
    """The reports, one after the other."""
    rounds = rounds or ROUNDS
    progress("one-row reads, sync psycopg ...")
    yield _measure("One-row ORM reads, psycopg, threads", partial(_sync_variants, world), rounds)
    progress("one-row reads, async psycopg ...")
    make_variants = partial(_async_variants, world, "psycopg")
    yield _measure("One-row ORM reads, psycopg, asyncio", make_variants, rounds)
    progress("one-row reads, asyncpg ...")
    make_variants = partial(_async_variants, world, "asyncpg")
    yield _measure("One-row ORM reads, asyncpg", make_variants, rounds, ASYNCPG_NOTE)
