"""An application with procrastinate's tasks, for the tests' process and for a real worker."""

from __future__ import annotations

import os
from typing import Any

import psycopg
from procrastinate import App, JobContext
from sqlalchemy import make_url, select

from sqlalchemy_multitenant import AsyncTenantManager, Connection, Schemas, TenantConfig, TenantManager
from sqlalchemy_multitenant.integrations.procrastinate import (
    ProcrastinateTenancy,
    install_tenancy,
    make_connector,
    no_tenant,
)
from tests.models import SharedBase, TenantBase, User


def make_app(url: str, *, is_sync: bool = False, **options: Any) -> tuple[App, ProcrastinateTenancy]:
    """The application; options go to its tenancy."""
    parsed = make_url(url)
    conninfo = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    config = TenantConfig(
        connection=Connection(url=parsed, pool_size=1),
        schemas=Schemas(tenant=TenantBase, shared=SharedBase),
    )
    app = App(connector=make_connector(config, max_size=5))
    tenants = TenantManager(config) if is_sync else AsyncTenantManager(config)
    tenancy = install_tenancy(app, tenants, **options)
    context = tenancy.context

    def current() -> str | None:
        tenant = context.get_tenant_or_none()
        return None if tenant is None else str(tenant)

    def remember(job: JobContext, value: object) -> None:
        """In a table that the tests read."""
        with psycopg.connect(conninfo, autocommit=True) as connection:
            statement = "INSERT INTO public.seen (job, tenant, value) VALUES (%s, %s, %s)"
            connection.execute(statement, (job.job.id, current(), str(value)))

    @app.task(name="names", pass_context=True)
    async def names(job: JobContext) -> None:
        found = await context.get_tenant_db().scalars(select(User.name).order_by(User.id))
        remember(job, list(found))

    @app.task(name="blocking", pass_context=True)
    def blocking(job: JobContext) -> None:
        """A plain function, which runs in a thread."""
        remember(job, "in a thread")

    @app.task(name="flaky", pass_context=True, retry=2)
    async def flaky(job: JobContext) -> None:
        remember(job, job.job.attempts)
        if job.job.attempts < 2:
            raise ValueError

    @app.task(name="shared", pass_context=True)
    @no_tenant
    async def shared(job: JobContext) -> None:
        remember(job, "shared")

    @app.task(name="nested", pass_context=True)
    async def nested(job: JobContext) -> None:
        await app.tasks["names"].defer_async()

    @app.task(name="each", pass_context=True)
    @no_tenant
    async def each(job: JobContext) -> None:
        await tenancy.for_each_tenant(app.tasks["names"])

    @app.task(name="locked", pass_context=True, queue="aside", lock="one", queueing_lock="one")
    async def locked(job: JobContext) -> None:
        remember(job, job.job.lock)

    return app, tenancy


if "SHOP_DATABASE" in os.environ:
    app, tenancy = make_app(os.environ["SHOP_DATABASE"])
