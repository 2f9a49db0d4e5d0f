"""Pools: a true ceiling, nothing closed in use, LRU and TTL, hooks, a manager that closes cleanly."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import URL, Engine, event, select, text
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sqlalchemy_multitenant import (
    AsyncTenantManager,
    Hooks,
    TenantBusyError,
    TenantManager,
    TenantNotFoundError,
)
from tests.conftest import MakeConfig, MakeHarness
from tests.models import User

ACTIVE, IDLE = "multitenant_pool_connections_active", "multitenant_pool_connections_idle"


def open_connections(plain: Engine) -> int:
    """How many connections the test's database has, besides the one that asks."""
    with plain.connect() as connection:
        return int(
            connection.scalar(
                text(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
            )
            or 0
        )


def settles_at(plain: Engine, expected: int) -> bool:
    """Whether so many are left: a backend takes a moment to end after its client has gone."""
    deadline = time.monotonic() + 10
    while open_connections(plain) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return open_connections(plain) == expected


def settles_below(plain: Engine, limit: int) -> bool:
    """Whether fewer are left, once those have ended whose clients have gone."""
    deadline = time.monotonic() + 10
    while (found := open_connections(plain)) >= limit and time.monotonic() < deadline:
        time.sleep(0.01)
    return found < limit


def touch(manager: TenantManager, tenant: str) -> None:
    manager.get_db(tenant).scalars(select(User)).all()


@pytest.fixture
def six(make_config: MakeConfig) -> list[str]:
    names = [f"t{i}" for i in range(6)]
    with TenantManager(make_config()) as manager:
        for name in names:
            manager.create_tenant(name)
    return names


def test_one_pool_serves_all_by_default(make_config: MakeConfig, plain: Engine, six: list[str]) -> None:
    created: list[str] = []
    with TenantManager(make_config(pool_size=2, hooks=Hooks(on_pool_created=created.append))) as manager:
        for name in six:
            touch(manager, name)
        assert created == ["default"]
        assert open_connections(plain) == 1
        assert manager.metrics() == {
            "multitenant_pool_count": 1,
            "multitenant_pool_connections_active": 0,
            "multitenant_pool_connections_idle": 1,
        }
    assert settles_at(plain, 0)


def test_the_least_recently_used_pool_gives_way(
    make_config: MakeConfig, plain: Engine, six: list[str]
) -> None:
    created: list[str] = []
    evicted: list[str] = []
    config = make_config(
        pool_per_tenant=True,
        max_pools=3,
        pool_size=1,
        hooks=Hooks(on_pool_created=created.append, on_pool_evicted=evicted.append),
    )
    with TenantManager(config) as manager:
        touch(manager, six[0])  # opens the shared pool, too, to see whether there is such a tenant
        touch(manager, six[1])
        touch(manager, six[0])
        touch(manager, six[2])
        assert created == ["t0", "default", "t1", "t2"] or created == ["default", "t0", "t1", "t2"]
        assert "t0" not in evicted
        assert settles_below(plain, 5)
        for _ in range(3):
            for name in six:
                touch(manager, name)
                assert settles_below(plain, 5)
    assert settles_at(plain, 0)


def test_a_pool_in_use_is_never_closed(make_config: MakeConfig, six: list[str]) -> None:
    config = make_config(pool_per_tenant=True, max_pools=2, pool_size=1, pool_timeout_s=0.3)
    with TenantManager(config) as manager:
        with manager.get_db("t0").session() as session:
            session.scalars(select(User)).all()
            for name in six[1:]:
                touch(manager, name)
            assert session.scalars(select(User)).all() == []
            with manager.get_db("t1").session() as second:
                second.scalars(select(User)).all()
                with pytest.raises(TenantBusyError, match="max_pools"):
                    touch(manager, "t2")
        touch(manager, "t2")


def test_the_ceiling_holds_under_load(make_config: MakeConfig, plain: Engine, six: list[str]) -> None:
    config = make_config(pool_per_tenant=True, max_pools=3, pool_size=2, pool_timeout_s=30)
    stop = threading.Event()
    highest, held = 0, 0.0

    def watch() -> None:
        nonlocal highest, held
        while not stop.is_set():
            figures = manager.metrics()
            held = max(held, figures[ACTIVE] + figures[IDLE])
            highest = max(highest, open_connections(plain))

    with TenantManager(config) as manager:
        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: touch(manager, six[i % 6]), range(240)))
        stop.set()
        watcher.join()
        # Three pools and the shared one, two each; backends whose clients have gone take a moment to end.
        assert highest <= 8 + 4
        assert held <= 8
    assert settles_at(plain, 0)


