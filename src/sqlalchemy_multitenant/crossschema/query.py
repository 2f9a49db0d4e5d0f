"""`CrossSchemaQuery`: joins of a tenant's tables with the shared ones, whose rows have types.

A query is a value: each method returns a new one. `CrossSchemaQuery` has no columns yet; `select()` makes a
`CrossSchemaSelect` of it, which runs. Python's types have nothing between sync and async, so that the classes
are there twice, but not what they do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import closing
from typing import Any, Generic, Self, TypeAlias, TypeVar, TypeVarTuple, cast, overload

from sqlalchemy import ColumnExpressionArgument, Result, ScalarResult, Select
from sqlalchemy.dialects.postgresql import distinct_on

from ..database import TenantDb, needs_unique
from ..database_async import AsyncTenantDb
from .handles import check_pair
from .optional import Entity, Optional
from .parts import OnClause, Owner, Parts, Source

T0 = TypeVar("T0")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")
T7 = TypeVar("T7")
T8 = TypeVar("T8")
T9 = TypeVar("T9")
Ts = TypeVarTuple("Ts")

Marked: TypeAlias = Entity[T0] | Optional[T0]
"""What `select()` takes: an entity, or one that is marked `optional()`."""


class _Clauses:
    """What all have: the joins, and the clauses of a SELECT."""

    _parts: Parts

    def _with(self, parts: Parts) -> Self:
        raise NotImplementedError

    def from_(self, owner: Owner, source: Source) -> Self:
        """Begin with this table.

        Args:
            owner: `"tenant"` or `"shared"`: whose table it is.
            source: a mapped class, an alias of one, a table, a CTE or another subquery.

        Raises:
            ConfigurationError: it is not the owner's.
        """
        return self._with(self._parts.start(owner, source))

    def inner_join(self, owner: Owner, source: Source, on: OnClause | None = None) -> Self:
        """Join what matches. Without `on`, by the foreign key between the two."""
        return self._with(self._parts.join(owner, source, on, keeps_left=False, keeps_right=False))

    def left_join(self, owner: Owner, source: Source, on: OnClause | None = None) -> Self:
        """Join what matches; where nothing does, what is selected of `source` is None."""
        return self._with(self._parts.join(owner, source, on, keeps_left=True, keeps_right=False))

    def right_join(self, owner: Owner, source: Source, on: OnClause | None = None) -> Self:
        """Join to all rows of `source`; where nothing matches, what is selected of all others is None."""
        return self._with(self._parts.join(owner, source, on, keeps_left=False, keeps_right=True))

    def full_join(self, owner: Owner, source: Source, on: OnClause | None = None) -> Self:
        """Keep all rows of both sides; either may be None."""
        return self._with(self._parts.join(owner, source, on, keeps_left=True, keeps_right=True))

    def where(self, *criteria: ColumnExpressionArgument[bool]) -> Self:
        """As `Select.where`."""
        return self._with(self._parts.step("where", *criteria))

    def group_by(self, *columns: ColumnExpressionArgument[Any] | str) -> Self:
        """As `Select.group_by`."""
        return self._with(self._parts.step("group_by", *columns))

    def having(self, *criteria: ColumnExpressionArgument[bool]) -> Self:
        """As `Select.having`."""
        return self._with(self._parts.step("having", *criteria))

    def order_by(self, *columns: ColumnExpressionArgument[Any] | str) -> Self:
        """As `Select.order_by`."""
        return self._with(self._parts.step("order_by", *columns))

    def limit(self, count: int | None) -> Self:
        """As `Select.limit`."""
        return self._with(self._parts.step("limit", count))

    def offset(self, count: int | None) -> Self:
        """As `Select.offset`."""
        return self._with(self._parts.step("offset", count))

    def distinct(self, *on: ColumnExpressionArgument[Any]) -> Self:
        """No row twice; with `on`, the first row of each of their values (DISTINCT ON)."""
        return self._with(self._parts.step("ext", distinct_on(*on)) if on else self._parts.step("distinct"))


class CrossSchemaQuery(_Clauses):
    """A query over a tenant's and the shared tables, typed from end to end.

        rows = (
            CrossSchemaQuery(tenant_db, shared_db)
            .from_("tenant", Order)
            .left_join("shared", Plan, Order.plan_id == Plan.id)
            .select(Order.id, optional(Plan.name))
            .all()
        )  # list[tuple[int, str | None]]

    It runs in one transaction of the tenant, which sees both schemas.
    """

    def __init__(self, tenant_db: TenantDb, shared_db: TenantDb) -> None:
        """
        Args:
            tenant_db: of the tenant whose data is asked for.
            shared_db: of the same manager.

        Raises:
            ConfigurationError: they are not such a pair.
        """
        self._db = tenant_db
        self._parts = Parts(check_pair(tenant_db, shared_db, TenantDb))

    def _with(self, parts: Parts) -> Self:
        query = object.__new__(type(self))
        query._db, query._parts = self._db, parts
        return query

    @overload
    def select(self, e0: Marked[T0], /) -> CrossSchemaSelect[T0]: ...
    @overload
    def select(self, e0: Marked[T0], e1: Marked[T1], /) -> CrossSchemaSelect[T0, T1]: ...
    @overload
    def select(self, e0: Marked[T0], e1: Marked[T1], e2: Marked[T2], /) -> CrossSchemaSelect[T0, T1, T2]: ...
    @overload
    def select(
        self, e0: Marked[T0], e1: Marked[T1], e2: Marked[T2], e3: Marked[T3], /
    ) -> CrossSchemaSelect[T0, T1, T2, T3]: ...
    @overload
    def select(
        self, e0: Marked[T0], e1: Marked[T1], e2: Marked[T2], e3: Marked[T3], e4: Marked[T4], /
    ) -> CrossSchemaSelect[T0, T1, T2, T3, T4]: ...
    @overload
    def select(
        self,
        e0: Marked[T0],
        e1: Marked[T1],
        e2: Marked[T2],
        e3: Marked[T3],
        e4: Marked[T4],
        e5: Marked[T5],
        /,
    ) -> CrossSchemaSelect[T0, T1, T2, T3, T4, T5]: ...
    @overload
    def select(
        self,
        e0: Marked[T0],
        e1: Marked[T1],
        e2: Marked[T2],
        e3: Marked[T3],
        e4: Marked[T4],
        e5: Marked[T5],
        e6: Marked[T6],
        /,
    ) -> CrossSchemaSelect[T0, T1, T2, T3, T4, T5, T6]: ...
    @overload
    def select(
        self,
        e0: Marked[T0],
        e1: Marked[T1],
        e2: Marked[T2],
        e3: Marked[T3],
        e4: Marked[T4],
        e5: Marked[T5],
        e6: Marked[T6],
        e7: Marked[T7],
        /,
    ) -> CrossSchemaSelect[T0, T1, T2, T3, T4, T5, T6, T7]: ...
    @overload
    def select(
        self,
        e0: Marked[T0],
        e1: Marked[T1],
        e2: Marked[T2],
        e3: Marked[T3],
        e4: Marked[T4],
        e5: Marked[T5],
        e6: Marked[T6],
        e7: Marked[T7],
        e8: Marked[T8],
        /,
    ) -> CrossSchemaSelect[T0, T1, T2, T3, T4, T5, T6, T7, T8]: ...
    @overload
    def select(
        self,
        e0: Marked[T0],
        e1: Marked[T1],
        e2: Marked[T2],
        e3: Marked[T3],
        e4: Marked[T4],
        e5: Marked[T5],
        e6: Marked[T6],
        e7: Marked[T7],
        e8: Marked[T8],
        e9: Marked[T9],
        /,
    ) -> CrossSchemaSelect[T0, T1, T2, T3, T4, T5, T6, T7, T8, T9]: ...
    @overload
    def select(
        self,
        e0: Any,
        e1: Any,
        e2: Any,
        e3: Any,
        e4: Any,
        e5: Any,
        e6: Any,
        e7: Any,
        e8: Any,
        e9: Any,
        e10: Any,
        /,
        *more: Any,
    ) -> CrossSchemaSelect[*tuple[Any, ...]]: ...
    def select(self, *entities: Any) -> CrossSchemaSelect[*tuple[Any, ...]]:
        """What each row has: columns, expressions and mapped classes, those that may be missing marked
        `optional()`. Types are inferred for up to ten.

        Raises:
            ConfigurationError: a mark is missing or one too many, or a table is not in the query.
        """
        return CrossSchemaSelect(self._db, self._parts.select(entities))


class CrossSchemaSelect(_Clauses, Generic[*Ts]):
    """A query with its columns; see `CrossSchemaQuery`. Rows are SQLAlchemy's `Row`, with the types of the
    tuples that they behave as."""

    def __init__(self, db: TenantDb, parts: Parts) -> None:
        self._db, self._parts = db, parts

    def _with(self, parts: Parts) -> Self:
        return type(self)(self._db, parts)

    @property
    def statement(self) -> Select[*Ts]:
        """The plain `Select`, for a session of the tenant's, or to go on with.

        Raises:
            ConfigurationError: a mark is missing or one too many.
        """
        return cast("Select[*Ts]", self._parts.build())

    def all(self) -> list[tuple[*Ts]]:
        """All rows."""
        return cast("list[tuple[*Ts]]", list(_rows(self._db.execute(self.statement))))

    def first(self) -> tuple[*Ts] | None:
        """The first row, or None."""
        return cast("tuple[*Ts] | None", _rows(self._db.execute(self._parts.first().build())).first())

    def one(self) -> tuple[*Ts]:
        """The only row.

        Raises:
            NoResultFound, MultipleResultsFound: (SQLAlchemy's) there are none, or several.
        """
        return cast("tuple[*Ts]", _rows(self._db.execute(self.statement)).one())

    def one_or_none(self) -> tuple[*Ts] | None:
        """The only row, or None.

        Raises:
            MultipleResultsFound: (SQLAlchemy's) there are several.
        """
        return cast("tuple[*Ts] | None", _rows(self._db.execute(self.statement)).one_or_none())

    def scalars(self: CrossSchemaSelect[T0, *tuple[Any, ...]]) -> ScalarResult[T0]:
        """The first column of each row."""
        return _rows(self._db.execute(self._parts.build())).scalars()

    def stream(self, *, batch: int = 1000) -> Generator[tuple[*Ts], None, None]:
        """The rows as they are read, `batch` of them in memory at one time. The transaction lasts, and a
        connection is taken, until the last one, or until the iterator is closed."""
        options = {"yield_per": batch}
        with (
            self._db.session() as session,
            closing(session.execute(self.statement, execution_options=options)) as result,
        ):
            yield from cast("Iterator[tuple[*Ts]]", result)


class AsyncCrossSchemaQuery(_Clauses):
    """`CrossSchemaQuery` for asyncio: what `CrossSchemaSelect` does is awaited."""

    def __init__(self, tenant_db: AsyncTenantDb, shared_db: AsyncTenantDb) -> None:
        """As `CrossSchemaQuery`."""
        self._db = tenant_db
        self._parts = Parts(check_pair(tenant_db, shared_db, AsyncTenantDb))

    def _with(self, parts: Parts) -> Self:
        query = object.__new__(type(self))
        query._db, query._parts = self._db, parts
        return query

    @overload
    def select(self, e0: Marked[T0], /) -> AsyncCrossSchemaSelect[T0]: ...
    @overload
    def select(self, e0: Marked[T0], e1: Marked[T1], /) -> AsyncCrossSchemaSelect[T0, T1]: ...
    @overload
    def select(
        self, e0: Marked[T0], e1: Marked[T1], e2: Marked[T2], /
    ) -> AsyncCrossSchemaSelect[T0, T1, T2]: ...
    @overload
    def select(
        self, e0: Marked[T0], e1: Marked[T1], e2: Marked[T2], e3: Marked[T3], /
    ) -> AsyncCrossSchemaSelect[T0, T1, T2, T3]: ...
    @overload
    def select(
        self, e0: Marked[T0], e1: Marked[T1], e2: Marked[T2], e3: Marked[T3], e4: Marked[T4], /
    ) -> AsyncCrossSchemaSelect[T0, T1, T2, T3, T4]: ...
    @overload
    def select(
        self,
        e0: Marked[T0],
        e1: Marked[T1],
        e2: Marked[T2],
        e3: Marked[T3],
        e4: Marked[T4],
        e5: Marked[T5],
        /,
    ) -> AsyncCrossSchemaSelect[T0, T1, T2, T3, T4, T5]: ...
    @overload
    def select(
        self,
        e0: Marked[T0],
        e1: Marked[T1],
        e2: Marked[T2],
        e3: Marked[T3],
        e4: Marked[T4],
        e5: Marked[T5],
        e6: Marked[T6],
        /,
    ) -> AsyncCrossSchemaSelect[T0, T1, T2, T3, T4, T5, T6]: ...
    @overload
    def select(
        self,
        e0: Marked[T0],
        e1: Marked[T1],
        e2: Marked[T2],
        e3: Marked[T3],
        e4: Marked[T4],
        e5: Marked[T5],
        e6: Marked[T6],
        e7: Marked[T7],
        /,
    ) -> AsyncCrossSchemaSelect[T0, T1, T2, T3, T4, T5, T6, T7]: ...
    @overload
    def select(
        self,
        e0: Marked[T0],
        e1: Marked[T1],
        e2: Marked[T2],
        e3: Marked[T3],
        e4: Marked[T4],
        e5: Marked[T5],
        e6: Marked[T6],
        e7: Marked[T7],
        e8: Marked[T8],
        /,
    ) -> AsyncCrossSchemaSelect[T0, T1, T2, T3, T4, T5, T6, T7, T8]: ...
    @overload
    def select(
        self,
        e0: Marked[T0],
        e1: Marked[T1],
        e2: Marked[T2],
        e3: Marked[T3],
        e4: Marked[T4],
        e5: Marked[T5],
        e6: Marked[T6],
        e7: Marked[T7],
        e8: Marked[T8],
        e9: Marked[T9],
        /,
    ) -> AsyncCrossSchemaSelect[T0, T1, T2, T3, T4, T5, T6, T7, T8, T9]: ...
    @overload
    def select(
        self,
        e0: Any,
        e1: Any,
        e2: Any,
        e3: Any,
        e4: Any,
        e5: Any,
        e6: Any,
        e7: Any,
        e8: Any,
        e9: Any,
        e10: Any,
        /,
        *more: Any,
    ) -> AsyncCrossSchemaSelect[*tuple[Any, ...]]: ...
    def select(self, *entities: Any) -> AsyncCrossSchemaSelect[*tuple[Any, ...]]:
        """As `CrossSchemaQuery.select`."""
        return AsyncCrossSchemaSelect(self._db, self._parts.select(entities))


class AsyncCrossSchemaSelect(_Clauses, Generic[*Ts]):
    """`CrossSchemaSelect` for asyncio."""

    def __init__(self, db: AsyncTenantDb, parts: Parts) -> None:
        self._db, self._parts = db, parts

    def _with(self, parts: Parts) -> Self:
        return type(self)(self._db, parts)

    @property
    def statement(self) -> Select[*Ts]:
        """As `CrossSchemaSelect.statement`."""
        return cast("Select[*Ts]", self._parts.build())

    async def all(self) -> list[tuple[*Ts]]:
        """All rows."""
        return cast("list[tuple[*Ts]]", list(_rows(await self._db.execute(self.statement))))

    async def first(self) -> tuple[*Ts] | None:
        """The first row, or None."""
        found = _rows(await self._db.execute(self._parts.first().build()))
        return cast("tuple[*Ts] | None", found.first())

    async def one(self) -> tuple[*Ts]:
        """As `CrossSchemaSelect.one`."""
        return cast("tuple[*Ts]", _rows(await self._db.execute(self.statement)).one())

    async def one_or_none(self) -> tuple[*Ts] | None:
        """As `CrossSchemaSelect.one_or_none`."""
        return cast("tuple[*Ts] | None", _rows(await self._db.execute(self.statement)).one_or_none())

    async def scalars(self: AsyncCrossSchemaSelect[T0, *tuple[Any, ...]]) -> ScalarResult[T0]:
        """The first column of each row."""
        return _rows(await self._db.execute(self._parts.build())).scalars()

    async def stream(self, *, batch: int = 1000) -> AsyncGenerator[tuple[*Ts], None]:
        """As `CrossSchemaSelect.stream`."""
        async with self._db.session() as session:
            result = await session.stream(self.statement, execution_options={"yield_per": batch})
            try:
                async for row in result:
                    yield cast("tuple[*Ts]", row)
            finally:
                await result.close()


def _rows(result: Result[*tuple[Any, ...]]) -> Result[*tuple[Any, ...]]:
    """Each row once, where a collection that is loaded with its owner makes several of one."""
    return result.unique() if needs_unique(result) else result
