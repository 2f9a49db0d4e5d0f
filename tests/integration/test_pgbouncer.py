"""Behind a real PgBouncer in transaction mode, all clients forced onto one backend."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, select, text

from sqlalchemy_multitenant import AsyncTenantManager, TenantManager
from tests.conftest import MakeConfig
from tests.harness import make_harness
from tests.models import Mood, User
from tests.proxies import pgbouncer

pytestmark = pytest.mark.skipif(
    shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin") is None,
    reason="pgbouncer is not installed: apt-get install pgbouncer",
)


@pytest.fixture
def pooled(url: URL, plain: Engine) -> Iterator[URL]:
    with plain.begin() as connection:
        connection.exec_driver_sql("INSERT INTO tenant_a.users (name, mood) VALUES ('ada', 'HAPPY')")
        connection.exec_driver_sql("INSERT INTO tenant_b.users (name, mood) VALUES ('bob', 'GRUMPY')")
    with pgbouncer(url) as pooled:
        yield pooled


def test_two_clients_on_one_backend_never_meet(pooled: URL, make_config: MakeConfig) -> None:
    backends: set[int] = set()

    def work(tenant: str, name: str, mood: Mood) -> None:
        with TenantManager(make_config(url=pooled, pool_size=1, pool_timeout_s=30)) as manager:
            for _ in range(40):
                with manager.get_db(tenant).session() as session:
                    user = session.scalars(select(User).where(User.mood == mood)).one()
                    assert (user.name, user.mood) == (name, mood)
                    assert session.execute(text("SELECT name FROM users")).scalars().all() == [name]
                    backends.add(session.scalar(text("SELECT pg_backend_pid()")) or 0)
                    session.commit()

    errors: list[BaseException] = []

    def guarded(*arguments: object) -> None:
        try:
            work(*arguments)  # type: ignore[arg-type]
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=arguments)
        for arguments in (("a", "ada", Mood.HAPPY), ("b", "bob", Mood.GRUMPY)) * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(backends) == 1


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_two_clients_on_one_backend_never_meet_under_asyncio(
    pooled: URL, make_config: MakeConfig, driver: str
) -> None:
    config = make_config(url=pooled.set(drivername=f"postgresql+{driver}"), pool_size=3, pool_timeout_s=30)

    async def main() -> None:
        async with AsyncTenantManager(config) as manager:

            async def work(tenant: str, name: str, mood: Mood) -> None:
                for _ in range(25):
                    async with manager.get_db(tenant).session() as session:
                        user = (await session.scalars(select(User).where(User.mood == mood))).one()
                        assert (user.name, user.mood) == (name, mood)

            await asyncio.gather(
                *(work(*who) for who in (("a", "ada", Mood.HAPPY), ("b", "bob", Mood.GRUMPY)) * 3)
            )

    asyncio.run(main())


def test_what_another_client_left_on_the_backend_does_not_matter(
    pooled: URL, make_config: MakeConfig, admin: Engine
) -> None:
    with admin.connect() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS nobody_special")
        connection.exec_driver_sql("CREATE ROLE nobody_special")
    other = create_engine(pooled, connect_args={"prepare_threshold": None})
    with TenantManager(make_config(url=pooled)) as manager:
        db = manager.get_db("a")
        assert db.scalars(select(User.name)).all() == ["ada"]
        with other.connect() as connection:
            connection.exec_driver_sql("SET search_path TO tenant_b")
            connection.exec_driver_sql("SET ROLE nobody_special")
            connection.commit()
        assert db.scalars(select(User.name)).all() == ["ada"]
        with other.connect() as connection:
            connection.exec_driver_sql("RESET ROLE")
            connection.commit()
    other.dispose()


def test_a_client_that_sets_nothing_is_left_alone(pooled: URL, make_config: MakeConfig) -> None:
    other = create_engine(pooled, connect_args={"prepare_threshold": None})
    with TenantManager(make_config(url=pooled)) as manager:
        for _ in range(3):
            manager.get_db("a").scalars(select(User)).all()
            with other.connect() as connection:
                assert connection.scalar(text("SHOW search_path")) == '"$user", public'
    other.dispose()


def test_suspension_holds_through_the_pooler(pooled: URL, make_config: MakeConfig) -> None:
    with TenantManager(make_config(url=pooled)) as manager:
        assert manager.get_db("a").scalars(select(User.name)).all() == ["ada"]
        manager.set_tenant_status("a", "suspended")
        with pytest.raises(Exception, match="suspended"):
            manager.get_db("a").scalars(select(User.name))
        assert manager.get_db("b").scalars(select(User.name)).all() == ["bob"]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg-async", "asyncpg"])
def test_every_transaction_is_cleaned_not_only_the_first(
    pooled: URL, make_config: MakeConfig, driver: str
) -> None:
    """Between two transactions of one client, another has the session."""
    with TenantManager(make_config(url=pooled, pool_size=1)) as manager:
        harness = make_harness(driver, make_config, pooled, url=pooled, pool_size=1)

        def work(connection: Connection) -> list[str | None]:
            connection.execute(text("SELECT 1"))
            connection.rollback()
            with manager.get_db("a").connect() as other:
                other.execute(text("SELECT set_config('app.who', 'secret of a', false)"))
                other.execute(text("CREATE TEMP TABLE basket AS SELECT name FROM users"))
                other.commit()
            found = [connection.scalar(text("SELECT current_setting('app.who', true)"))]
            found.append(connection.scalar(text("SELECT to_regclass('pg_temp.basket')::text")))
            return [value or None for value in found]

        try:
            assert harness.connection("b", work) == [None, None]
        finally:
            harness.close()
