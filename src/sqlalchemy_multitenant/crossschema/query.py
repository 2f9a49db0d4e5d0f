"""`CrossSchemaQuery`: joins of a tenant's tables with the shared ones, whose rows have types.

A query is a value: each method returns a new one. `CrossSchemaQuery` has no columns yet; `select()` makes a
`CrossSchemaSelect` of it, which runs. Python's types have nothing between sync and async, so that the classes
are there twice, but not what they do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Self, TypeAlias, TypeVar, TypeVarTuple, cast, overload

from sqlalchemy import (
    ColumnExpressionArgument,
    FromClause,
    Join,
    ScalarResult,
    Select,
    Table,
    inspect,
    select,
)
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import join as orm_join
from sqlalchemy.orm.util import AliasedClass
from sqlalchemy.sql import elements, visitors

from ..config import Schemas
from ..database import TenantDb
from ..database_async import AsyncTenantDb
from ..errors import ConfigurationError
from .handles import check_pair
from .nullability import Null, Sides, parts_of
from .optional import Entity, Optional

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

Owner: TypeAlias = Literal["tenant", "shared"]
Source: TypeAlias = type[Any] | AliasedClass[Any] | FromClause
"""A mapped class, an alias of one, a table, a CTE or another subquery."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a query is made of so far.

    Attributes:
        from_: the joins; None before `from_()`.
        tables: all that is joined, each table, alias or subquery by itself.
        optional: those of them that a row may lack.
        entities: what is selected, and whether it is marked `optional()`.
        steps: the methods of `Select` that are to be called, with their arguments.
    """

    schemas: Schemas
    from_: FromClause | None = None
    tables: frozenset[FromClause] = frozenset()
    optional: frozenset[FromClause] = frozenset()
    entities: tuple[tuple[Any, bool], ...] = ()
    steps: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def start(self, owner: Owner, source: Source) -> _Parts:
        if self.from_ is not None:
            raise ConfigurationError(
                "from_", _name(source), "the query has one already; join what comes next"
            )
        selectable = self._selectable(owner, source)
        return replace(self, from_=selectable, tables=frozenset(_leaves(selectable)))

    def join(self, owner: Owner, source: Source, on: Any, *, keeps_left: bool, keeps_right: bool) -> _Parts:
        """Join `source`; what is not kept on one side has rows that are missing on the other.

        Args:
            keeps_left: rows that are there so far stay without a match, as in a LEFT or FULL join.
            keeps_right: rows of `source` do, as in a RIGHT or FULL join.
        """
        if self.from_ is None:
            raise ConfigurationError(
                "join", _name(source), "there is nothing to join it to: begin with from_()"
            )
        selectable = self._selectable(owner, source)
        added = frozenset(_leaves(selectable))
        if both := added & self.tables:
            name = _name(next(iter(both)))
            raise ConfigurationError(
                "join", name, "it is in the query already; join sqlalchemy.orm.aliased(...)"
            )
        left, right = (source, self.from_) if keeps_right and not keeps_left else (self.from_, source)
        joined: FromClause = orm_join(
            left, right, on, isouter=keeps_left or keeps_right, full=keeps_left and keeps_right
        )
        optional = self.optional | (added if keeps_left else frozenset())
        optional |= self.tables if keeps_right else frozenset()
        parts = replace(self, from_=joined, tables=self.tables | added, optional=optional)
        parts.check(grouped=None)
        return parts

    def select(self, entities: tuple[Any, ...]) -> _Parts:
        if self.from_ is None:
            raise ConfigurationError(
                "select", len(entities), "there is nothing to select from: begin with from_()"
            )
        if not entities:
            raise ConfigurationError("select", entities, "name at least one column")
        marked = tuple((e.entity, True) if isinstance(e, Optional) else (e, False) for e in entities)
        parts = replace(self, entities=marked)
        parts.check(grouped=None)
        return parts

    def step(self, method: str, *arguments: Any) -> _Parts:
        return replace(self, steps=(*self.steps, (method, arguments)))

    def build(self) -> Select[*tuple[Any, ...]]:
        self.check(grouped=any(method == "group_by" for method, _ in self.steps))
        statement = select(*(entity for entity, _ in self.entities)).select_from(
            cast("FromClause", self.from_)
        )
        for method, arguments in self.steps:
            statement = getattr(statement, method)(*arguments)
        return statement

    def check(self, *, grouped: bool | None) -> None:
        """Hold the marks against the joins, so that the types of the rows are true.

        Args:
            grouped: whether there is a GROUP BY; None while that may still come.
        """
        sides = Sides(self.optional, grouped)
        for entity, is_marked in self.entities:
            null = self._judge(entity, sides)
            if null is Null.PERHAPS and not is_marked:
                raise ConfigurationError(
                    "select",
                    _name(entity),
                    "it is None where an outer join has no match, or where there is nothing to aggregate; "
                    f"write optional({_name(entity)}), and its type says so",
                )
            if null is Null.NEVER and is_marked:
                raise ConfigurationError(
                    "select",
                    f"optional({_name(entity)})",
                    "the joins leave no row without it: take the mark off",
                )

    def _judge(self, entity: Any, sides: Sides) -> Null:
        inspected = inspect(entity, raiseerr=False)
        if (mapped := getattr(inspected, "selectable", None)) is not None and hasattr(inspected, "mapper"):
            tables = frozenset(_leaves(mapped))
            self._check_present(tables, entity)
            return Null.PERHAPS if tables & sides.optional else Null.NEVER
        expression = getattr(entity, "expression", entity)
        if not isinstance(expression, elements.ColumnElement):
            raise ConfigurationError("select", _name(entity), "a column, an expression, or a mapped class")
        self._check_present(_tables(expression), entity)
        return sides.judge(expression)

    def _check_present(self, tables: frozenset[FromClause], entity: Any) -> None:
        if absent := tables - self.tables:
            raise ConfigurationError(
                "select", _name(entity), f"{_name(next(iter(absent)))} is not in the query: join it first"
            )

    def _selectable(self, owner: Owner, source: Source) -> FromClause:
        inspected = inspect(source, raiseerr=False)
        selectable = getattr(inspected, "selectable", None)
        if not isinstance(selectable, FromClause):
            raise ConfigurationError("source", source, "a mapped class, a table, or a subquery")
        tables = {t for t in visitors.iterate(selectable) if isinstance(t, Table)}
        own = {t for t in tables if t.metadata in self.schemas.tenant}
        if owner == "tenant" and not own:
            raise ConfigurationError(
                "source",
                _name(source),
                'it is in none of the tenant\'s models (schemas.tenant); say "shared"',
            )
        if owner == "shared" and own:
            raise ConfigurationError(
                "source", _name(source), f'{_name(next(iter(own)))} is a tenant\'s table; say "tenant"'
            )
        if owner not in ("tenant", "shared"):
            raise ConfigurationError("source", owner, '"tenant" or "shared"')
        return selectable


def _leaves(selectable: FromClause) -> Iterator[FromClause]:
    """What a join joins, or the table itself."""
    if isinstance(selectable, Join):
        yield from _leaves(selectable.left)
        yield from _leaves(selectable.right)
    else:
        yield selectable


def _tables(expression: Any) -> frozenset[FromClause]:
    """Those whose columns `expression` has, and not a subquery in it."""
    columns = (part for part in parts_of(expression) if isinstance(part, elements.ColumnClause))
    return frozenset(column.table for column in columns if column.table is not None)


def _name(thing: Any) -> str:
    """How the user wrote it, more or less."""
    if isinstance(thing, type):
        return thing.__name__
    is_table = isinstance(thing, FromClause) and not isinstance(thing, elements.ColumnElement)
    return str(getattr(thing, "name", thing) if is_table else thing)


class _Clauses:
    """What all have: the joins, and the clauses of a SELECT."""

    _parts: _Parts

    def _with(self, parts: _Parts) -> Self:
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

    def inner_join(
        self, owner: Owner, source: Source, on: ColumnExpressionArgument[bool] | None = None
    ) -> Self:
        """Join what matches. Without `on`, by the foreign key between the two."""
        return self._with(self._parts.join(owner, source, on, keeps_left=False, keeps_right=False))

    def left_join(
        self, owner: Owner, source: Source, on: ColumnExpressionArgument[bool] | None = None
    ) -> Self:
        """Join what matches; where nothing does, what is selected of `source` is None."""
        return self._with(self._parts.join(owner, source, on, keeps_left=True, keeps_right=False))

    def right_join(
        self, owner: Owner, source: Source, on: ColumnExpressionArgument[bool] | None = None
    ) -> Self:
        """Join to all rows of `source`; where nothing matches, what is selected of all others is None."""
        return self._with(self._parts.join(owner, source, on, keeps_left=False, keeps_right=True))

    def full_join(
        self, owner: Owner, source: Source, on: ColumnExpressionArgument[bool] | None = None
    ) -> Self:
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
        self._parts = _Parts(check_pair(tenant_db, shared_db, TenantDb))

    def _with(self, parts: _Parts) -> Self:
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
    def select(self, *entities: Any) -> CrossSchemaSelect[*tuple[Any, ...]]: ...
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

    def __init__(self, db: TenantDb, parts: _Parts) -> None:
        self._db, self._parts = db, parts

    def _with(self, parts: _Parts) -> Self:
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
        return cast("list[tuple[*Ts]]", list(self._db.execute(self.statement)))

    def first(self) -> tuple[*Ts] | None:
        """The first row, or None."""
        return cast("tuple[*Ts] | None", self._db.execute(self.limit(1).statement).first())

    def one(self) -> tuple[*Ts]:
        """The only row.

        Raises:
            NoResultFound, MultipleResultsFound: (SQLAlchemy's) there are none, or several.
        """
        return cast("tuple[*Ts]", self._db.execute(self.statement).one())

    def one_or_none(self) -> tuple[*Ts] | None:
        """The only row, or None.

        Raises:
            MultipleResultsFound: (SQLAlchemy's) there are several.
        """
        return cast("tuple[*Ts] | None", self._db.execute(self.statement).one_or_none())

    def scalars(self: CrossSchemaSelect[T0, *tuple[Any, ...]]) -> ScalarResult[T0]:
        """The first column of each row."""
        return self._db.execute(self._parts.build()).scalars()

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
        self._parts = _Parts(check_pair(tenant_db, shared_db, AsyncTenantDb))

    def _with(self, parts: _Parts) -> Self:
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
    def select(self, *entities: Any) -> AsyncCrossSchemaSelect[*tuple[Any, ...]]: ...
    def select(self, *entities: Any) -> AsyncCrossSchemaSelect[*tuple[Any, ...]]:
        """As `CrossSchemaQuery.select`."""
        return AsyncCrossSchemaSelect(self._db, self._parts.select(entities))


class AsyncCrossSchemaSelect(_Clauses, Generic[*Ts]):
    """`CrossSchemaSelect` for asyncio."""

    def __init__(self, db: AsyncTenantDb, parts: _Parts) -> None:
        self._db, self._parts = db, parts

    def _with(self, parts: _Parts) -> Self:
        return type(self)(self._db, parts)

    @property
    def statement(self) -> Select[*Ts]:
        """As `CrossSchemaSelect.statement`."""
        return cast("Select[*Ts]", self._parts.build())

    async def all(self) -> list[tuple[*Ts]]:
        """All rows."""
        return cast("list[tuple[*Ts]]", list(await self._db.execute(self.statement)))

    async def first(self) -> tuple[*Ts] | None:
        """The first row, or None."""
        return cast("tuple[*Ts] | None", (await self._db.execute(self.limit(1).statement)).first())

    async def one(self) -> tuple[*Ts]:
        """As `CrossSchemaSelect.one`."""
        return cast("tuple[*Ts]", (await self._db.execute(self.statement)).one())

    async def one_or_none(self) -> tuple[*Ts] | None:
        """As `CrossSchemaSelect.one_or_none`."""
        return cast("tuple[*Ts] | None", (await self._db.execute(self.statement)).one_or_none())

    async def scalars(self: AsyncCrossSchemaSelect[T0, *tuple[Any, ...]]) -> ScalarResult[T0]:
        """The first column of each row."""
        return (await self._db.execute(self._parts.build())).scalars()

    async def stream(self, *, batch: int = 1000) -> AsyncGenerator[tuple[*Ts], None]:
        """As `CrossSchemaSelect.stream`."""
        async with self._db.session() as session:
            result = await session.stream(self.statement, execution_options={"yield_per": batch})
            try:
                async for row in result:
                    yield cast("tuple[*Ts]", row)
            finally:
                await result.close()
