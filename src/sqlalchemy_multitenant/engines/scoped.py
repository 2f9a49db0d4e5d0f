"""Engines that serve tenants: their events bind each transaction to the scope of its tenant."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only

from ..config import TenantConfig
from ..errors import ConfigurationError, NoTenantError
from ..events import call_hook
from ..isolation.scope import SCOPE_OPTION
from ..isolation.sqltext import find_transaction_control
from .pools import AsyncTenantQueuePool, TenantQueuePool
from .shadows import check_shadows
from .url import psycopg_args, psycopg_url, scoped_url

_PACKAGE = __package__

registry.register("postgresql.multitenant_psycopg", f"{_PACKAGE}.psycopg_dialect", "ScopedPsycopgDialect")
registry.register("postgresql.multitenant_asyncpg", f"{_PACKAGE}.asyncpg", "ScopedAsyncpgDialect")


def make_scoped_engine(config: TenantConfig, url: URL, *, is_async: bool) -> Engine:
    """A (sync) engine whose connections run nothing outside a tenant's transaction.

    For asyncio, wrap it in `AsyncEngine`.
    """
    settings = config.connection
    options: dict[str, Any] = {
        "pool_size": settings.pool_size,
        "max_overflow": 0,
        "pool_timeout": settings.pool_timeout_s,
        "pool_pre_ping": settings.pre_ping,
        # The connections used last are used first, so that the others may grow idle.
        "pool_use_lifo": True,
        "connect_args": dict(settings.connect_args),
        "echo": settings.echo,
    }
    if not is_async:
        url, options["connect_args"] = psycopg_url(url), psycopg_args(settings, url)
    scoped = scoped_url(url, is_async=is_async)
    if is_async:
        engine = create_async_engine(scoped, poolclass=AsyncTenantQueuePool, **options).sync_engine
    else:
        engine = create_engine(scoped, poolclass=TenantQueuePool, **options)
    _listen(engine, config)
    return engine


def _listen(engine: Engine, config: TenantConfig) -> None:
    @event.listens_for(engine, "connect")
    def arm(dbapi_connection: Any, record: Any) -> None:
        pid = check_shadows(dbapi_connection, config)
        record.driver_connection.arm(pid)
        record.record_info["multitenant_info"] = dict(record.info)

    @event.listens_for(engine, "checkout")
    def new_user(_dbapi_connection: Any, record: Any, _proxy: Any) -> None:
        try:
            engine.dialect.check_idle(record.driver_connection)  # type: ignore[attr-defined]
        except Exception as error:
            # SQLAlchemy replaces it, and nobody sees an error.
            raise DisconnectionError("the connection cannot be given to its next user") from error
        record.driver_connection.mark_checked_out()
        record.info.clear()
        record.info.update(record.record_info["multitenant_info"])

    @event.listens_for(engine, "begin")
    def bind(connection: Connection) -> None:
        source = connection.get_execution_options().get(SCOPE_OPTION)
        if source is None:
            raise NoTenantError(
                "this engine serves tenants, and none is given: "
                "use tenants.get_db(...) or context.use_tenant(...)"
            )
        if (learn := source.blocking_step()) is not None:
            # Calls the application, which may take its time: not in the event loop's thread.
            await_only(asyncio.to_thread(learn)) if engine.dialect.is_async else learn()
        driver: Any = connection.connection.driver_connection
        driver.bind(source)

    @event.listens_for(engine, "begin_twophase")
    def refuse_twophase(*_: Any) -> None:
        raise ConfigurationError("twophase", True, "two-phase transactions cannot be scoped to a tenant")

    @event.listens_for(engine, "before_cursor_execute")
    def refuse_transaction_control(
        _connection: Any, _cursor: Any, statement: str, _parameters: Any, _context: Any, _many: bool
    ) -> None:
        # Compiled statements as well: text() and DDL() may be anywhere in them.
        if command := find_transaction_control(statement):
            raise NoTenantError(
                f"{command} as SQL text would end the tenant's scope before its transaction: "
                "use commit(), rollback() or begin_nested() of the session or connection"
            )

    @event.listens_for(engine, "handle_error")
    def report(context: ExceptionContext) -> None:
        connection = context.connection
        source = connection.get_execution_options().get(SCOPE_OPTION) if connection is not None else None
        call_hook(config.hooks.on_error, getattr(source, "tenant", None), context.original_exception)
