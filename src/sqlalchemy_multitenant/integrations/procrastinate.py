"""procrastinate, whose broker is the PostgreSQL that is there already: `install_tenancy`. Needs the extra
`procrastinate`.

    app = App(connector=make_connector(config))
    tenancy = install_tenancy(app, AsyncTenantManager(config))

    @app.task
    async def send_invoice(order_id: int) -> None:
        async with tenancy.context.get_tenant_db().begin() as session:
            ...

    async with tenancy.context.use_tenant("acme"), tenancy.context.get_tenant_db().begin() as session:
        session.add(order)
        job = send_invoice.configure(connection=await connection_of(session))
        await job.defer_async(order_id=7)

With `connection_of` the job is enqueued in the tenant's own transaction: it is there if, and only if, the
order is. For that, procrastinate's tables are in the shared schema, which tenants have in their search path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast, overload

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ..catalog.records import TenantRecord
from ..config import TenantConfig
from ..engines.url import psycopg_url, resolve_url
from ..errors import ConfigurationError
from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from ..naming import parse_tenant_id, quote_ident
from .extra import Extra
from .jobs import Job, JobTenancy
from .resolver import is_marked, no_tenant

with Extra("procrastinate"):
    from procrastinate import App, JobContext, PsycopgConnector
    from procrastinate.jobs import Job as QueuedJob
    from procrastinate.tasks import Task
    from procrastinate.worker import Worker

__all__ = ["ProcrastinateTenancy", "connection_of", "install_tenancy", "make_connector", "no_tenant"]

STAMP = "__tenant__"
"""A job has nothing but its task's arguments to carry a tenant in: this is one that no task has."""

_BATCH = 1_000
_BUILTIN = "builtin:"


def make_connector(config: TenantConfig, **options: Any) -> PsycopgConnector:
    """A connector for the configuration's database, with procrastinate's tables in its shared schema. It
    looks for the database when it is opened.

    Args:
        config: the configuration.
        options: of the connector, and of its pool: `max_size`, say.
    """

    def conninfo() -> str:
        url = psycopg_url(resolve_url(config.connection))
        _, parameters = url.get_dialect()().create_connect_args(url)
        path = f"-csearch_path={_escaped(quote_ident(config.schemas.shared_schema))}"
        parameters["options"] = f"{parameters.get('options', '')} {path}".strip()
        return make_conninfo(**parameters)

    return PsycopgConnector(conninfo=conninfo, **options)