def test_an_unknown_tenant_takes_no_place(make_config: MakeConfig, six: list[str]) -> None:
    evicted: list[str] = []
    config = make_config(
        pool_per_tenant=True, max_pools=3, pool_size=1, hooks=Hooks(on_pool_evicted=evicted.append)
    )
    with TenantManager(config) as manager:
        touch(manager, "t0")
        touch(manager, "t1")
        for i in range(10):
            with pytest.raises(TenantNotFoundError):
                touch(manager, f"ghost{i}")
        assert evicted == []


def test_a_full_pool_times_out_instead_of_growing(make_config: MakeConfig, plain: Engine) -> None:
    with TenantManager(make_config(pool_size=1, pool_timeout_s=0.2)) as manager:
        with manager.get_db("a").connect() as connection:
            connection.execute(text("SELECT 1"))
            with pytest.raises(PoolTimeoutError):
                touch(manager, "b")
            assert open_connections(plain) == 1


def test_idle_connections_are_closed(make_harness_: MakeHarness, plain: Engine) -> None:
    evicted: list[str] = []
    harness = make_harness_(idle_timeout_s=0.2, pool_ttl_s=1.5, hooks=Hooks(on_pool_evicted=evicted.append))
    harness.session("a", lambda s: s.scalars(select(User)).all())
    assert open_connections(plain) == 1
    assert settles_at(plain, 0)
    assert evicted == []
    deadline = time.monotonic() + 10
    while not evicted and time.monotonic() < deadline:
        time.sleep(0.05)
    assert evicted == ["default"]
    assert harness.session("a", lambda s: s.scalars(select(User)).all()) == []


def test_connections_out_at_close_are_closed_on_return(make_config: MakeConfig, plain: Engine) -> None:
    manager = TenantManager(make_config())
    with manager.get_db("a").connect() as connection:
        connection.execute(text("SELECT 1"))
        manager.close()
        assert connection.scalar(text("SELECT 1")) == 1
    assert settles_at(plain, 0)
    with pytest.raises(RuntimeError, match="closed"):
        touch(manager, "a")
    manager.close()


def test_a_handle_that_outlives_its_manager_opens_nothing(make_config: MakeConfig) -> None:
    with TenantManager(make_config()) as manager:
        db = manager.get_db("a")
        db.scalars(select(User)).all()
    with pytest.raises(RuntimeError, match="closed"):
        db.scalars(select(User))


def test_the_error_hook_is_told_of_the_tenant(make_harness_: MakeHarness) -> None:
    seen: list[tuple[str | None, str]] = []
    hooks = Hooks(on_error=lambda tenant, error: seen.append((tenant, type(error).__name__)))
    harness = make_harness_(hooks=hooks)
    with pytest.raises(DBAPIError):
        harness.session("a", lambda s: s.execute(text("SELECT nonexistent")))
    assert len(seen) == 1
    assert seen[0][0] == "a"


