"""psycopg connections that run nothing outside a scoped transaction.

The connection is in psycopg's autocommit mode and BEGIN is ours. It is sent without waiting for
the answer, which is read just before the first statement is sent: PostgreSQL scopes the
transaction while Python still compiles the statement. Until then libpq itself refuses
any other command, and a scope that could not be entered raises there. Nor is ROLLBACK waited for,
whose answer tells nothing but whether the connection is still good: it is read before whatever comes
next, at the latest when the pool gives the connection to its next user. Everything that psycopg
sends passes through `Connection.wait`
(https://www.psycopg.org/psycopg3/docs/api/connections.html#psycopg.Connection.wait), so that is
where the guard stands.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, cast

import psycopg
from psycopg import generators, pq
from psycopg.adapt import AdaptersMap

from ..errors import NoTenantError
from ..isolation.scope import STALE_SQLSTATES, Scope, ScopeSource, begin_nowhere_sql, begin_sql
from .guard import OUTSIDE, Guarded
from .psycopg_cursors import (
    AsyncScopedCursor,
    AsyncScopedServerCursor,
    ScopedCursor,
    ScopedServerCursor,
)

_IDLE = pq.TransactionStatus.IDLE
_INTRANS = pq.TransactionStatus.INTRANS
_OPEN = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)
_ERRORS = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE)

_Gen = Generator[Any, Any, Any]


class _NotingAdapters(AdaptersMap):
    """The adapters of one connection; notes that they were changed."""

    owner: weakref.ref[Scoped] | None = None

    def register_dumper(self, cls: Any, dumper: Any) -> None:
        self._note()
        super().register_dumper(cls, dumper)

    def register_loader(self, oid: Any, loader: Any) -> None:
        self._note()
        super().register_loader(oid, loader)

    def _note(self) -> None:
        if self.owner is not None and (owner := self.owner()) is not None:
            owner.note_altered("an adapter")


class Scoped(Guarded):
    """What the sync and the async connection share."""

    pgconn: pq.abc.PGconn
    _notifies_backlog: deque[Any] | None
    _settings: tuple[Any, ...] = ()

    _pending: ScopeSource | None = None
    _rolling_back = False
    _interrupted = False
    isolation: str | None = None
    read_only_mode: bool | None = None
    deferrable_mode: bool | None = None

    def _begin_command(self) -> str:
        modes = [f"ISOLATION LEVEL {self.isolation}"] if self.isolation else []
        if self.read_only_mode is not None:
            modes.append("READ ONLY" if self.read_only_mode else "READ WRITE")
        if self.deferrable_mode is not None:
            modes.append("DEFERRABLE" if self.deferrable_mode else "NOT DEFERRABLE")
        return " ".join(["BEGIN", *modes])

    def _send_begin(self, source: ScopeSource, scope: Scope) -> None:
        """Send BEGIN, and leave the answer to whatever is sent next."""
        script = begin_sql(self._begin_command(), scope, clean_up=self._clean_up)
        self._interrupted = False
        self.pgconn.send_query(self._encode(script))
        self._pending = source
        self.pgconn.flush()

    def _encode(self, sql: str) -> bytes:
        # The server reads a message in the encoding that the session has before it.
        return sql.encode(self._encoding)

    @property
    def _encoding(self) -> str:
        driver: Any = self  # what psycopg's own class has
        return str(driver.info.encoding)

    def _read_settings(self) -> tuple[Any, ...]:
        driver: Any = self
        return driver.row_factory, driver.prepare_threshold, driver.autocommit

    def _announced_pid(self) -> int:
        return self.pgconn.backend_pid

    def check_reusable(self) -> None:
        """Raise if the last user has left something that no statement takes back, or a transaction: where
        SQLAlchemy does not know how a commit ended, it does not roll back."""
        self.check_unaltered()
        if self._pending is not None or self.pgconn.pipeline_status or not self._between_transactions:
            raise NoTenantError("its last user has left a transaction open")
        if self._read_settings() != self._settings:
            raise NoTenantError("its last user has left settings of the driver")

    def arm(self, pid: int) -> None:
        super().arm(pid)
        self._settings = self._read_settings()
        driver: Any = self
        driver._adapters = _NotingAdapters(driver.adapters)
        driver._adapters.owner = weakref.ref(self)

    def add_notice_handler(self, callback: Any) -> None:
        self.note_altered("a notice handler")
        super().add_notice_handler(callback)  # type: ignore[misc]

    def add_notify_handler(self, callback: Any) -> None:
        self.note_altered("a notify handler")
        super().add_notify_handler(callback)  # type: ignore[misc]

    def _send_rollback(self) -> bool:
        """Send ROLLBACK, and leave the answer to whatever comes next; False where that cannot be done."""
        idle_in_transaction = self.pgconn.transaction_status in _OPEN
        if not self._armed or not idle_in_transaction or self.pgconn.pipeline_status:
            return False
        self.pgconn.send_query(b"ROLLBACK")
        self.pgconn.flush()
        self._rolling_back = True
        return True

    def look(self) -> bool:
        """Take in what the server has said meanwhile, without waiting. Whether that is all that it owes.

        Raises:
            OperationalError: the server has closed the connection.
        """
        self.pgconn.consume_input()
        self.pgconn.consume_input()  # libpq tells the end of the stream apart from what came before it
        return not self.pgconn.is_busy()

    def _finish_rollback(self) -> _Gen:
        """Read the answer to ROLLBACK. Whoever is interrupted leaves it to the next."""
        results = yield from self._read_answer()
        self._rolling_back = False
        if failed := next((r for r in results if r.status in _ERRORS), None):
            raise psycopg.errors.error_from_result(failed)

    def _guarded(self, gen: _Gen) -> _Gen:
        """`gen`, after the answer to BEGIN where one is due; refuses it outside a transaction."""
        if self._pending is not None:
            return self._after_begin(gen)
        if self._rolling_back:
            return self._after_rollback(gen)
        if self._armed and self.pgconn.transaction_status == _IDLE:
            gen.close()
            raise NoTenantError(OUTSIDE)
        return gen

    def _after_begin(self, gen: _Gen) -> _Gen:
        try:
            yield from self._finish_begin()
            if self._interrupted:
                # psycopg cancels what runs, and drives the generator on: the statement must not be sent.
                raise psycopg.errors.QueryCanceled("interrupted before the statement was sent")
        except BaseException as error:
            gen.close()
            if self._interrupted and isinstance(error, Exception):
                raise psycopg.errors.QueryCanceled("interrupted before the statement was sent") from error
            raise
        return (yield from gen)

    def _after_rollback(self, gen: _Gen) -> _Gen:
        try:
            yield from self._finish_rollback()
        except BaseException:
            gen.close()
            raise
        return (yield from self._guarded(gen))

    def _note_interrupt(self) -> None:
        self._interrupted = True

    def _read_answer(self) -> Generator[Any, Any, Sequence[pq.abc.PGresult]]:
        """The results of what was sent; goes through the event loop only if they have not come yet."""
        self.pgconn.consume_input()
        results: Sequence[pq.abc.PGresult] = yield from generators.execute(self.pgconn)
        return results

    def _finish_begin(self) -> _Gen:
        """Read the answer to BEGIN. Where the guard in it failed, begin anew with a look at the catalog."""
        source = cast("ScopeSource", self._pending)
        results = yield from self._read_answer()
        self._pending = None
        if not results:
            self.pgconn.finish()
            raise psycopg.OperationalError("the server's answer to BEGIN was lost")
        failed = next((r for r in results if r.status in _ERRORS), None)
        if failed is None:
            if self.pgconn.transaction_status != _INTRANS:
                self.pgconn.finish()
                raise psycopg.OperationalError("the server's answer is not that to BEGIN")
            self._note_clean()
            return
        sqlstate = failed.error_field(pq.DiagnosticField.SQLSTATE)
        if sqlstate is None or sqlstate.decode() not in STALE_SQLSTATES:
            raise psycopg.errors.error_from_result(failed)
        yield from self._query_row("ROLLBACK")
        yield from self._begin_and_look_up(source)

    def _begin_and_look_up(self, source: ScopeSource) -> _Gen:
        """Open a transaction, look the tenant up in it, and scope it."""
        begin = begin_nowhere_sql(self._begin_command(), clean_up=self._clean_up)
        try:
            row = yield from self._query_row(begin + source.lookup_sql)
            self._note_clean()
            scope = source.refresh(row)
            yield from self._query_row(scope.fresh)
        except Exception as error:
            if self.pgconn.transaction_status in _OPEN:
                yield from self._query_row("ROLLBACK")
            meaning = source.explain(error.sqlstate) if isinstance(error, psycopg.Error) else None
            if meaning is None:
                raise
            raise meaning from error

    def _note_clean(self) -> None:
        """The message that began the transaction has cleaned the session, if it had to be."""
        if self._reset_due and self._notifies_backlog:
            self._notifies_backlog.clear()  # what the last user has listened for
        self._note_begun()

    def _query_row(self, sql: str) -> Generator[Any, Any, tuple[str | None, ...] | None]:
        self.pgconn.send_query(self._encode(sql))
        results: Sequence[pq.abc.PGresult] = yield from generators.execute(self.pgconn)
        for result in results:
            if result.status in _ERRORS:
                raise psycopg.errors.error_from_result(result)
        if not results or not results[-1].ntuples:
            return None
        last = results[-1]
        values = (last.get_value(0, column) for column in range(last.nfields))
        encoding = self._encoding
        return tuple(None if value is None else bytes(value).decode(encoding) for value in values)

    @property
    def _between_transactions(self) -> bool:
        if self._rolling_back:
            return True
        return self._pending is None and self.pgconn.transaction_status == _IDLE


class ScopedConnection(Scoped, psycopg.Connection[Any]):
    """A psycopg connection that runs nothing outside a scoped transaction."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cursor_factory, self.server_cursor_factory = ScopedCursor, ScopedServerCursor

    def begin_scoped(self) -> None:
        """Send BEGIN with the bound scope.

        Raises:
            NoTenantError: no scope is bound.
            TenantNotFoundError, TenantSuspendedError: the tenant cannot be entered.
        """
        source = self._take_scope()
        self.settle()
        scope = source.current()
        if scope is None:
            super().wait(self._begin_and_look_up(source))
        else:
            self._send_begin(source, scope)

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        return super().wait(self._guarded(gen), *args, **kwargs)

    def cancel_safe(self, *args: Any, **kwargs: Any) -> None:
        self._note_interrupt()
        super().cancel_safe(*args, **kwargs)

    def settle(self) -> None:
        """Read the answer to a ROLLBACK that was sent, if there is one."""
        if self._rolling_back:
            super().wait(self._finish_rollback())

    def ping(self) -> None:
        """One round trip, in no transaction."""
        self.settle()
        super().wait(self._query_row("SELECT 1"))

    def commit(self) -> None:
        if not self._between_transactions:
            super().commit()

    def rollback(self) -> None:
        if not self._between_transactions and not self._send_rollback():
            super().rollback()


class AsyncScopedConnection(Scoped, psycopg.AsyncConnection[Any]):
    """The same for asyncio."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cursor_factory, self.server_cursor_factory = AsyncScopedCursor, AsyncScopedServerCursor

    async def begin_scoped(self) -> None:
        """Send BEGIN with the bound scope; see `ScopedConnection.begin_scoped`."""
        source = self._take_scope()
        await self.settle()
        scope = source.current()
        if scope is None:
            await super().wait(self._begin_and_look_up(source))
        else:
            self._send_begin(source, scope)

    async def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().wait(self._guarded(gen), *args, **kwargs)

    async def cancel_safe(self, *args: Any, **kwargs: Any) -> None:
        self._note_interrupt()
        await super().cancel_safe(*args, **kwargs)

    async def settle(self) -> None:
        """Read the answer to a ROLLBACK that was sent, if there is one."""
        if self._rolling_back:
            await super().wait(self._finish_rollback())

    async def ping(self) -> None:
        """One round trip, in no transaction."""
        await self.settle()
        await super().wait(self._query_row("SELECT 1"))

    async def commit(self) -> None:
        if not self._between_transactions:
            await super().commit()

    async def rollback(self) -> None:
        if not self._between_transactions and not self._send_rollback():
            await super().rollback()