def _escaped(value: str) -> str:
    """Within libpq's `options` (https://www.postgresql.org/docs/current/libpq-connect.html)."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def install_tenancy(
    app: App, tenants: TenantManager | AsyncTenantManager, **options: Any
) -> ProcrastinateTenancy:
    """Stamp jobs with their tenant, and make it the current one while their tasks run.

    Args:
        app: the application, where it enqueues as in the workers.
        tenants: the manager.
        options: see `JobTenancy`.

    Raises:
        ConfigurationError: the application has a tenancy already.
    """
    if "tenancy" in vars(app):
        raise ConfigurationError("app", app, "it has a tenancy already")
    return ProcrastinateTenancy(app, tenants, **options)


class ProcrastinateTenancy(JobTenancy):
    """Stamps jobs, and makes their tenant the current one while their tasks run.

    Locks are a tenant's own: `lock="report"` of one does not wait for another's.

    Attributes:
        tenants: the manager.
        context: which tells the tenant; `context.get_tenant_db()` works in a task.
    """

    def __init__(self, app: App, tenants: TenantManager | AsyncTenantManager, **options: Any) -> None:
        """See `install_tenancy`."""
        super().__init__(tenants, **options)
        self._wire(app)

    def _wire(self, app: App) -> None:
        manager: Any = app.job_manager
        defer, defer_async = manager.batch_defer_jobs, manager.batch_defer_jobs_async
        work, copy = app.run_worker_async, app.with_connector

        def batch_defer_jobs(jobs: Sequence[QueuedJob], connection: Any = None) -> Any:
            return defer([self._stamp(job, app) for job in jobs], connection=connection)

        async def batch_defer_jobs_async(jobs: Sequence[QueuedJob], connection: Any = None) -> Any:
            return await defer_async([self._stamp(job, app) for job in jobs], connection=connection)

        async def run_worker_async(**kwargs: Any) -> None:
            own = kwargs.pop("worker_middleware", None) or app.worker_defaults.get("worker_middleware") or []
            await work(worker_middleware=[self._run, *own], **kwargs)

        def with_connector(connector: Any) -> App:
            other = copy(connector)
            self._wire(other)
            return other

        # All jobs but periodic ones, which nobody enqueues, go through the first two.
        manager.batch_defer_jobs, manager.batch_defer_jobs_async = batch_defer_jobs, batch_defer_jobs_async
        vars(app).update(run_worker_async=run_worker_async, with_connector=with_connector, tenancy=self)

    # -- enqueuing ------------------------------------------------------------------------------------

    async def for_each_tenant(self, task: Task[Any, Any, Any], **task_kwargs: Any) -> int:
        """Enqueue a task once for each active tenant; returns for how many. Say, in a periodic task:

        @app.periodic(cron="0 3 * * *")
        @app.task
        @no_tenant
        async def nightly(timestamp: int) -> None:
            await tenancy.for_each_tenant(report)
        """
        active = [record.id for record in await self._list() if record.status == "active"]
        for at in range(0, len(active), _BATCH):
            jobs = ({**task_kwargs, STAMP: tenant} for tenant in active[at : at + _BATCH])
            await task.batch_defer_async(*jobs)
        return len(active)

    async def _list(self) -> Sequence[TenantRecord]:
        if isinstance(self.tenants, AsyncTenantManager):
            return await self.tenants.list_tenants()
        return await asyncio.to_thread(self.tenants.list_tenants)

    def _stamp(self, job: QueuedJob, app: App) -> QueuedJob:
        stamp = job.task_kwargs.get(STAMP) or self.current()
        task = app.tasks.get(job.task_name)
        needs_none = task is not None and _needs_none(task)
        if task is not None:  # others are not known here: the worker refuses them
            self.check_stamp(job.task_name, cast("str | None", stamp), needs_none=needs_none)
        if not stamp:
            return job
        tenant = parse_tenant_id(stamp)
        stamped = job.evolve(task_kwargs={**job.task_kwargs, STAMP: tenant})
        if needs_none:  # nobody's task, and nobody's locks
            return stamped
        return stamped.evolve(
            lock=job.lock and f"{tenant}:{job.lock}",
            queueing_lock=job.queueing_lock and f"{tenant}:{job.queueing_lock}",
        )

    # -- running --------------------------------------------------------------------------------------

    async def _run(self, call_next: Callable[[], Awaitable[Any]], context: JobContext, worker: Worker) -> Any:
        """A middleware of the worker's
        (https://procrastinate.readthedocs.io/en/stable/howto/advanced/middleware.html)."""
        arguments = context.job.task_kwargs  # the dictionary that the task is called with
        stamp = arguments.pop(STAMP, None)
        task = worker.app.tasks[context.job.task_name]
        job = Job(task.name, (), arguments, cast("str | None", stamp), _needs_none(task), context)
        with await self.resolve_async(job) or self.context.without_tenant():
            return await call_next()


@overload
def connection_of(session: Session) -> psycopg.Connection[Any]: ...
@overload
def connection_of(session: AsyncSession) -> Awaitable[psycopg.AsyncConnection[Any]]: ...
def connection_of(session: Session | AsyncSession) -> Any:
    """The psycopg connection that a session's transaction is on, for `task.configure(connection=...)`; to be
    awaited for an `AsyncSession`. A job that is enqueued on it is there when the session commits, and never
    if it rolls back.

    Raises:
        ConfigurationError: the session's driver is not psycopg.
    """
    if isinstance(session, AsyncSession):
        return _connection_of_async(session)
    return _checked(session.connection().connection.driver_connection, psycopg.Connection)


async def _connection_of_async(session: AsyncSession) -> Any:
    raw = await (await session.connection()).get_raw_connection()
    return _checked(raw.driver_connection, psycopg.AsyncConnection)


def _checked(connection: Any, kind: type) -> Any:
    if not isinstance(connection, kind):
        raise ConfigurationError(
            "session",
            type(connection).__module__,
            "procrastinate needs psycopg: a URL with postgresql+psycopg",
        )
    return connection


def _needs_none(task: Task[Any, Any, Any]) -> bool:
    """procrastinate's own tasks are its housekeeping."""
    return task.name.startswith(_BUILTIN) or is_marked(task.func)
