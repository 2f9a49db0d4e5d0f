"""`TenantDb`: the handle through which an application reaches one tenant's data, or the shared data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, TypeVarTuple, overload

from sqlalchemy import Connection, Engine, Executable, Result, ScalarResult
from sqlalchemy.engine.interfaces import CoreExecuteOptionsParameter
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import TypedReturnsRows

from .naming import TenantId

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class TenantDb:
    """The database as one tenant sees it. Cheap, holds no connection, safe to keep and to share
    between threads.

    Made by `TenantManager.get_db()` and `get_shared_db()`. Every transaction on it is bound to the
    tenant in the message that opens it; what then runs, written with or without a schema, sees
    the tenant's own tables first, the shared ones second, and no other tenant's.

    Attributes:
        tenant: the tenant's id; None for the shared data.
        engine: a SQLAlchemy `Engine` with the tenant's scope, for code that wants one.
    """

    def __init__(self, tenant: TenantId | None, engine: Engine) -> None:
        self.tenant = tenant
        self.engine = engine

    def __repr__(self) -> str:
        return f"TenantDb({self.tenant!r})" if self.tenant else "TenantDb(shared)"

    def session(self, **options: Any) -> Session:
        """A `Session` that belongs to this tenant for life; rolls back unless committed.

        Use it as a context manager. `options` go to `sqlalchemy.orm.Session`.
        """
        return Session(bind=self.engine, **options)

    @contextmanager
    def begin(self, **options: Any) -> Iterator[Session]:
        """A session in a transaction that is committed at the end, or rolled back by an exception."""
        with self.session(**options) as session, session.begin():
            yield session

    def connect(self, execution_options: CoreExecuteOptionsParameter | None = None) -> Connection:
        """A Core `Connection`; use it as a context manager. Rolls back unless committed."""
        connection = self.engine.connect()
        return connection.execution_options(**execution_options) if execution_options else connection

    @overload
    def execute(self, statement: TypedReturnsRows[*Ts], params: Parameters | None = None) -> Result[*Ts]: ...
    @overload
    def execute(
        self, statement: Executable, params: Parameters | None = None
    ) -> Result[*tuple[Any, ...]]: ...
    def execute(self, statement: Executable, params: Parameters | None = None) -> Result[*tuple[Any, ...]]:
        """Run one statement in a transaction of its own, which is committed. The rows are all fetched
        before this returns; ORM objects come back detached."""
        with self.begin(expire_on_commit=False) as session:
            return buffer(session.execute(statement, params))

    @overload
    def scalars(
        self, statement: TypedReturnsRows[T], params: Parameters | None = None
    ) -> ScalarResult[T]: ...
    @overload
    def scalars(self, statement: Executable, params: Parameters | None = None) -> ScalarResult[Any]: ...
    def scalars(self, statement: Executable, params: Parameters | None = None) -> ScalarResult[Any]:
        """As `execute`; the first column of each row."""
        return self.execute(statement, params).scalars()

    @overload
    def scalar(self, statement: TypedReturnsRows[T], params: Parameters | None = None) -> T | None: ...
    @overload
    def scalar(self, statement: Executable, params: Parameters | None = None) -> Any: ...
    def scalar(self, statement: Executable, params: Parameters | None = None) -> Any:
        """As `execute`; the first column of the first row, or None."""
        return self.execute(statement, params).scalar()


def buffer(result: Result[*tuple[Any, ...]]) -> Result[*tuple[Any, ...]]:
    """`result` with all its rows in memory, so that it outlives its connection. One without rows (a
    plain UPDATE) stays what it is, with its `rowcount`."""
    if getattr(result, "returns_rows", True) is False:
        return result
    # Rows that come several times are to be complained of where they are read, as in a session.
    state, result._unique_filter_state = result._unique_filter_state, None
    buffered = result.freeze()()
    buffered._unique_filter_state = state
    return buffered


def needs_unique(result: Result[*tuple[Any, ...]]) -> bool:
    """Whether SQLAlchemy wants `unique()` to be called: a collection is loaded with its owner in one query
    (https://docs.sqlalchemy.org/en/21/orm/queryguide/relationships.html#joined-eager-loading)."""
    return bool(result._unique_filter_state)
