"""Two tenants never meet: what every strategy has to hold, over every driver."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, Engine, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import (
    AsyncTenantManager,
    NoTenantError,
    TenantContext,
    TenantManager,
    TenantNotFoundError,
    TenantSuspendedError,
)
from tests.conftest import MakeConfig
from tests.harness import Harness
from tests.models import Mood, Note, User


def add_user(name: str, mood: Mood = Mood.HAPPY):  # type: ignore[no-untyped-def]
    def body(session: Session) -> None:
        session.add(User(name=name, mood=mood))
        session.commit()

    return body


def names(session: Session) -> list[str]:
    return list(session.scalars(select(User.name).order_by(User.name)))


def fill(harness: Harness) -> None:
    harness.session("a", add_user("ada", Mood.HAPPY))
    harness.session("b", add_user("bob", Mood.GRUMPY))


def test_each_sees_its_own_rows(harness: Harness) -> None:
    fill(harness)
    for _ in range(5):
        assert harness.session("a", names) == ["ada"]
        assert harness.session("b", names) == ["bob"]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM users",
        "SELECT name FROM users WHERE id = (SELECT max(id) FROM users)",
        "SELECT u.name FROM users u JOIN LATERAL (SELECT 1) x ON true",
        "WITH w AS (SELECT name FROM users) SELECT name FROM w",
        "UPDATE users SET name = name RETURNING name",
    ],
)
def test_raw_sql_is_scoped(harness: Harness, sql: str) -> None:
    fill(harness)
    assert harness.session("a", lambda s: s.execute(text(sql)).scalars().all()) == ["ada"]
    assert harness.connection("b", lambda c: c.exec_driver_sql(sql).scalars().all()) == ["bob"]


def test_functions_and_triggers_are_scoped(harness: Harness, plain: Engine) -> None:
    with plain.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION public.how_many() RETURNS bigint LANGUAGE plpgsql AS "
            "$$ BEGIN RETURN (SELECT count(*) FROM users); END $$"
        )
    fill(harness)
    harness.session("b", add_user("bea"))
    for _ in range(3):
        assert harness.session("a", lambda s: s.scalar(select(func.how_many()))) == 1
        assert harness.session("b", lambda s: s.scalar(select(func.how_many()))) == 2


def test_writes_stay_at_home(harness: Harness) -> None:
    fill(harness)

    def write(session: Session) -> None:
        session.execute(update(User).values(name="changed"))
        session.execute(insert(Note), [{"text": f"n{i}", "user_id": 1} for i in range(3)])
        session.commit()

    harness.session("a", write)
    assert harness.session("b", names) == ["bob"]
    assert harness.session("b", lambda s: s.scalar(select(func.count()).select_from(Note))) == 0
    harness.session("a", lambda s: (s.execute(delete(Note)), s.execute(delete(User)), s.commit()))
    assert harness.session("b", names) == ["bob"]


def test_the_transaction_after_a_commit_or_rollback_is_the_same_tenants(harness: Harness) -> None:
    fill(harness)

    def body(session: Session) -> list[list[str]]:
        seen = [names(session)]
        session.commit()
        harness_other = names(session)
        seen.append(harness_other)
        session.rollback()
        seen.append(list(session.execute(text("SELECT name FROM users")).scalars()))
        session.commit()
        seen.append(names(session))
        return seen

    assert harness.session("a", body) == [["ada"]] * 4
    assert harness.session("b", body) == [["bob"]] * 4


def test_two_open_sessions_do_not_swap(make_harness_) -> None:  # type: ignore[no-untyped-def]
    harness = make_harness_(pool_size=2)
    fill(harness)

    def outer(a: Session) -> None:
        assert names(a) == ["ada"]
        a.commit()

    def both() -> None:
        for _ in range(10):
            harness.session("a", outer)
            assert harness.session("b", names) == ["bob"]

    both()
    if harness.name == "psycopg":
        with harness.manager.get_db("a").session() as a, harness.manager.get_db("b").session() as b:
            for _ in range(4):
                assert (names(a), names(b)) == (["ada"], ["bob"])
                a.commit()
                b.rollback()


def test_identity_maps_are_apart(harness: Harness) -> None:
    fill(harness)
    first = harness.session("a", lambda s: s.get_one(User, 1).name)
    second = harness.session("b", lambda s: s.get_one(User, 1).name)
    assert (first, second) == ("ada", "bob")


def test_an_enum_per_tenant_survives_alternation(harness: Harness) -> None:
    fill(harness)

    def read(session: Session) -> Mood | None:
        return session.scalar(select(User.mood).where(User.mood.in_(list(Mood))))

    def write(session: Session) -> None:
        session.execute(update(User).values(mood=User.mood))
        session.commit()

    for _ in range(12):
        assert harness.session("a", read) is Mood.HAPPY
        assert harness.session("b", read) is Mood.GRUMPY
        harness.session("a", write)
        harness.session("b", write)


def test_an_enum_survives_with_asyncpgs_statement_cache(make_config: MakeConfig, url) -> None:  # type: ignore[no-untyped-def]
    config = make_config(
        url=url.set(drivername="postgresql+asyncpg"),
        pool_size=1,
        connect_args={"prepared_statement_cache_size": 50},
    )

    async def main() -> None:
        async with AsyncTenantManager(config) as tenants:
            for tenant, mood in (("a", Mood.HAPPY), ("b", Mood.GRUMPY)):
                async with tenants.get_db(tenant).begin() as session:
                    session.add(User(name=tenant, mood=mood))
            for _ in range(15):
                for tenant, mood in (("a", Mood.HAPPY), ("b", Mood.GRUMPY)):
                    found = await tenants.get_db(tenant).scalars(select(User).where(User.mood == mood))
                    assert [(u.name, u.mood) for u in found] == [(tenant, mood)]
                    assert (
                        await tenants.get_db(tenant).scalar(select(User.name).where(User.id == 1)) == tenant
                    )

    asyncio.run(main())


def test_unknown_suspended_and_dropped_tenants_raise(harness: Harness) -> None:
    fill(harness)
    with pytest.raises(TenantNotFoundError, match="ghost"):
        harness.session("ghost", names)
    harness.call("set_tenant_status", "a", "suspended")
    with pytest.raises(TenantSuspendedError):
        harness.session("a", names)
    harness.call("set_tenant_status", "a", "active")
    assert harness.session("a", names) == ["ada"]
    harness.call("drop_tenant", "a")
    with pytest.raises(TenantNotFoundError):
        harness.session("a", names)
    assert harness.session("b", names) == ["bob"]


def test_a_missing_table_never_falls_back_to_public(harness: Harness, plain: Engine) -> None:
    """Not even one that appeared in the shared schema after the connections were made."""
    fill(harness)
    with plain.begin() as connection:
        connection.exec_driver_sql('ALTER SCHEMA tenant_a RENAME TO "elsewhere"')
    with pytest.raises(TenantNotFoundError, match="gone"):
        harness.session("a", names)


def test_errors_pass_through_unchanged(harness: Harness) -> None:
    def collide(session: Session) -> None:
        session.add(User(id=7, name="x"))
        session.flush()
        session.execute(insert(User).values(id=7, name="again"))

    with pytest.raises(IntegrityError):
        harness.session("a", collide)

    class Mine(Exception):
        pass

    def fail(session: Session) -> None:
        names(session)
        raise Mine

    with pytest.raises(Mine):
        harness.session("a", fail)
    assert harness.session("b", names) == []


MIX = ("orm", "core", "text", "error", "commit", "rollback", "savepoint")


def one_step(session: Session, tenant: str, kind: str) -> None:
    """One piece of work, which fails if it sees a row of anybody else."""

    def check(found: list[str]) -> None:
        assert all(name.startswith(f"{tenant}-") for name in found), (tenant, found)

    if kind == "orm":
        check([user.name for user in session.scalars(select(User))])
    elif kind == "core":
        check(list(session.connection().execute(select(User.__table__.c.name)).scalars()))
    elif kind == "text":
        check(list(session.execute(text("SELECT name FROM users")).scalars()))
    elif kind == "error":
        with pytest.raises(Exception, match="nonexistent"):
            session.execute(text("SELECT nonexistent"))
        session.rollback()
        check(names(session))
    elif kind == "commit":
        session.add(User(name=f"{tenant}-{random.random()}"))
        session.commit()
        check(names(session))
    elif kind == "rollback":
        session.add(User(name="never"))
        session.flush()
        session.rollback()
        check(names(session))
    else:
        with session.begin_nested() as savepoint:
            session.add(User(name="never"))
            session.flush()
            savepoint.rollback()
        check(names(session))


TWENTY = [f"t{i}" for i in range(20)]


@pytest.fixture
def twenty(make_config: MakeConfig) -> Iterator[TenantManager]:
    with TenantManager(make_config(pool_size=3, pool_timeout_s=60)) as manager:
        for tenant in TWENTY:
            manager.create_tenant(tenant)
            with manager.get_db(tenant).begin() as session:
                session.add(User(name=f"{tenant}-first"))
        yield manager


def test_eight_threads_over_twenty_tenants(twenty: TenantManager) -> None:
    context = TenantContext(twenty)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(40):
            tenant = rng.choice(TWENTY)
            with context.use_tenant(tenant), context.get_tenant_db().session() as session:
                for _ in range(rng.randint(1, 3)):
                    one_step(session, tenant, rng.choice(MIX))
            assert context.get_tenant_or_none() is None

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, seed) for seed in range(8)]:
            future.result()


@pytest.mark.parametrize("driver_name", ["psycopg", "asyncpg"])
def test_fifty_tasks_over_twenty_tenants(
    twenty: TenantManager, make_config: MakeConfig, driver_name: str
) -> None:
    url = twenty.config.connection.url.set(drivername=f"postgresql+{driver_name}")

    async def main() -> None:
        async with AsyncTenantManager(make_config(url=url, pool_size=3, pool_timeout_s=60)) as manager:
            context = TenantContext(manager)

            async def work(seed: int) -> None:
                rng = random.Random(seed)
                for _ in range(6):
                    tenant = rng.choice(TWENTY)
                    async with context.use_tenant(tenant), context.get_tenant_db().session() as session:
                        for _ in range(rng.randint(1, 3)):
                            await session.run_sync(one_step, tenant, rng.choice(MIX))
                            await asyncio.sleep(0)
                        assert context.get_tenant() == tenant

            await asyncio.gather(*map(work, range(50)))

    asyncio.run(main())


def test_a_bare_thread_has_no_tenant(tenants: TenantManager) -> None:
    context = TenantContext(tenants)
    seen: list[object] = []

    def look() -> None:
        try:
            seen.append(context.get_tenant())
        except NoTenantError as error:
            seen.append(type(error))

    with context.use_tenant("a"):
        threads = [
            threading.Thread(target=look),
            threading.Thread(target=contextvars.copy_context().run, args=(look,)),
        ]
        for thread in threads:
            thread.start()
            thread.join()
    assert seen == [NoTenantError, "a"]


def test_a_raw_engine_or_connection_raises(tenants: TenantManager) -> None:
    engine = tenants.get_db("a").engine
    base = engine._proxied  # type: ignore[attr-defined]
    with base.connect() as connection, pytest.raises(NoTenantError):
        connection.execute(text("SELECT 1"))
    with Session(base) as session, pytest.raises(NoTenantError):
        session.scalars(select(User)).all()
    raw = engine.raw_connection()
    try:
        with pytest.raises(NoTenantError):
            raw.cursor().execute("SELECT 1")
        with pytest.raises(NoTenantError):
            raw.driver_connection.execute("SELECT 1")
    finally:
        raw.close()


def test_a_connection_given_back_is_nobodys(harness: Harness) -> None:
    fill(harness)
    kept: list[Connection] = []
    harness.connection("a", lambda c: (c.execute(text("SELECT 1")), kept.append(c)) and None)
    with pytest.raises(Exception, match="closed"):
        kept[0].execute(text("SELECT name FROM users"))
    assert harness.session("b", names) == ["bob"]


HIDDEN = [
    "SELECT t.create function, t.begin atomic FROM (SELECT 1 AS create, 2 AS begin) t; {} --",
    "SELECT $a€$ ' $a€$; {} --'",
    "SELECT $\U0001f600$ ' $\U0001f600$; {} --'",
    "SELECT E'a' --c\n'\\' || '; {} --'",
    "SELECT E'a'\r'\\' || '; {} --'",
    "SHOW server_version; {}",
]


def test_nothing_behind_a_statement_that_is_read_otherwise(harness: Harness, plain: Engine) -> None:
    """A COMMIT in text whose strings and bodies we and the server tell apart differently."""
    for statement in HIDDEN:
        sql = statement.format("COMMIT; CREATE TABLE public.evil(x int);").replace(":", r"\:")

        def attempt(session: Session, sql: str = sql) -> None:
            session.execute(text("SELECT 1"))
            with pytest.raises(Exception, match=r"multiple|COMMIT|syntax"):
                session.execute(text(sql))

        harness.session("a", attempt)
    with plain.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('public.evil')")) is None
