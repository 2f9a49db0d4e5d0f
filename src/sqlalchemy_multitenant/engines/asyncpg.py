"""asyncpg connections that run nothing outside a scoped transaction, and the dialect over them.

The scope goes in the same message as BEGIN, which is sent as soon as SQLAlchemy begins a transaction,
and answered while Python still compiles the first statement. Each method of asyncpg that sends SQL waits
for that answer first, and refuses to do anything outside of a transaction.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Literal

from asyncpg.connection import Connection
from asyncpg.exceptions import InterfaceError
from sqlalchemy import URL
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.util import LRUCache, await_only

from ..errors import ConfigurationError, NoTenantError
from ..isolation.scope import (
    DEAD_END,
    STALE_SQLSTATES,
    ScopeSource,
    begin_nowhere_sql,
    begin_sql,
    session_reset_sql,
)
from .guard import OUTSIDE, Guarded, refuse_autocommit
from .inflight import InFlight

_FIRST_USER_OID = 16384
"""Types below are built in, the same in every schema
(https://www.postgresql.org/docs/current/system-catalog-initial-data.html#SYSTEM-CATALOG-OID-ASSIGNMENT)."""

_SENDS_SQL = (
    "execute",
    "executemany",
    "fetch",
    "fetchmany",
    "fetchrow",
    "fetchval",
    "prepare",
    "copy_from_query",
    "copy_from_table",
    "copy_records_to_table",
    "copy_to_table",
    "add_listener",
)

_PREPARE = re.compile(r"\s*prepare\b", re.IGNORECASE)

_STAYS = (
    "add_log_listener",
    "add_query_logger",
    "add_termination_listener",
    "reset_type_codec",
    "set_builtin_type_codec",
    "set_type_codec",
)
"""What these do stays on the connection in this process."""


def _sqlstate(error: Exception) -> str | None:
    """The SQLSTATE of an error of the server's."""
    return getattr(error, "sqlstate", None)


class _ScopedTransaction:
    """What SQLAlchemy's adapter takes for an asyncpg transaction."""

    def __init__(self, connection: AsyncpgScopedConnection, begin: str) -> None:
        self._connection = connection
        self._begin = begin

    def send(self) -> None:
        """Send BEGIN, without waiting for the answer."""
        self._connection.begin_scoped(self._begin)

    async def start(self) -> None:
        self.send()
        await self._connection.settle()

    async def commit(self) -> None:
        await self._connection.end_scoped("COMMIT")

    async def rollback(self) -> None:
        await self._connection.end_scoped("ROLLBACK")


class AsyncpgScopedConnection(Guarded, Connection):  # type: ignore[misc]
    """An asyncpg connection that runs nothing outside a scoped transaction."""

    _beginning: InFlight | None = None
    _encoding: str | None = None

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> Any:
        if not self._armed or self.is_in_transaction():
            return super().transaction(isolation=isolation, readonly=readonly, deferrable=deferrable)
        modes = [f"ISOLATION LEVEL {isolation.replace('_', ' ').upper()}"] if isolation else []
        modes += ["READ ONLY"] * readonly + ["DEFERRABLE"] * deferrable
        return _ScopedTransaction(self, " ".join(["BEGIN", *modes]))

    def keep_statements(self) -> None:
        """Leave prepared statements alone when the connection changes hands: the dialect caches them."""
        self._session_reset = session_reset_sql(keep_statements=True)

    def arm(self, pid: int) -> None:
        super().arm(pid)
        self._encoding = self._read_encoding()

    def _read_encoding(self) -> str:
        protocol: Any = self._protocol
        return str(protocol.get_settings().client_encoding)

    @property
    def _is_recoded(self) -> bool:
        return self._read_encoding() != self._encoding

    def _announced_pid(self) -> int:
        return int(self.get_server_pid())

    def check_reusable(self) -> None:
        """Raise if the last user has left something that no statement takes back, or a transaction: where
        SQLAlchemy does not know how a commit ended, it does not roll back."""
        self.check_unaltered()
        if self.is_closed():
            raise InterfaceError("the server has closed the connection")
        if self._is_recoded:
            raise NoTenantError("its last user has changed client_encoding")
        if self._beginning is not None or self.is_in_transaction():
            raise NoTenantError("its last user has left a transaction open")

    def begin_scoped(self, begin: str) -> None:
        """Send `begin` with the bound scope, and leave the answer to whatever is sent next.

        Raises:
            NoTenantError: no scope is bound.
            InterfaceError: the session's encoding was changed, in which a name may mean another.
        """
        if self._is_recoded:
            self.terminate()
            raise InterfaceError("client_encoding was changed; the connection has been closed")
        self._beginning = InFlight(self._begin(begin, self._take_scope()))

    async def settle(self) -> None:
        """Wait for the answer to BEGIN, if one is due.

        Raises:
            TenantNotFoundError, TenantSuspendedError: the tenant cannot be entered.
        """
        beginning, self._beginning = self._beginning, None
        if beginning is None:
            return
        try:
            await beginning
        except Exception:
            raise
        except BaseException:
            # Cancelled: the server may be about to begin, and nobody would end it.
            self.terminate()
            raise

    async def _begin(self, begin: str, source: ScopeSource) -> None:
        scope = source.current()
        if scope is not None:
            try:
                await super().execute(begin_sql(begin, scope, clean_up=self._clean_up))
            except Exception as error:
                await self._end("ROLLBACK")
                if _sqlstate(error) not in STALE_SQLSTATES:
                    raise
            else:
                self._note_begun()
                return
        try:
            await super().execute(begin_nowhere_sql(begin, clean_up=self._clean_up))
            self._note_begun()
            row = await super().fetchrow(source.lookup_sql)
            await super().execute(source.refresh(None if row is None else tuple(row)).fresh)
        except Exception as error:
            await self._end("ROLLBACK")
            meaning = source.explain(_sqlstate(error))
            if meaning is None:
                raise
            raise meaning from error

    async def end_scoped(self, command: str) -> None:
        """COMMIT or ROLLBACK, unless the transaction has ended already."""
        await self.settle()
        await self._end(command)

    async def _end(self, command: str) -> None:
        # What was prepared in this transaction is void after it, and so are its cursors; asyncpg's own pool
        # marks a connection so that it takes back.
        self._pool_release_ctr += 1
        if self.is_closed():
            if command == "COMMIT":
                raise InterfaceError("the connection was closed before its transaction was committed")
        elif self.is_in_transaction():
            await super().execute(command)

    async def close(self, *, timeout: float | None = None) -> None:
        self._abandon()
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        self._abandon()
        super().terminate()

    def _abandon(self) -> None:
        beginning, self._beginning = self._beginning, None
        if beginning is not None:
            beginning.abandon()

    async def ping(self) -> None:
        """One round trip, in no transaction."""
        await super().execute("SELECT 1")


def _guard(name: str) -> Callable[..., Awaitable[Any]]:
    plain = getattr(Connection, name)

    @wraps(plain)
    async def guarded(self: AsyncpgScopedConnection, *args: Any, **kwargs: Any) -> Any:
        if self._beginning is not None:
            await self.settle()
        if name == "add_listener":
            self.note_altered("a listener")
        if self._armed and not self.is_in_transaction():
            raise NoTenantError(OUTSIDE)
        return await plain(self, *args, **kwargs)

    return guarded


def _note(name: str) -> Callable[..., Any]:
    plain = getattr(Connection, name)

    @wraps(plain)
    def noted(self: AsyncpgScopedConnection, *args: Any, **kwargs: Any) -> Any:
        self.note_altered(f"something by {name}()")
        return plain(self, *args, **kwargs)

    return noted


for _name in _SENDS_SQL:
    setattr(AsyncpgScopedConnection, _name, _guard(_name))
for _name in _STAYS:
    setattr(AsyncpgScopedConnection, _name, _note(_name))


class _SameEverywhere(LRUCache[str, Any]):
    """Keeps those prepared statements alone whose parameters and columns have built-in types.

    The server plans a kept statement anew when the search path changes, but the types of its
    parameters and columns stay: a tenant's own enum would meet the next tenant's.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        statement = value[0]
        types = [*statement.get_parameters(), *(a.type for a in statement.get_attributes())]
        if all(t.oid < _FIRST_USER_OID for t in types):
            super().__setitem__(key, value)

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        statement = value[0]
        statement._con_release_ctr = statement._connection._pool_release_ctr  # valid in this transaction, too
        return value


class ScopedAsyncpgDialect(PGDialect_asyncpg):
    """`postgresql+asyncpg`, scoped.

    `prepared_statement_cache_size` in the URL or `connect_args` turns server-side prepared
    statements on, for direct connections.
    """

    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> Any:
        args, kwargs = super().create_connect_args(url)  # type: ignore[no-untyped-call]
        kwargs["connection_class"] = AsyncpgScopedConnection
        # asyncpg's own cache serves its fetch() methods, which the adapter does not use, and is kept empty.
        # Of size 0 it would have each unnamed statement parsed twice, against poolers that give the second
        # message to another server process; inside a transaction they do not.
        kwargs["statement_cache_size"] = kwargs["max_cacheable_statement_size"] = 1
        kwargs.setdefault("prepared_statement_cache_size", 0)
        return args, kwargs

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        size = int(kwargs.get("prepared_statement_cache_size", 0))
        if not size:
            # Unnamed statements: a transaction pooler has nothing to remember, and no name to clash.
            kwargs.setdefault("prepared_statement_name_func", str)
        settings = dict(kwargs.get("server_settings") or {})
        try:
            kwargs["server_settings"] = {"search_path": DEAD_END, **settings}
            adapter = super().connect(*args, **kwargs)
        except Exception as error:
            if "startup parameter" not in str(error):
                raise
            kwargs["server_settings"] = settings  # a pooler, which takes no such parameter
            adapter = super().connect(*args, **kwargs)
        if size:
            adapter._prepared_statement_cache = _SameEverywhere(size)
            adapter.driver_connection.keep_statements()
        return adapter

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        refuse_autocommit(level)
        super().set_isolation_level(dbapi_connection, level)  # type: ignore[no-untyped-call]

    def check_idle(self, driver: Any) -> None:
        """Raise if a connection of the pool is seen to be lost, or not as it should be; takes no round
        trip."""
        driver.check_reusable()

    def do_begin(self, dbapi_connection: Any) -> None:
        adapter = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)  # out of the pool's proxy
        transaction = adapter.driver_connection.transaction(
            isolation=adapter.isolation_level, readonly=adapter.readonly, deferrable=adapter.deferrable
        )
        if not isinstance(transaction, _ScopedTransaction):
            raise NoTenantError("a transaction is open on this connection that SQLAlchemy has not begun")
        try:
            transaction.send()
        except Exception as error:
            adapter._handle_exception(error)
        adapter._transaction = transaction

    def do_execute(self, cursor: Any, statement: str, *args: Any, **kwargs: Any) -> None:
        self._settle(cursor)
        if cursor._adapt_connection._prepared_statement_cache is not None and _PREPARE.match(statement):
            # Clean-up leaves the prepared statements alone; this one would serve the next tenant.
            raise ConfigurationError(
                "prepared_statement_cache_size", "on", "PREPARE as SQL text is refused: leave that to asyncpg"
            )
        super().do_execute(cursor, statement, *args, **kwargs)  # type: ignore[no-untyped-call]

    def do_executemany(self, cursor: Any, *args: Any, **kwargs: Any) -> None:
        self._settle(cursor)
        super().do_executemany(cursor, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _settle(self, cursor: Any) -> None:
        # The adapter runs a prepared statement of its cache without asking the connection.
        if cursor._connection._beginning is not None:
            try:
                await_only(cursor._connection.settle())
            except Exception as error:
                cursor._handle_exception(error)

    def do_ping(self, dbapi_connection: Any) -> Literal[True]:
        try:
            await_only(dbapi_connection.driver_connection.ping())
        except Exception as error:
            dbapi_connection._handle_exception(error)  # as a DBAPI error, which the pool understands
        return True
