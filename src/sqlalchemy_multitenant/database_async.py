"""`AsyncTenantDb`: what `TenantDb` is, for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, overload

from sqlalchemy import Executable, Result, ScalarResult
from sqlalchemy.engine.interfaces import CoreExecuteOptionsParameter
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.sql.selectable import TypedReturnsRows

from .database import Parameters, T, Ts, buffer
from .naming import TenantId


class AsyncTenantDb:
    """The database as one tenant sees it; see `TenantDb`. Belongs to the event loop that uses it first.

    Attributes:
        tenant: the tenant's id; None for the shared data.
        engine: a SQLAlchemy `AsyncEngine` with the tenant's scope, for code that wants one.
    """

    def __init__(self, tenant: TenantId | None, engine: AsyncEngine) -> None:
        self.tenant = tenant
        self.engine = engine

    def __repr__(self) -> str:
        return f"AsyncTenantDb({self.tenant!r})" if self.tenant else "AsyncTenantDb(shared)"

    def session(self, **options: Any) -> AsyncSession:
        """An `AsyncSession` that belongs to this tenant for life; rolls back unless committed.

        Use it with `async with`. `options` go to `AsyncSession`; `expire_on_commit` is off unless
        given, since an expired attribute cannot be loaded by merely reading it under asyncio
        (https://docs.sqlalchemy.org/en/21/orm/extensions/asyncio.html).
        """
        options.setdefault("expire_on_commit", False)
        return AsyncSession(bind=self.engine, **options)

    @asynccontextmanager
    async def begin(self, **options: Any) -> AsyncIterator[AsyncSession]:
        """A session in a transaction that is committed at the end, or rolled back by an exception."""
        async with self.session(**options) as session, session.begin():
            yield session

    @asynccontextmanager
    async def connect(
        self, execution_options: CoreExecuteOptionsParameter | None = None
    ) -> AsyncIterator[AsyncConnection]:
        """A Core `AsyncConnection`; use it with `async with`. Rolls back unless committed."""
        async with self.engine.connect() as connection:
            if execution_options:
                await connection.execution_options(**execution_options)
            yield connection

    @overload
    async def execute(
        self, statement: TypedReturnsRows[*Ts], params: Parameters | None = None
    ) -> Result[*Ts]: ...
    @overload
    async def execute(
        self, statement: Executable, params: Parameters | None = None
    ) -> Result[*tuple[Any, ...]]: ...
    async def execute(
        self, statement: Executable, params: Parameters | None = None
    ) -> Result[*tuple[Any, ...]]:
        """Run one statement in a transaction of its own, which is committed. The rows are all fetched
        before this returns; ORM objects come back detached."""
        async with self.begin(expire_on_commit=False) as session:
            return buffer(await session.execute(statement, params))

    @overload
    async def scalars(
        self, statement: TypedReturnsRows[T], params: Parameters | None = None
    ) -> ScalarResult[T]: ...
    @overload
    async def scalars(self, statement: Executable, params: Parameters | None = None) -> ScalarResult[Any]: ...
    async def scalars(self, statement: Executable, params: Parameters | None = None) -> ScalarResult[Any]:
        """As `execute`; the first column of each row."""
        return (await self.execute(statement, params)).scalars()

    @overload
    async def scalar(self, statement: TypedReturnsRows[T], params: Parameters | None = None) -> T | None: ...
    @overload
    async def scalar(self, statement: Executable, params: Parameters | None = None) -> Any: ...
    async def scalar(self, statement: Executable, params: Parameters | None = None) -> Any:
        """As `execute`; the first column of the first row, or None."""
        return (await self.execute(statement, params)).scalar()