def test_a_failing_hook_breaks_nothing(make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    def broken(name: str) -> None:
        raise RuntimeError(f"no {name}")

    with TenantManager(make_config(hooks=Hooks(on_pool_created=broken))) as manager:
        touch(manager, "a")
    assert "no default" in caplog.text


def test_warm_up_and_health(make_harness_: MakeHarness, plain: Engine) -> None:
    harness = make_harness_(pool_size=2)
    harness.call("warm_up", ["a", "b"])
    assert open_connections(plain) == 1
    with pytest.raises(TenantNotFoundError):
        harness.call("warm_up", ["a", "ghost"])
    health = harness.call("health_check")
    assert health
    assert health.latency_ms > 0


def test_health_of_a_server_that_is_not_there(make_config: MakeConfig) -> None:
    with TenantManager(make_config(url="postgresql://127.0.0.1:1/nothing")) as manager:
        health = manager.health_check()
    assert not health
    assert "OperationalError" in str(health.error)


def test_a_detached_connection_does_not_wedge_the_pool(make_config: MakeConfig) -> None:
    with TenantManager(make_config(pool_size=1, max_pools=1, pool_timeout_s=1)) as manager:
        with manager.get_db("a").connect() as connection:
            connection.execute(text("SELECT 1"))
            connection.detach()
        touch(manager, "b")
        assert manager.metrics()["multitenant_pool_connections_active"] == 0


def test_a_manager_that_nobody_keeps_is_collected(make_config: MakeConfig, plain: Engine) -> None:
    manager = TenantManager(make_config())
    touch(manager, "a")
    manager.close()
    del manager
    gc.collect()
    assert settles_at(plain, 0)


def test_the_interpreter_ends_cleanly_without_close(url, plain: Engine) -> None:  # type: ignore[no-untyped-def]
    code = f"""
import sys
from sqlalchemy import select
from sqlalchemy_multitenant import *
from tests.models import *
config = TenantConfig(connection=Connection(url={url.render_as_string(hide_password=False)!r}),
                      schemas=Schemas(tenant=TenantBase, shared=SharedBase))
manager = TenantManager(config)
print(manager.get_db("a").scalars(select(User)).all())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert settles_at(plain, 0)


def test_a_cancelled_connect_gives_its_place_back(make_config: MakeConfig) -> None:
    """Also one to a server that does not answer."""
    config = make_config(pool_per_tenant=True, max_pools=1, pool_size=1, pool_timeout_s=2)

    async def main() -> None:
        async with AsyncTenantManager(config) as manager:
            await manager.get_shared_db().scalar(text("SELECT 1"))
            for delay in (0, 0.001, 0.003, 0.005, 0.01, 0.02):
                task = asyncio.ensure_future(manager.get_db("b").scalars(select(User)))
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert (await manager.get_db("a").scalars(select(User))).all() == []

    asyncio.run(main())


def test_a_failed_listener_gives_the_place_and_the_connection_back(
    make_config: MakeConfig, plain: Engine
) -> None:
    """At once, and not after a time-out: also where a place in the pool is connected again."""
    config = make_config(pool_per_tenant=True, max_pools=1, pool_size=1, pool_timeout_s=1)
    with TenantManager(config) as manager:
        engine = manager.get_db("b").engine
        failing = True

        @event.listens_for(engine, "connect")
        def fail(*_: object) -> None:
            if failing:
                raise RuntimeError("made up")

        for _ in range(3):
            with pytest.raises(RuntimeError, match="made up"):
                touch(manager, "b")
        touch(manager, "a")
        failing = False
        touch(manager, "b")
        with manager.get_db("b").connect() as connection:
            connection.invalidate()
        failing = True
        with pytest.raises(RuntimeError, match="made up"):
            touch(manager, "b")
        touch(manager, "a")
        assert manager.metrics()[ACTIVE] == 0
        assert settles_at(plain, int(manager.metrics()[IDLE]))
    assert settles_at(plain, 0)


def test_garbage_collection_in_the_middle_of_the_bookkeeping_does_not_hang(make_config: MakeConfig) -> None:
    """Python collects wherever it likes, and a forgotten connection is then given back there."""
    with TenantManager(make_config(pool_size=1)) as manager:
        touch(manager, "a")
        forgotten = manager.get_db("a").connect()
        cycle: list[object] = [forgotten]
        cycle.append(cycle)
        del forgotten, cycle

        def collect() -> None:
            with manager._registry._lock:
                gc.collect()

        thread = threading.Thread(target=collect, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        touch(manager, "b")


def test_a_cancelled_eviction_locks_nobody_out(make_config: MakeConfig, url: URL, plain: Engine) -> None:
    config = make_config(
        url=url.set(drivername="postgresql+asyncpg"),
        pool_per_tenant=True,
        max_pools=1,
        pool_size=2,
        pool_timeout_s=2,
    )

    async def main() -> None:
        async with AsyncTenantManager(config) as manager:
            a, b = manager.get_db("a"), manager.get_db("b")
            for delay in (0, 0.0005, 0.001, 0.002, 0.004, 0.008):
                await asyncio.gather(*(a.scalar(text("SELECT pg_sleep(0.05)")) for _ in range(2)))
                task = asyncio.ensure_future(b.scalar(text("SELECT 1")))
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                for _ in range(3):
                    assert await a.scalar(text("SELECT 1")) == 1
            assert await b.scalar(text("SELECT 1")) == 1
            assert manager.metrics()[ACTIVE] == 0

    asyncio.run(main())
    assert settles_at(plain, 0)


def test_an_interrupted_close_is_finished_by_the_next(
    make_config: MakeConfig, url: URL, plain: Engine
) -> None:
    async def main() -> None:
        config = make_config(url=url.set(drivername="postgresql+asyncpg"), pool_size=4)
        manager = AsyncTenantManager(config)
        await asyncio.gather(*(manager.get_db("a").scalar(text("SELECT pg_sleep(0.05)")) for _ in range(4)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.close(), 0)
        await manager.close()
        assert settles_at(plain, 0)

    asyncio.run(main())


@pytest.mark.filterwarnings(
    "ignore:.*garbage collector.*",
    "ignore::pytest.PytestUnraisableExceptionWarning",  # it is forgotten on purpose
)
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_collection_in_a_thread_without_a_loop_loses_no_place(
    make_config: MakeConfig, url: URL, driver: str
) -> None:
    async def main() -> None:
        config = make_config(url=url.set(drivername=f"postgresql+{driver}"), pool_size=1, pool_timeout_s=2)
        async with AsyncTenantManager(config) as manager:

            async def forget() -> None:
                session = manager.get_db("a").session()
                await session.scalar(text("SELECT 1"))
                cycle: list[object] = [session]
                cycle.append(cycle)

            gc.disable()
            try:
                await forget()
                await asyncio.to_thread(gc.collect)
            finally:
                gc.enable()
            assert await manager.get_db("b").scalar(text("SELECT 1")) == 1
            assert manager.metrics()[ACTIVE] == 0

    asyncio.run(main())


def test_a_listener_that_refuses_a_connection_counts_once(make_config: MakeConfig) -> None:
    """SQLAlchemy's own recipe: raise DisconnectionError at checkout, and another connection is opened."""
    with TenantManager(make_config(pool_size=1)) as manager:
        refused: list[int] = []

        @event.listens_for(manager.get_db("a").engine, "checkout")
        def refuse(*_: object) -> None:
            if not refused:
                refused.append(1)
                raise DisconnectionError

        touch(manager, "a")
        assert refused
        assert manager.metrics()[ACTIVE] == 0


def test_pools_that_come_into_use_while_others_are_swept_are_left_alone(make_config: MakeConfig) -> None:
    """The hooks of one are called while the next one is found idle."""
    held = []

    def take_the_next(name: str) -> None:
        if name == "a":
            held.append(manager.get_db("b").connect())

    config = make_config(
        pool_per_tenant=True, pool_size=1, pool_ttl_s=0.2, hooks=Hooks(on_pool_evicted=take_the_next)
    )
    with TenantManager(config) as manager:
        manager._stop_sweeping.set()
        touch(manager, "a")
        touch(manager, "b")
        time.sleep(0.3)
        for close_idle in manager._registry.sweep():
            close_idle()
        (connection,) = held
        assert connection.scalar(text("SELECT 1")) == 1
        assert manager.metrics()[ACTIVE] == 1
        connection.close()


def test_a_forked_child_closes_what_is_idle(make_config: MakeConfig) -> None:
    """As a server's worker does that was forked after the application was loaded and used."""
    code = """
import os, sys, time
from sqlalchemy import text
from sqlalchemy_multitenant import Connection, Schemas, TenantConfig, TenantManager
from tests.models import SharedBase, TenantBase
config = TenantConfig(
    connection=Connection(url=sys.argv[1], idle_timeout_s=0.5),
    schemas=Schemas(tenant=TenantBase, shared=SharedBase),
)
manager = TenantManager(config)
db = manager.get_db("a")
db.scalar(text("SELECT 1"))
child = os.fork()
if child == 0:
    db.scalar(text("SELECT 1"))
    assert manager.metrics()["multitenant_pool_connections_idle"] == 1
    deadline = time.monotonic() + 20
    while manager.metrics().get("multitenant_pool_connections_idle"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    url = make_config().connection.url
    assert isinstance(url, URL)
    run_forking(code, url)


def run_forking(code: str, url: URL) -> None:
    # Python 3.12 and later warn of fork() beside threads.
    options = ("-W", "ignore::DeprecationWarning", "-c", code)
    done = subprocess.run(
        [sys.executable, *options, url.render_as_string(hide_password=False)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_leaves_the_parents_connections_alone(make_config: MakeConfig) -> None:
    code = """
import os, sys
from sqlalchemy import text
from sqlalchemy_multitenant import Connection, Isolation, Schemas, TenantConfig, TenantManager
from tests.models import SharedBase, TenantBase
config = TenantConfig(
    connection=Connection(url=sys.argv[1], pool_size=1, pre_ping=True),
    schemas=Schemas(tenant=TenantBase, shared=SharedBase),
)
manager = TenantManager(config)
pid = manager.get_db("a").scalar(text("SELECT pg_backend_pid()"))
for work in (manager.close, lambda: manager.get_db("b").scalar(text("SELECT 1")), lambda: None):
    child = os.fork()
    if child == 0:
        work()
        if manager._registry.stats():
            assert manager.metrics()["multitenant_pool_connections_idle"] == 1
        sys.exit(0)  # with what is registered at exit
    assert os.waitpid(child, 0)[1] == 0
    assert manager.get_db("a").scalar(text("SELECT pg_backend_pid()")) == pid
"""
    url = make_config().connection.url
    assert isinstance(url, URL)
    run_forking(code, url)
