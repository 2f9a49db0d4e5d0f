"""The sessions of one request: one transaction each, committed when the response begins."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ..errors import NoTenantError
from .tenancy import Tenancy

AnySession = Session | AsyncSession

_current: ContextVar[UnitOfWork | None] = ContextVar("unit_of_work", default=None)


class UnitOfWork:
    """The sessions that a request has asked for; none until it does.

    Attributes:
        tenancy: of the application.
        is_failed: whether an error has come up, after which nothing is committed.
    """

    def __init__(self, tenancy: Tenancy) -> None:
        self.tenancy = tenancy
        self.is_failed = False
        self._sessions: dict[bool, AnySession] = {}

    @staticmethod
    def current() -> UnitOfWork:
        """That of the request which is being answered.

        Raises:
            NoTenantError: there is none, or the middleware is not installed.
        """
        if (unit := _current.get()) is None:
            raise NoTenantError(
                "no request is being answered here, or the tenancy's middleware is not installed"
            )
        return unit

    def __enter__(self) -> UnitOfWork:
        self._before = _current.get()
        _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.set(self._before)

    def session(self, *, shared: bool = False) -> Any:
        """The request's session of its tenant, or of the shared data: always the same one.

        Raises:
            NoTenantError: the request has no tenant.
        """
        if (session := self._sessions.get(shared)) is None:
            context = self.tenancy.context
            db = context.get_shared_db() if shared else context.get_tenant_db()
            # The commit comes unasked for: what was loaded before stays loaded.
            session = self._sessions[shared] = db.session(expire_on_commit=False)
        return session

    def fail(self) -> None:
        """An error has come up: nothing more is to be committed."""
        self.is_failed = True

    # -- in threads -----------------------------------------------------------------------------------

    def end_transactions(self) -> None:
        """Commit, or roll back if something has failed."""
        for session in self._open():
            session.rollback() if self.is_failed else session.commit()

    def close(self) -> None:
        """Give the connections back; what was not committed is rolled back."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    # -- in an event loop -----------------------------------------------------------------------------

    async def end_transactions_async(self) -> None:
        """Commit, or roll back if something has failed."""
        for session in self._open():
            if not isinstance(session, AsyncSession):
                await asyncio.to_thread(session.rollback if self.is_failed else session.commit)
            elif self.is_failed:
                await session.rollback()
            else:
                await session.commit()

    async def close_async(self) -> None:
        """Give the connections back, also where the request was cancelled."""
        if self._open():
            # The task of the request may be cancelled once more while it waits here.
            await asyncio.shield(asyncio.create_task(self._close_open()))
        for session in self._sessions.values():  # without a transaction, there is nothing to wait for
            (session.sync_session if isinstance(session, AsyncSession) else session).close()
        self._sessions.clear()

    async def _close_open(self) -> None:
        for session in self._open():
            if isinstance(session, AsyncSession):
                await session.close()
            else:
                await asyncio.to_thread(session.close)

    def _open(self) -> list[Any]:
        return [session for session in self._sessions.values() if session.in_transaction()]


def tenant_session() -> Any:
    """The request's session of its tenant: an `AsyncSession` with an `AsyncTenantManager`, else a `Session`.
    Committed before the answer begins, rolled back
    on an error or a status of 400 or more.

    Raises:
        NoTenantError: the request has no tenant, or there is no request.
    """
    return UnitOfWork.current().session()


def shared_session() -> Any:
    """The same for the shared data."""
    return UnitOfWork.current().session(shared=True)
