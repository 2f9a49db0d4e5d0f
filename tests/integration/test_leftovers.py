"""What one user of a connection leaves behind must not be there for the next: on the server, and on the
client's side of it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import (
    AsyncTenantManager,
    ConfigurationError,
    Isolation,
    Migrations,
    NoTenantError,
    TenantManager,
    TenantNotFoundError,
)
from tests.conftest import MakeConfig, MakeHarness
from tests.harness import AsyncHarness, Harness
from tests.models import User

pytestmark = pytest.mark.filterwarnings("ignore:.*garbage collector.*")


def names(on: Session | Connection) -> list[str]:
    return list(on.execute(text("SELECT name FROM users ORDER BY name")).scalars())


@pytest.fixture(autouse=True)
def rows(plain: Engine) -> None:
    with plain.begin() as connection:
        connection.exec_driver_sql("INSERT INTO tenant_a.users (name, mood) VALUES ('ada', 'HAPPY')")
        connection.exec_driver_sql("INSERT INTO tenant_b.users (name, mood) VALUES ('bob', 'GRUMPY')")


def engine_of(harness: Harness, tenant: str) -> Engine:
    engine: Any = harness.manager.get_db(tenant).engine  # type: ignore[attr-defined]
    return getattr(engine, "sync_engine", engine)


@pytest.mark.parametrize("core", [True, False])
def test_a_commit_that_fails_before_it_is_sent(harness: Harness, core: bool) -> None:
    """SQLAlchemy then gives the connection back in the middle of the transaction."""
    failing = True

    @event.listens_for(engine_of(harness, "a"), "commit")
    def audit(_connection: object) -> None:
        if failing:
            raise RuntimeError("the audit log is down")

    def work(on: Any) -> None:
        on.execute(text("INSERT INTO users (name, mood) VALUES ('half done', 'HAPPY')"))
        on.commit()

    with pytest.raises(RuntimeError, match="audit log"):
        (harness.connection if core else harness.session)("a", work)
    failing = False
    with pytest.raises(NoTenantError):
        harness.connection("b", lambda c: c.connection.cursor().execute("SELECT name FROM users"))
    assert harness.connection("b", names) == ["bob"]
    assert harness.connection("a", names) == ["ada"]


def test_a_driver_call_that_times_out_while_asyncpg_begins(make_config: MakeConfig, url: URL) -> None:
    async def main() -> None:
        config = make_config(url=url.set(drivername="postgresql+asyncpg"), pool_size=1)
        async with AsyncTenantManager(config) as manager:
            a, b = manager.get_db("a"), manager.get_db("b")
            for n in range(30):
                async with a.connect() as connection:
                    await connection.begin()
                    driver: Any = (await connection.get_raw_connection()).driver_connection
                    try:
                        async with asyncio.timeout(0.0002 * (n % 5)):
                            await driver.fetchval("SELECT 1")
                    except TimeoutError:
                        pass
                await asyncio.sleep(0.01)
                async with b.connect() as connection:
                    driver = (await connection.get_raw_connection()).driver_connection
                    with pytest.raises(NoTenantError):
                        await driver.fetchrow("SELECT name FROM users")
                assert await b.scalar(text("SELECT name FROM users")) == "bob"

    asyncio.run(main())


def test_whatever_sends_sql_refuses_to_outside_a_transaction(make_config: MakeConfig, url: URL) -> None:
    """Of asyncpg's own connection: the tenant's transaction has ended, and nobody has begun another."""

    async def main() -> None:
        config = make_config(url=url.set(drivername="postgresql+asyncpg"), pool_size=1)
        async with AsyncTenantManager(config) as manager, manager.get_db("a").connect() as connection:
            await connection.execute(text("SELECT 1"))
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await connection.rollback()
            sql = "SELECT name FROM tenant_a.users"
            for name, arguments in {
                "execute": (sql,),
                "executemany": ("DELETE FROM users WHERE id = $1", [(1,)]),
                "fetch": (sql,),
                "fetchmany": ("SELECT $1::int", [(1,)]),
                "fetchrow": (sql,),
                "fetchval": (sql,),
                "prepare": (sql,),
                "copy_from_table": ("users",),
                "copy_from_query": (sql,),
                "copy_to_table": ("users",),
                "copy_records_to_table": ("users",),
                "add_listener": ("channel", print),
            }.items():
                options: dict[str, Any] = {"output": print} if name.startswith("copy_from") else {}
                options |= {"source": b""} if name == "copy_to_table" else {}
                options |= {"records": []} if name == "copy_records_to_table" else {}
                with pytest.raises(NoTenantError, match="in no transaction"):
                    await getattr(driver, name)(*arguments, **options)

    asyncio.run(main())


def test_an_answer_is_never_taken_for_anothers(make_config: MakeConfig) -> None:
    """An exception out of a signal handler (Celery's time limit) while a ROLLBACK is waited for."""

    class SoftTimeLimitError(Exception):
        pass

    def out_of_time(*_: object) -> None:
        raise SoftTimeLimitError

    before = signal.signal(signal.SIGALRM, out_of_time)
    with TenantManager(make_config(pool_size=1)) as manager:
        a, b = manager.get_db("a"), manager.get_db("b")
        manager.warm_up(["a", "b"])
        with b.connect() as connection:
            connection.execute(text("CREATE TEMP TABLE basket AS SELECT name FROM users"))
            connection.commit()
            pid: int = connection.scalar(text("SELECT pg_backend_pid()"))
            os.kill(pid, signal.SIGSTOP)  # a slow server: ROLLBACK is sent, and not answered
        try:
            with a.connect() as connection:
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                with pytest.raises(SoftTimeLimitError):
                    connection.execute(text("SELECT 1"))
        finally:
            os.kill(pid, signal.SIGCONT)
            signal.signal(signal.SIGALRM, before)
        with a.connect() as connection:
            assert names(connection) == ["ada"]
            with pytest.raises(DBAPIError, match="basket"):
                connection.execute(text("SELECT * FROM basket"))


def test_the_clients_encoding_never_turns_one_name_into_another(
    make_harness_: MakeHarness, make_config: MakeConfig
) -> None:
    """`é` in UTF-8 is `Ã©` in Latin-1."""
    schemas = {"x": "t_é", "y": "t_Ã©"}
    with TenantManager(make_config()) as manager:
        for tenant, schema in schemas.items():
            manager.create_tenant(tenant, schema=schema)
            with manager.get_db(tenant).begin() as session:
                session.add(User(name=f"user of {tenant}"))
    harness = make_harness_(pool_size=1)
    for tenant in ("x", "y"):
        harness.connection(tenant, names)

    def change(connection: Connection) -> None:
        connection.execute(text("SET client_encoding TO latin1"))
        connection.commit()

    for tenant in ("a", "x"):
        harness.connection(tenant, change)
        for _ in range(2):
            try:
                assert harness.connection("x", names) == ["user of x"]
            except DBAPIError as error:  # asyncpg cannot speak anything else
                assert harness.name == "asyncpg" and "client_encoding" in str(error)  # noqa: PT017, PT018


def test_what_a_psycopg_connection_was_made_to_do_ends_with_its_user(
    make_config: MakeConfig, plain: Engine
) -> None:
    import psycopg.types.numeric
    from psycopg.rows import dict_row

    def listen(driver: Any) -> None:
        driver.execute("LISTEN channel_of_a")

    heard: list[object] = []
    leave: list[Callable[[Any], object]] = [
        listen,
        lambda driver: driver.add_notify_handler(heard.append),
        lambda driver: driver.add_notice_handler(heard.append),
        lambda driver: setattr(driver, "row_factory", dict_row),
        lambda driver: setattr(driver, "prepare_threshold", 0),
        lambda driver: driver.adapters.register_loader("varchar", psycopg.types.numeric.IntLoader),
    ]
    for leftover in leave:
        with TenantManager(make_config(pool_size=1)) as manager:
            with manager.get_db("a").connect() as connection:
                connection.info["who"] = "a"
                connection.execute(text("SELECT 1"))
                leftover(connection.connection.driver_connection)
                connection.commit()
            with plain.begin() as other:
                other.exec_driver_sql("NOTIFY channel_of_a, 'secret of a'")
            with manager.get_db("b").connect() as connection:
                assert "who" not in connection.info
                connection.execute(text("LISTEN channel_of_b"))
                connection.execute(text("DO $$ BEGIN RAISE NOTICE 'secret of b'; END $$"))
                connection.execute(text("NOTIFY channel_of_b"))
                connection.commit()
                assert [tuple(row) for row in connection.execute(text("SELECT name FROM users"))] == [
                    ("bob",)
                ]
                driver: Any = connection.connection.driver_connection
                assert all(n.channel == "channel_of_b" for n in driver.notifies(timeout=0.1))
    assert heard == []


@pytest.mark.parametrize("driver", ["asyncpg"])
def test_what_an_asyncpg_connection_was_made_to_do_ends_with_its_user(make_harness_: MakeHarness) -> None:
    harness = make_harness_(pool_size=1)
    assert isinstance(harness, AsyncHarness)
    heard: list[object] = []

    async def codec(driver: Any) -> None:
        await driver.set_type_codec(
            "text", schema="pg_catalog", encoder=str, decoder=lambda _: "decoded by a"
        )

    async def listener(driver: Any) -> None:
        await driver.add_listener("channel", lambda *args: heard.append(args))

    async def logger(driver: Any) -> None:
        driver.add_query_logger(heard.append)

    async def main() -> None:
        for leftover in (codec, listener, logger):
            async with harness.manager.get_db("a").connect() as connection:
                await connection.execute(text("SELECT 1"))
                raw = await connection.get_raw_connection()
                await leftover(raw.driver_connection)
                await connection.rollback()
            heard.clear()
            async with harness.manager.get_db("b").connect() as connection:
                assert (await connection.scalars(text("SELECT name::text FROM users"))).all() == ["bob"]
                await connection.execute(text("NOTIFY channel"))
                await connection.commit()
            assert heard == []

    harness.run(main())


def test_prepare_is_refused_where_statements_are_kept(make_config: MakeConfig, url: URL) -> None:
    config = make_config(
        url=url.set(drivername="postgresql+asyncpg"), connect_args={"prepared_statement_cache_size": 100}
    )

    async def main() -> None:
        async with AsyncTenantManager(config) as manager:
            with pytest.raises(ConfigurationError, match="PREPARE"):
                await manager.get_db("a").execute(text("PREPARE p AS SELECT 'secret of a'"))

    asyncio.run(main())


def test_a_copy_that_is_over_writes_nothing(tenants: TenantManager) -> None:
    with tenants.get_db("a").connect() as connection:
        connection.execute(text("SELECT 1"))
        driver: Any = connection.connection.driver_connection
        with driver.cursor().copy("COPY users (name, mood) FROM STDIN") as copy:
            copy.write("eve\tHAPPY\n")
        connection.commit()
    with tenants.get_db("b").connect() as connection:
        connection.execute(text("SELECT 1"))
        driver = connection.connection.driver_connection
        with driver.cursor().copy("COPY users (name, mood) FROM STDIN"):
            with pytest.raises(NoTenantError, match="COPY has ended"):
                copy.write("mallory\tHAPPY\n")
        connection.commit()
        assert names(connection) == ["bob"]
    with tenants.get_db("a").connect() as connection:
        assert names(connection) == ["ada", "eve"]


@pytest.fixture
def listed() -> list[str]:
    return ["Acme"]


def test_a_schema_made_anew_for_another_id_is_not_the_old_ones(
    make_config: MakeConfig, plain: Engine, listed: list[str]
) -> None:
    """Two processes, ids that the application lists, and a mapping that lets `Acme` and `acme` meet."""
    config = make_config(
        schema_name=lambda tenant: f"t_{tenant.lower()}", migrations=Migrations(discover=lambda: listed)
    )
    assert isinstance(config.isolation, Isolation)
    with TenantManager(config) as first, TenantManager(config) as second:
        first.create_tenant("Acme")
        with first.get_db("Acme").begin() as session:
            session.add(User(name="user of Acme"))
        second.drop_tenant("Acme")
        listed[:] = []
        second.create_tenant("acme")
        listed[:] = ["acme"]
        with second.get_db("acme").begin() as session:
            session.add(User(name="user of acme"))
        for _ in range(3):
            with pytest.raises((TenantNotFoundError, ValueError)):
                first.get_db("Acme").scalars(text("SELECT name FROM users"))
        assert first.get_db("acme").scalars(text("SELECT name FROM users")).all() == ["user of acme"]


def test_discover_does_not_hold_up_the_event_loop(make_harness_: MakeHarness) -> None:
    import threading

    threads: set[int] = set()

    def discover() -> list[str]:
        threads.add(threading.get_ident())
        return ["a", "b"]

    harness = make_harness_(
        schema_name=lambda tenant: f"tenant_{tenant}", migrations=Migrations(discover=discover)
    )
    assert harness.connection("a", names) == ["ada"]
    if isinstance(harness, AsyncHarness):
        assert harness.thread.ident not in threads
