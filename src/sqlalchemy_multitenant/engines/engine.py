"""Engines that serve tenants: their events bind each transaction to the scope of its tenant."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import weakref
from typing import Any

from psycopg import pq
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only

from ..config import TenantConfig
from ..errors import ConfigurationError, MissingExtraError, NoTenantError
from ..events import call_hook
from ..isolation.scope import SCOPE_OPTION
from ..isolation.sqltext import find_transaction_control
from ..naming import quote_literal
from .pipeline import send_all
from .pools import AsyncTenantQueuePool, TenantQueuePool

_PACKAGE = __package__

registry.register("postgresql.multitenant_psycopg", f"{_PACKAGE}.psycopg_dialect", "ScopedPsycopgDialect")
registry.register("postgresql.multitenant_asyncpg", f"{_PACKAGE}.asyncpg", "ScopedAsyncpgDialect")


def scoped_url(url: URL, *, is_async: bool) -> URL:
    """`url` with the scoped dialect of its driver. Threads always use psycopg.

    Raises:
        MissingExtraError: asyncpg is not installed.
    """
    driver = url.drivername.partition("+")[2] if is_async else "psycopg"
    if driver == "asyncpg" and importlib.util.find_spec("asyncpg") is None:
        raise MissingExtraError("postgresql+asyncpg://", "asyncpg")
    return url.set(drivername=f"postgresql+multitenant_{driver}")


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
        url, options["connect_args"] = psycopg_url(url), _psycopg_args(config, url)
    scoped = scoped_url(url, is_async=is_async)
    if is_async:
        engine = create_async_engine(scoped, poolclass=AsyncTenantQueuePool, **options).sync_engine
    else:
        engine = create_engine(scoped, poolclass=TenantQueuePool, **options)
    _listen(engine, config)
    return engine


_admin_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_in_child() -> None:
    for engine in list(_admin_engines):
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    # https://docs.sqlalchemy.org/en/21/core/pooling.html#using-connection-pools-with-multiprocessing-or-os-fork
    os.register_at_fork(after_in_child=_forget_in_child)


def make_admin_engine(
    config: TenantConfig,
    url: URL,
    *,
    pool_size: int = 1,
    pre_ping: bool = True,
    application_name: str | None = None,
) -> Engine:
    """A plain engine for the toolkit's own work: provisioning, migrations. No tenant's code gets it.

    Args:
        pre_ping: test each connection when it is taken: such work is rare, and they may have died meanwhile.
        application_name: what its connections call themselves in `pg_stat_activity`.
    """
    named = {} if application_name is None else {"application_name": application_name}
    engine = create_engine(
        psycopg_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=max(config.connection.pool_timeout_s, 60.0),
        pool_pre_ping=pre_ping,
        pool_reset_on_return=None,
        connect_args={**_psycopg_args(config, url), **named, "prepare_threshold": None},
        echo=config.connection.echo,
    )

    @event.listens_for(engine, "reset")
    def clean(dbapi_connection: Any, _record: Any, state: Any) -> None:
        # What a revision sets must not reach the next tenant's transaction.
        if not state.terminate_only:
            dbapi_connection.rollback()
            send_all(dbapi_connection, [b"DISCARD ALL"])

    _admin_engines.add(engine)
    return engine


def psycopg_url(url: URL) -> URL:
    """`url` for psycopg: of an asyncpg URL's options, those that libpq has, and `ssl` as `sslmode`
    (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS)."""
    if not url.drivername.endswith("asyncpg"):
        return url.set(drivername="postgresql+psycopg")
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    query = {("sslmode" if key == "ssl" else key): value for key, value in url.query.items()}
    return url.set(
        drivername="postgresql+psycopg", query={key: value for key, value in query.items() if key in known}
    )


def _psycopg_args(config: TenantConfig, url: URL) -> dict[str, Any]:
    """The connect arguments, unless they are meant for asyncpg."""
    return {} if url.drivername.endswith("asyncpg") else dict(config.connection.connect_args)


def _listen(engine: Engine, config: TenantConfig) -> None:
    @event.listens_for(engine, "connect")
    def arm(dbapi_connection: Any, record: Any) -> None:
        pid = _check_shadows(dbapi_connection, config)
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


def _check_shadows(dbapi_connection: Any, config: TenantConfig) -> int:
    """Refuse to serve from a database in which a shared schema has a table of a tenant's name: a tenant whose
    own table is missing (not migrated yet, say) would silently read that one.

    Returns the id of the server's process that has answered.
    """
    schemas = ", ".join(map(quote_literal, (config.schemas.shared_schema, *config.schemas.extra_search_path)))
    tables = ", ".join(map(quote_literal, sorted(config.schemas.tenant_tables))) or "NULL"
    cursor = dbapi_connection.cursor()
    cursor.execute(
        "SELECT pg_catalog.pg_backend_pid(), (SELECT string_agg(n.nspname || '.' || c.relname, ', ' "
        "ORDER BY n.nspname, c.relname) FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname IN ({schemas}) AND c.relname IN ({tables}) "
        "AND c.relkind IN ('r', 'p', 'v', 'm', 'f'))"
    )
    pid, found = cursor.fetchone()
    cursor.close()
    dbapi_connection.rollback()
    if found:
        raise ConfigurationError(
            "schemas.tenant",
            found,
            "a shared schema has tables of the same names as the tenants': a tenant that lacks its own would "
            "read these; move or rename them, or set schemas.shared_schema to another schema",
        )
    return int(pid)
