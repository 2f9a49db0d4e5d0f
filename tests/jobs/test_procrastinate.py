"""procrastinate, with a real worker process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from procrastinate import App, JobContext
from procrastinate.exceptions import AlreadyEnqueued
from sqlalchemy import URL, Engine, create_engine, text

from sqlalchemy_multitenant import (
    AsyncTenantManager,
    ConfigurationError,
    Connection,
    Migrator,
    NoTenantError,
    Schemas,
    TenantConfig,
    TenantManager,
)
from sqlalchemy_multitenant.integrations.procrastinate import (
    ProcrastinateTenancy,
    connection_of,
    install_tenancy,
    make_connector,
    no_tenant,
)
from tests.command import unmeasured
from tests.conftest import MakeConfig
from tests.jobs.conftest import ROOT, stop, wait_for
from tests.jobs.procrastinate_app import make_app
from tests.models import SharedBase, TenantBase, User


@pytest.fixture(scope="module")
def queue_url(shop_url: URL) -> URL:
    """The module's database, with procrastinate's tables in its shared schema."""
    engine = create_engine(shop_url)
    schema = App(connector=_connector(shop_url)).schema_manager.get_schema()
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE public.seen (job bigint, tenant text, value text)")
    engine.dispose()
    with psycopg.connect(_plain(shop_url), autocommit=True) as raw:
        raw.execute(schema)
    return shop_url


def _plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _connector(url: URL) -> Any:
    from procrastinate import SyncPsycopgConnector

    return SyncPsycopgConnector(conninfo=_plain(url))


@dataclass
class Queue:
    """The application, as a process that enqueues has it. What the worker is to leave alone is in the queue
    `aside`."""

    app: App
    tenancy: ProcrastinateTenancy
    engine: Engine
    runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def defer(self, name: str, tenant: str | None = None, **arguments: Any) -> int:
        """Enqueue a job; returns its id."""

        async def enqueue() -> int:
            return await self.app.tasks[name].defer_async(**arguments)

        if tenant is not None:
            enqueue = self.tenancy.context.use_tenant(tenant)(enqueue)
        return int(self.run(enqueue()))

    def status(self, job: int) -> str:
        """When it has ended: how."""
        deadline = time.monotonic() + 20
        with self.engine.connect() as connection:
            while True:
                status = connection.scalar(
                    text("SELECT status::text FROM procrastinate_jobs WHERE id = :id"), {"id": job}
                )
                if status not in ("todo", "doing"):
                    return str(status)
                assert time.monotonic() < deadline, status
                connection.rollback()
                time.sleep(0.02)

    def seen(self, job: int) -> list[tuple[Any, ...]]:
        """What it has seen, after it has ended: tenants and values."""
        self.status(job)
        with self.engine.connect() as connection:
            statement = text("SELECT tenant, value FROM public.seen WHERE job = :job ORDER BY ctid")
            return [tuple(row) for row in connection.execute(statement, {"job": job})]


@pytest.fixture
def make_queue(queue_url: URL) -> Iterator[Callable[..., Queue]]:
    """Builds the application; options go to its tenancy."""
    runner, engine = asyncio.Runner(), create_engine(queue_url)
    opened: list[Queue] = []

    async def open_it(app: App) -> None:
        await app.open_async()

    def make(**options: Any) -> Queue:
        app, tenancy = make_app(queue_url.render_as_string(hide_password=False), **options)
        opened.append(Queue(app, tenancy, engine, runner))
        runner.run(open_it(app))
        return opened[-1]

    yield make
    for queue in opened:
        runner.run(queue.app.close_async())
        if isinstance(queue.tenancy.tenants, AsyncTenantManager):
            runner.run(queue.tenancy.tenants.close())
        else:
            queue.tenancy.tenants.close()
    engine.dispose()
    runner.close()


@pytest.fixture
def queue(make_queue: Callable[..., Queue]) -> Queue:
    return make_queue()


@pytest.fixture(scope="module")
def worker(queue_url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    log = tmp_path_factory.mktemp("worker") / "log"
    environment = {**os.environ, "SHOP_DATABASE": queue_url.render_as_string(hide_password=False)}
    command = [sys.executable, "-m", "procrastinate", "--app", "tests.jobs.procrastinate_app.app"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "worker", "--queues", "default"],
            cwd=ROOT,
            env=unmeasured(environment),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: b"Starting worker" in log.read_bytes(), f"no worker: {log}", process)
        yield
    finally:
        stop(process)


@pytest.fixture
def running(queue: Queue, worker: None) -> Queue:
    """The application with a worker."""
    return queue


def test_a_job_runs_for_the_tenant_that_enqueued_it(running: Queue) -> None:
    jobs = [running.defer("names", tenant) for tenant in "abab"]
    expected = [[("a", "['ada']")], [("b", "['bob']")]] * 2
    assert [running.seen(job) for job in jobs] == expected


def test_a_function_in_a_thread_has_its_tenant(running: Queue) -> None:
    assert running.seen(running.defer("blocking", "b")) == [("b", "in a thread")]
    assert running.seen(running.defer("shared")) == [(None, "shared")]


def test_retries_keep_the_tenant(running: Queue) -> None:
    job = running.defer("flaky", "a")
    assert running.status(job) == "succeeded"
    assert running.seen(job) == [("a", "0"), ("a", "1"), ("a", "2")]


def test_what_a_job_enqueues_is_for_its_tenant(running: Queue) -> None:
    job = running.defer("nested", "b")
    assert running.status(job) == "succeeded"
    assert running.seen(job + 1) == [("b", "['bob']")]


def test_for_each_tenant(running: Queue) -> None:
    job = running.defer("each")
    assert running.status(job) == "succeeded"
    assert sorted(running.seen(job + 1) + running.seen(job + 2)) == [("a", "['ada']"), ("b", "['bob']")]


def test_a_job_without_a_tenant_is_not_enqueued(queue: Queue) -> None:
    with pytest.raises(NoTenantError, match=r"task names has no tenant.*use_tenant.*no_tenant"):
        queue.defer("names")


@pytest.mark.parametrize("arguments", ["{}", '{"__tenant__": "nobody"}', '{"__tenant__": "a;b"}'])
def test_a_job_without_a_proper_tenant_is_not_run(running: Queue, arguments: str) -> None:
    """As another program may have enqueued it."""
    with running.engine.begin() as connection:
        job = connection.scalar(
            text(
                "INSERT INTO procrastinate_jobs (queue_name, task_name, args) "
                "VALUES ('default', 'names', CAST(:args AS jsonb)) RETURNING id"
            ),
            {"args": arguments},
        )
    assert running.status(job) == "failed"
    assert running.seen(job) == []


def test_locks_are_a_tenants_own(queue: Queue) -> None:
    for tenant in "ab":
        queue.defer("locked", tenant)
    with pytest.raises(AlreadyEnqueued):
        queue.defer("locked", "a")
    with queue.engine.begin() as connection:
        locks = connection.exec_driver_sql(
            "DELETE FROM procrastinate_jobs WHERE task_name = 'locked' RETURNING lock, queueing_lock"
        )
        assert sorted(locks) == [("a:one", "a:one"), ("b:one", "b:one")]


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_job_in_the_tenants_own_transaction(queue: Queue, is_kept: bool) -> None:
    before = _count(queue)

    async def order() -> None:
        context = queue.tenancy.context
        async with context.use_tenant("a"), context.get_tenant_db().session() as session:
            session.add(User(name="with a job"))
            job = queue.app.tasks["names"].configure(queue="aside", connection=await connection_of(session))
            await job.defer_async()
            assert _count(queue) == before
            await (session.commit() if is_kept else session.rollback())

    queue.run(order())
    assert _count(queue) == before + is_kept
    with queue.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM procrastinate_jobs")
        removed = connection.exec_driver_sql("DELETE FROM tenant_a.users WHERE name = 'with a job'")
        assert removed.rowcount == int(is_kept)


def test_a_job_in_a_sync_transaction(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(is_sync=True)
    before, context = _count(queue), queue.tenancy.context
    with context.use_tenant("a"), context.get_tenant_db().begin() as session:
        connection = connection_of(session)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        sync = App(connector=_connector(queue.engine.url))
        install_tenancy(sync, queue.tenancy.tenants, context=context)
        with sync.open():
            sync.task(name="names")(lambda: None).configure(queue="aside", connection=connection).defer()
        assert _count(queue) == before
    assert _count(queue) == before + 1
    with queue.engine.begin() as plain:
        plain.exec_driver_sql("DELETE FROM procrastinate_jobs")


def _count(queue: Queue) -> int:
    with queue.engine.connect() as connection:
        return int(
            connection.scalar(text("SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'")) or 0
        )


def test_options_and_middleware_in_a_worker_of_ones_own(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(
        is_sync=True,
        extract_tenant_id=lambda job: job.kwargs.get("tenant_id"),
        validate_tenant=lambda tenant, job: job.name != "refused",
        enrich_context=lambda tenant, job: f"{job.name} for {tenant}",
    )
    seen: list[Any] = []
    app, context = queue.app, queue.tenancy.context

    @app.task(name="here", queue="aside")
    async def here(tenant_id: str | None = None) -> None:
        seen.append((context.get_tenant(), context.get_tenant().data))

    @app.task(name="refused", queue="aside")
    async def refused() -> None:
        seen.append("refused")

    async def middleware(call_next: Any, job: JobContext, worker: Any) -> Any:
        seen.append((job.task.name, context.get_tenant()))
        return await call_next()

    jobs = [
        queue.defer("here", "a"),
        queue.defer("here", "b", tenant_id="a"),
        queue.defer("refused", "a"),
    ]
    work: Any = {"queues": ["aside"], "wait": False, "install_signal_handlers": False}
    queue.run(app.run_worker_async(worker_middleware=[middleware], **work))
    assert seen == [("here", "a"), ("a", "here for a")]
    assert [queue.status(job) for job in jobs] == ["succeeded", "failed", "failed"]


def test_a_copy_of_the_application(make_queue: Callable[..., Queue]) -> None:
    """Which procrastinate makes for another connector."""
    queue = make_queue()
    seen: list[Any] = []
    context = queue.tenancy.context

    @queue.app.task(name="copied", queue="aside")
    async def copied(**arguments: Any) -> None:
        seen.append((str(context.get_tenant()), arguments))

    async def work() -> None:
        other = queue.app.with_connector(queue.app.connector)
        with pytest.raises(NoTenantError):
            await other.configure_task("copied").defer_async()
        async with context.use_tenant("a"):
            await other.configure_task("copied").defer_async(number=1)
        await other.run_worker_async(queues=["aside"], wait=False, install_signal_handlers=False)

    queue.run(work())
    assert seen == [("a", {"number": 1})]


def test_a_job_of_nobody(make_queue: Callable[..., Queue]) -> None:
    """Neither the worker's own tenant is its, nor are its locks a tenant's."""
    queue = make_queue()
    seen: list[Any] = []
    context = queue.tenancy.context

    @queue.app.task(name="nobodys", queue="aside", lock="one", queueing_lock="one")
    @no_tenant
    async def nobodys() -> None:
        seen.append(context.get_tenant_or_none())

    async def work() -> None:
        await nobodys.defer_async()
        for tenant in "ab":
            async with context.use_tenant(tenant):
                with pytest.raises(AlreadyEnqueued):
                    await nobodys.defer_async()
        async with context.use_tenant("b"):
            await queue.app.run_worker_async(queues=["aside"], wait=False, install_signal_handlers=False)

    queue.run(work())
    assert seen == [None]


def test_a_shared_schema_with_an_odd_name(empty_url: URL) -> None:
    config = TenantConfig(
        connection=Connection(url=empty_url),
        schemas=Schemas(tenant=TenantBase, shared=SharedBase, shared_schema="Our \\ shop's"),
    )
    runner, made = asyncio.Runner(), []

    async def work() -> None:
        app = App(connector=make_connector(config))
        async with AsyncTenantManager(config) as tenants, app.open_async():
            tenancy = install_tenancy(app, tenants)
            await app.schema_manager.apply_schema_async()

            @app.task(name="noop")
            async def noop() -> None:
                made.append(str(tenancy.context.get_tenant()))

            async with tenancy.context.use_tenant("a"), tenants.get_db("a").begin() as session:
                await noop.configure(connection=await connection_of(session)).defer_async()
            await app.run_worker_async(wait=False, install_signal_handlers=False)

    with TenantManager(config) as tenants:
        with Migrator(config) as migrator:
            migrator.migrate_shared()
        with tenants.get_shared_db().begin() as session:
            SharedBase.metadata.create_all(session.connection())
        tenants.create_tenant("a")
    runner.run(work())
    runner.close()
    assert made == ["a"]


def test_wrong_installations(queue: Queue, tenants: TenantManager, make_config: MakeConfig, url: URL) -> None:
    with pytest.raises(ConfigurationError, match="already"):
        install_tenancy(queue.app, tenants)
    config = make_config(url=url.set(drivername="postgresql+asyncpg"))

    async def ask() -> None:
        async with AsyncTenantManager(config) as asyncpg, asyncpg.get_db("a").session() as session:
            with pytest.raises(ConfigurationError, match="procrastinate needs psycopg"):
                await connection_of(session)

    queue.run(ask())
