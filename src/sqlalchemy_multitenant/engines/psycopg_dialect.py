"""SQLAlchemy's psycopg dialects over the scoped connections."""

from __future__ import annotations

from typing import Any, Literal, cast

import psycopg
from sqlalchemy import URL
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg, PGDialectAsync_psycopg
from sqlalchemy.util import await_only

from ..isolation.scope import DEAD_END
from .guard import refuse_autocommit
from .psycopg import AsyncScopedConnection, Scoped, ScopedConnection


def dead_end(options: str | None) -> str:
    """libpq's start-up options, with a search path of the session that leads nowhere."""
    return f"{options or ''} -c search_path={DEAD_END}".strip()


async def _connect_async(*args: Any, **kwargs: Any) -> Any:
    with_options = dict(kwargs, options=dead_end(kwargs.get("options")))
    try:
        return await AsyncScopedConnection.connect(*args, **with_options)
    except psycopg.OperationalError as error:
        if "startup parameter" not in str(error):
            raise
    return await AsyncScopedConnection.connect(*args, **kwargs)  # a pooler, which takes no options


class _ScopedDialect(PGDialect_psycopg):
    """The transaction's modes are kept on our connection, since the BEGIN is ours, too."""

    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> Any:
        args, kwargs = super().create_connect_args(url)  # type: ignore[no-untyped-call]
        kwargs["autocommit"] = True
        # An enum type per schema breaks prepared statements when tenants alternate on a connection.
        kwargs["prepare_threshold"] = None
        return args, kwargs

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        refuse_autocommit(level)
        default = getattr(self, "default_isolation_level", None)
        _driver(dbapi_connection).isolation = None if level == default else level

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        driver = _driver(dbapi_connection)
        if driver._armed and driver._between_transactions:
            return driver.isolation or self.default_isolation_level
        cursor = dbapi_connection.cursor()
        cursor.execute("SHOW transaction isolation level")
        value = cursor.fetchone()[0]
        cursor.close()
        return value.upper()

    def set_readonly(self, connection: Any, value: bool | None) -> None:
        _driver(connection).read_only_mode = value

    def get_readonly(self, connection: Any) -> bool | None:
        return _driver(connection).read_only_mode

    def set_deferrable(self, connection: Any, value: bool | None) -> None:
        _driver(connection).deferrable_mode = value

    def get_deferrable(self, connection: Any) -> bool | None:
        return _driver(connection).deferrable_mode


def _driver(dbapi_connection: Any) -> Scoped:
    """The psycopg connection inside whatever SQLAlchemy passes: a pool's proxy, an async adapter,
    or itself."""
    return cast("Scoped", getattr(dbapi_connection, "driver_connection", dbapi_connection))


class ScopedPsycopgDialect(_ScopedDialect):
    """`postgresql+psycopg`, scoped."""

    supports_statement_cache = True

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        with_options = dict(kwargs, options=dead_end(kwargs.get("options")))
        try:
            return ScopedConnection.connect(*args, **with_options)
        except psycopg.OperationalError as error:
            if "startup parameter" not in str(error):
                raise
        return ScopedConnection.connect(*args, **kwargs)  # a pooler, which takes no options

    def check_idle(self, driver: ScopedConnection) -> None:
        """Raise if a connection of the pool is seen to be lost, or not as it should be; takes no round
        trip."""
        if driver.look():
            driver.settle()
        driver.check_reusable()

    def do_begin(self, dbapi_connection: Any) -> None:
        cast("ScopedConnection", _driver(dbapi_connection)).begin_scoped()

    def do_ping(self, dbapi_connection: Any) -> Literal[True]:
        cast("ScopedConnection", _driver(dbapi_connection)).ping()
        return True

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> Any:  # noqa: ARG003
        return ScopedAsyncPsycopgDialect


class ScopedAsyncPsycopgDialect(_ScopedDialect, PGDialectAsync_psycopg):
    """`postgresql+psycopg` under asyncio, scoped."""

    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> Any:
        args, kwargs = super().create_connect_args(url)
        kwargs["async_creator_fn"] = _connect_async
        return args, kwargs

    def check_idle(self, driver: AsyncScopedConnection) -> None:
        """Raise if a connection of the pool is seen to be lost, or not as it should be; takes no round
        trip."""
        if driver.look():
            await_only(driver.settle())
        driver.check_reusable()

    def do_begin(self, dbapi_connection: Any) -> None:
        await_only(cast("AsyncScopedConnection", _driver(dbapi_connection)).begin_scoped())

    def do_ping(self, dbapi_connection: Any) -> Literal[True]:
        await_only(cast("AsyncScopedConnection", _driver(dbapi_connection)).ping())
        return True
