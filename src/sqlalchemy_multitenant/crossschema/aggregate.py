"""`aggregate_all`: one answer over the rows of all tenants, as if they were in one table.

PostgreSQL does all of the arithmetic. Each statement aggregates the rows of some hundred tenants, together
with what the statement before it found, which travels as one JSON document; the last one orders and cuts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVarTuple, Unpack, cast, overload

from sqlalchemy import (
    BigInteger,
    Connection,
    Enum,
    Float,
    Integer,
    Numeric,
    Select,
    Text,
    bindparam,
    func,
    literal,
    select,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.ext import DistinctOnClause
from sqlalchemy.sql import elements, functions, operators, visitors
from sqlalchemy.types import NullType, TypeEngine

from ..errors import ConfigurationError
from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from .all_tenants import Asked, FleetOptions
from .fleet import Question, Unit, Work
from .nullability import has_aggregate
from .union import TenantSelect, item_type

Ts = TypeVarTuple("Ts")


@overload
def aggregate_all(
    manager: TenantManager, statement: Select[*Ts], **options: Unpack[FleetOptions]
) -> list[tuple[*Ts]]: ...
@overload
def aggregate_all(
    manager: AsyncTenantManager, statement: Select[*Ts], **options: Unpack[FleetOptions]
) -> Coroutine[Any, Any, list[tuple[*Ts]]]: ...
def aggregate_all(
    manager: TenantManager | AsyncTenantManager, statement: Select[*Ts], **options: Unpack[FleetOptions]
) -> Any:
    """The rows of `statement` over the data of all tenants together.

        [(orders, turnover)] = aggregate_all(tenants, select(func.count(), func.sum(Order.total)))
        best = aggregate_all(tenants, select(Order.id, Order.total).order_by(Order.total.desc()).limit(10))

    Aggregates, GROUP BY, DISTINCT, ORDER BY, LIMIT and OFFSET are those of all rows, and not of each
    tenant's; `for_all_tenants` is for those.

    Args:
        manager: whose tenants are asked. With an `AsyncTenantManager`, await the result.
        statement: columns, and the aggregates count, sum, min, max and avg, FILTER included. What is ordered
            by must be selected.
        options: see `FleetOptions`. `concurrency` and `batch` have no effect here.

    Raises:
        ConfigurationError: the statement cannot be put together from the answers of tenants: it has
            HAVING, an aggregate over distinct values, SQL text, or a mapped class.
        TenantQueryError: the database refused the statement for a tenant.
    """
    asked = Asked(manager, statement, dict(options))
    total = Total.of(statement, asked.question)
    if isinstance(manager, AsyncTenantManager):
        return _total_async(manager, asked, total)
    return _total(manager, asked, total)


def _total(manager: TenantManager, asked: Asked, total: Total) -> list[Any]:
    so_far = "[]"
    work = total.work()
    work.begin(*asked.choose(manager._provisioner.list_members()))
    while units := work.take():
        try:
            with manager.get_shared_db().connect(asked.modes) as connection:
                found = total.add(connection, units[0], so_far)
        except Exception as error:
            work.fail(units[0], error)
        else:
            so_far = found
            work.finish()
    with manager.get_shared_db().connect(asked.modes) as connection:
        return total.finish(connection, so_far)


async def _total_async(manager: AsyncTenantManager, asked: Asked, total: Total) -> list[Any]:
    so_far = "[]"
    work = total.work()
    work.begin(*asked.choose(await asyncio.to_thread(manager._provisioner.list_members)))
    while units := work.take():
        try:
            async with manager.get_shared_db().connect(asked.modes) as connection:
                found = await connection.run_sync(total.add, units[0], so_far)
        except Exception as error:
            work.fail(units[0], error)
        else:
            so_far = found
            work.finish()
    async with manager.get_shared_db().connect(asked.modes) as connection:
        return await connection.run_sync(total.finish, so_far)


@dataclass(frozen=True)
class _Column:
    """A column of the statement, and how it is put together from those of tenants.

    Attributes:
        name: of the column; None where it has none.
        type: of the column.
        parts: what each tenant is asked for; two for an average.
        merge: puts the answers to a part together; None for what rows are grouped by.
        combine: from the merged parts to the column.
    """

    name: str | None
    type: TypeEngine[Any]
    parts: tuple[Any, ...]
    merge: Callable[[Any], Any] | None
    combine: Callable[..., Any]


@dataclass(frozen=True)
class Total:
    """A statement over all tenants.

    Attributes:
        statement: as the user wrote it.
        columns: of it.
        is_merged: whether rows of several tenants become one; else they are only ordered and cut.
        partial: what each tenant is asked.
        question: with the options.
    """

    statement: Select[*tuple[Any, ...]]
    columns: tuple[_Column, ...]
    is_merged: bool
    partial: TenantSelect
    question: Question

    @classmethod
    def of(cls, statement: Select[*tuple[Any, ...]], question: Question) -> Total:
        """
        Raises:
            ConfigurationError: it cannot be put together from the answers of tenants.
        """
        if question.together is None:
            raise _refused(statement, "it can only be asked of one tenant at a time: use for_all_tenants()")
        columns = tuple(map(_column, statement.selected_columns))
        is_merged = bool(any(c.merge for c in columns) or statement._group_by_clauses or statement._distinct)
        if statement._having_criteria:
            raise _refused(statement, "HAVING is of each tenant's groups; filter the rows that come back")
        if statement._distinct_on or any(
            isinstance(p, DistinctOnClause) for p in visitors.iterate(statement)
        ):
            raise _refused(statement, "DISTINCT ON cannot be put together; group by the columns")
        if not is_merged and statement._limit is None:
            raise _refused(statement, "it has neither an aggregate nor a LIMIT: use for_all_tenants()")
        selected = [_unlabelled(own) for own in statement.selected_columns]
        for clause in statement._group_by_clauses:
            if not any(_unlabelled(clause).compare(own) for own in selected):
                raise _refused(clause, "rows are grouped by it; select it, too")
        parts = [part.label(f"p{at}") for at, part in enumerate(p for c in columns for p in c.parts)]
        one = statement.with_only_columns(*parts).offset(None)
        if is_merged:
            one = one.order_by(None).limit(None)
        else:
            one = one.limit((statement._limit or 0) + (statement._offset or 0))
        partial = TenantSelect.of(one, question.layout.schemas)
        if partial is None:  # what the whole passed, its parts pass
            raise AssertionError(one)
        stored = tuple(_stored(part, column) for column in columns for part in column.parts)
        total = cls(statement, columns, is_merged, replace(partial, types=stored), question)
        total._order([literal(None)] * len(columns))  # refuses what it cannot order by
        return total

    def work(self) -> Work:
        """What is to be asked."""
        return Work(replace(self.question, statement=self.partial.statement), False, None, 1)

    def add(self, connection: Connection, unit: Unit, so_far: str) -> str:
        """What was found so far, together with the answers of `unit`: JSON."""
        self.question.enter(connection)
        rows = self._merged(unit).subquery("q")
        document = func.coalesce(
            func.jsonb_agg(func.to_jsonb(rows.table_valued())), sql_cast(literal("[]", Text()), JSONB)
        )
        found = connection.execute(
            select(sql_cast(document, Text)), {**self.question.params, "so_far": so_far}
        ).scalar_one()
        self.question.check(connection, unit)
        return str(found)

    def finish(self, connection: Connection, so_far: str) -> list[Any]:
        """The rows, from what was found."""
        self.question.enter(connection)
        merged = self._merged(()).subquery("q")
        parts = iter(merged.c)
        columns = [column.combine(*(next(parts) for _ in column.parts)) for column in self.columns]
        rows = select(
            *(
                type_coerce(value, column.type).label(column.name)
                for value, column in zip(columns, self.columns, strict=True)
            )
        ).select_from(merged)
        rows = (
            rows.order_by(*self._order(columns)).limit(self.statement._limit).offset(self.statement._offset)
        )
        return list(connection.execute(rows, {"so_far": so_far}))

    def _merged(self, unit: Unit) -> Select[*tuple[Any, ...]]:
        """The rows of `unit` and those that were found so far, put together."""
        rows = self.partial.union_of(unit, sql_cast(bindparam("so_far", type_=Text()), JSONB))
        cells = iter(rows.c)
        values: list[Any] = []
        keys: list[Any] = []
        for column in self.columns:
            for cell in (next(cells) for _ in column.parts):
                if column.merge is None:
                    keys.append(cell)
                values.append(cell if column.merge is None else column.merge(cell))
        statement = select(*(value.label(f"c{at}") for at, value in enumerate(values))).select_from(rows)
        if self.is_merged:
            return statement.group_by(*keys)
        most = (self.statement._limit or 0) + (self.statement._offset or 0)
        return statement.order_by(*self._order(values)).limit(most)

    def _order(self, columns: Sequence[Any]) -> list[Any]:
        """ORDER BY of the statement, over these columns in the place of its own."""
        selected = list(zip(self.statement.selected_columns, self.columns, columns, strict=True))

        def find(element: Any, **_: Any) -> Any:
            for own, column, target in selected:
                if isinstance(element, elements._textual_label_reference):
                    if element.element == column.name:
                        return target
                elif isinstance(element, elements.ColumnElement) and _unlabelled(element).compare(
                    _unlabelled(own)
                ):
                    _check_order(column.type, element)
                    return target
            return None

        ordered = []
        for clause in self.statement._order_by_clauses:
            found = visitors.replacement_traverse(clause, {}, find)
            if found.compare(clause):
                raise _refused(clause, "rows are ordered by it; select it, too")
            ordered.append(found)
        return ordered


def _refused(what: Any, reason: str) -> ConfigurationError:
    return ConfigurationError("statement", " ".join(str(what).split()), reason)


def _unlabelled(element: Any) -> Any:
    """What is behind labels, and the lists of one that SQLAlchemy makes of a function in GROUP BY."""
    while True:
        if isinstance(element, elements.Label | elements._label_reference):
            element = element.element
        elif isinstance(element, elements.ClauseList) and len(element.clauses) == 1:
            (element,) = element.clauses
        else:
            return element


def _check_order(type_: TypeEngine[Any], what: Any) -> None:
    if isinstance(item := item_type(type_), Enum) and item.native_enum:
        raise _refused(what, "each tenant has an enum of its own, and its order is not that of others")


def _column(column: Any) -> _Column:
    """How a column is put together."""
    expression = _unlabelled(column)
    key = getattr(column, "key", None)
    name = None if key is None or str(key).startswith("_no_label") else str(key)
    function = expression.func if isinstance(expression, elements.FunctionFilter) else expression
    kind = (
        str(getattr(function, "name", "")).lower() if isinstance(function, functions.FunctionElement) else ""
    )
    inner = list(function.clauses) if kind in _MERGES else [expression]
    if kind in _MERGES and any(
        getattr(argument, "operator", None) is operators.distinct_op for argument in inner
    ):
        raise _refused(column, "the distinct values of tenants cannot be put together: group by them instead")
    if any(has_aggregate(argument) for argument in inner):
        raise _refused(column, f"only {', '.join(sorted(_MERGES))} can be put together, each by itself")
    if kind in ("min", "max"):
        _check_order(column.type, column)
    if kind == "avg":

        def part(aggregate: Any) -> Any:
            own = aggregate(*inner)
            return own.filter(expression.criterion) if expression is not function else own

        is_float = isinstance(inner[0].type, Float)
        type_ = Float() if is_float else Numeric()
        return _Column(
            name,
            type_ if isinstance(column.type, NullType) else column.type,
            (part(func.sum), part(func.count)),
            _SUM,
            lambda total, count: sql_cast(total, type_) / func.nullif(sql_cast(count, type_), 0),
        )
    merge, combine = _MERGES.get(kind, (None, _itself))
    if kind == "sum" and isinstance(column.type, Integer) and not isinstance(column.type, BigInteger):
        combine = _whole
    return _Column(name, column.type, (expression,), merge, combine)


def _itself(value: Any) -> Any:
    return value


def _whole(value: Any) -> Any:
    return sql_cast(value, BigInteger)


def _number(value: Any) -> Any:
    return sql_cast(func.coalesce(value, 0), BigInteger)


_SUM = func.sum

_MERGES: dict[str, tuple[Callable[[Any], Any], Callable[..., Any]]] = {
    "avg": (_SUM, _itself),
    "count": (_SUM, _number),
    "max": (func.max, _itself),
    "min": (func.min, _itself),
    "sum": (_SUM, _itself),
}
"""How the answers to an aggregate are merged, and what becomes of the result."""


def _stored(part: Any, column: _Column) -> TypeEngine[Any]:
    """The type of a part in the document of what was found so far: a sum of whole numbers may be too large
    for the type of what is added."""
    if column.merge is _SUM and isinstance(part.type, Integer):
        return Numeric()
    if isinstance(part.type, NullType):
        raise _refused(part, "its type is not known; say it: type_coerce(..., String)")
    return cast("TypeEngine[Any]", part.type)
