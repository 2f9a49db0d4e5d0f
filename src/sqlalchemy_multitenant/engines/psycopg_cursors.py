"""psycopg cursors that serve the user of their connection for whom they were made, and no other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg import pq

from ..errors import NoTenantError

_Gen = Generator[Any, Any, Any]


class _OfOneCheckout:
    """Part of a cursor: it serves the checkout that it was made in, and no other."""

    _conn: Any
    _checkout: int

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(connection, *args, **kwargs)  # type: ignore[call-arg]
        self._checkout = connection.checkout

    def _start_query(self, *args: Any, **kwargs: Any) -> _Gen:
        # psycopg passes through here before it sends a statement or a COPY of this cursor.
        self._check()
        return super()._start_query(*args, **kwargs)  # type: ignore[misc,no-any-return]

    def _execute_send(self, query: Any, **options: Any) -> None:
        # The extended protocol takes one statement a message: a COMMIT behind another one, in text that the
        # server reads otherwise than we do, is refused by the server itself
        # (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-EXT-QUERY).
        super()._execute_send(query, **{**options, "force_extended": True})  # type: ignore[misc]

    def _check(self) -> None:
        if self._checkout != self._conn.checkout:
            raise NoTenantError(
                "this cursor belongs to an earlier user of its connection, which has another now"
            )


class _EndedCopy:
    """In the place of what a COPY was sent through, once it is over."""

    def __getattr__(self, name: str) -> Any:
        raise NoTenantError("this COPY has ended, and its connection may have another user now")


def _end_copy(copy: Any) -> None:
    copy.formatter = copy.writer = copy.connection = copy._pgconn = _EndedCopy()


class ScopedCursor(_OfOneCheckout, psycopg.Cursor[Any]):
    """For threads."""

    @contextmanager
    def copy(self, *args: Any, **kwargs: Any) -> Iterator[psycopg.Copy]:
        with super().copy(*args, **kwargs) as copy:
            yield copy
        _end_copy(copy)


class AsyncScopedCursor(_OfOneCheckout, psycopg.AsyncCursor[Any]):
    """For asyncio."""

    @asynccontextmanager
    async def copy(self, *args: Any, **kwargs: Any) -> AsyncIterator[psycopg.AsyncCopy]:
        async with super().copy(*args, **kwargs) as copy:
            yield copy
        _end_copy(copy)


class _ServerSide(_OfOneCheckout):
    """A cursor that the server keeps, until its transaction ends: nothing is to be sent after that."""

    pgresult: pq.abc.PGresult | None

    @property
    def _is_gone(self) -> bool:
        return bool(self._checkout != self._conn.checkout or self._conn._between_transactions)

    def _declare_gen(self, *args: Any, **kwargs: Any) -> _Gen:
        self._check()
        return super()._declare_gen(*args, **kwargs)  # type: ignore[misc,no-any-return]

    def _fetch_gen(self, *args: Any, **kwargs: Any) -> _Gen:
        self._check()
        return super()._fetch_gen(*args, **kwargs)  # type: ignore[misc,no-any-return]

    def __del__(self, *_: Any) -> None:
        # SQLAlchemy makes the cursor before it begins the transaction; where that fails, it drops it.
        if self.pgresult is not None:
            super().__del__()  # type: ignore[misc]


class ScopedServerCursor(_ServerSide, psycopg.ServerCursor[Any]):
    """For threads."""

    def close(self) -> None:
        if self._is_gone:
            psycopg.Cursor.close(self)
        else:
            super().close()


class AsyncScopedServerCursor(_ServerSide, psycopg.AsyncServerCursor[Any]):
    """For asyncio."""

    async def close(self) -> None:
        if self._is_gone:
            await psycopg.AsyncCursor.close(self)
        else:
            await super().close()
