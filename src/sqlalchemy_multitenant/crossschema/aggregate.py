"""`aggregate_all`: one answer over the rows of all tenants, as if they were in one table.

PostgreSQL does all of the arithmetic. Each statement aggregates the rows of some hundred tenants, together
with what the statement before it found, which travels as one JSON document; the last one orders and cuts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVarTuple, Unpack, overload

from sqlalchemy import (
    Connection,
    Select,
    Table,
    Text,
    bindparam,
    func,
    literal,
    select,
    text,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import result_tuple
from sqlalchemy.sql import elements, visitors

from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from .all_tenants import Asked, FleetOptions
from .merge import (
    MergedColumn,
    behind_name,
    check_clauses,
    check_groups,
    check_order,
    merged_column,
    number_of,
    refused,
    unlabelled,
)
from .question import Question, Unit
from .union import TenantSelect
from .work import Work

Ts = TypeVarTuple("Ts")

_SO_FAR = f"so_far_{secrets.token_hex(4)}"
"""A parameter; of a name that no user's has."""


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
    asked = Asked(manager, statement, dict(options), FleetOptions.__annotations__)
    total = Total.of(statement, asked.question)
    if isinstance(manager, AsyncTenantManager):
        return _total_async(manager, asked, total)
    return _total(manager, asked, total)


def _total(manager: TenantManager, asked: Asked, total: Total) -> list[Any]:
    so_far = Found()
    work = total.work(asked)
    work.begin(*asked.choose(manager._provisioner.roster()))
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
    so_far = Found()
    work = total.work(asked)
    work.begin(*asked.choose(await asyncio.to_thread(manager._provisioner.roster)))
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


@dataclass(frozen=True, slots=True)
class Found:
    """What was found so far.

    Attributes:
        document: rows, JSON, as the server wrote them.
        types: of their columns, as the server calls them; none before anything was found.
    """

    document: str = "[]"
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Total:
    """A statement over all tenants.

    Attributes:
        statement: as the user wrote it.
        columns: of it.
        is_merged: whether rows of several tenants become one; else they are only ordered and cut.
        limit, offset: of all rows.
        partial: what each tenant is asked.
        question: with the options.
    """

    statement: Select[*tuple[Any, ...]]
    columns: tuple[MergedColumn, ...]
    is_merged: bool
    limit: int | None
    offset: int
    partial: TenantSelect
    question: Question

    @classmethod
    def of(cls, statement: Select[*tuple[Any, ...]], question: Question) -> Total:
        """
        Raises:
            ConfigurationError: it cannot be put together from the answers of tenants.
        """
        if question.together is None:
            raise refused(statement, "it can only be asked of one tenant at a time: use for_all_tenants()")
        check_clauses(statement)
        columns = tuple(map(merged_column, statement.selected_columns))
        groups = [unlabelled(clause) for clause in statement._group_by_clauses]
        is_merged = bool(any(c.merge for c in columns) or groups or statement._distinct)
        limit, offset = number_of(statement, "_limit"), number_of(statement, "_offset")
        if not is_merged and limit is None:
            raise refused(statement, "it has neither an aggregate nor a LIMIT: use for_all_tenants()")
        check_groups(columns, groups)
        parts = [part.label(f"p{at}") for at, part in enumerate(p for c in columns for p in c.parts)]
        one = statement.with_only_columns(*parts).offset(None)
        if groups:
            one = one.group_by(None).group_by(*(behind_name(group, columns) for group in groups))
        one = one.order_by(None).limit(None) if is_merged else one.limit((limit or 0) + (offset or 0))
        partial = TenantSelect.of(one, question.layout.schemas)
        if partial is None:  # what the whole passed, its parts pass
            raise AssertionError(one)
        total = cls(statement, columns, is_merged, limit, offset or 0, partial, question)
        total._order([literal(None)] * len(columns))  # refuses what it cannot order by
        return total

    def work(self, asked: Asked) -> Work:
        """What is to be asked."""
        question = replace(self.question, statement=self.partial.statement)
        skips_gone = asked.tenants is None and question.uses_catalog
        return Work(question, returns_errors=False, limit=None, concurrency=1, skips_gone=skips_gone)

    def add(self, connection: Connection, unit: Unit, so_far: Found) -> Found:
        """What was found so far, together with the answers of `unit`."""
        self.question.enter(connection)
        merged, params = self._merged(unit, so_far), self._params(so_far)
        types = so_far.types or _types_of(connection, merged, params)
        rows = merged.subquery("q")
        empty = sql_cast(literal("[]", Text()), JSONB)
        document = func.coalesce(func.jsonb_agg(func.to_jsonb(rows.table_valued())), empty)
        found = connection.execute(select(sql_cast(document, Text)), params).scalar_one()
        self.question.roster.check(connection, unit)
        return Found(str(found), types)

    def finish(self, connection: Connection, so_far: Found) -> list[Any]:
        """The rows, from what was found."""
        if not so_far.types:
            # Nobody was asked: without groups, an aggregate over nothing is a row all the same.
            has_row = self.is_merged and all(column.merge for column in self.columns)
            row_of = result_tuple([column.name or f"c{at}" for at, column in enumerate(self.columns)])
            empty = [row_of(tuple(0 if c.is_count else None for c in self.columns))] if has_row else []
            return empty[self.offset :][: self.limit]
        self.question.enter(connection)
        merged = self._merged((), so_far).subquery("q")
        parts = iter(merged.c)
        columns = [column.combine(*(next(parts) for _ in column.parts)) for column in self.columns]
        rows = select(
            *(
                type_coerce(value, column.type).label(column.name)
                for value, column in zip(columns, self.columns, strict=True)
            )
        ).select_from(merged)
        rows = rows.order_by(*self._order(columns)).limit(self.limit).offset(self.offset)
        return list(connection.execute(rows, self._params(so_far)))

    def _params(self, so_far: Found) -> dict[str, Any]:
        return {**self.question.params, _SO_FAR: so_far.document}

    def _merged(self, unit: Unit, so_far: Found) -> Select[*tuple[Any, ...]]:
        """The rows of `unit` and those that were found so far, put together."""
        document = sql_cast(bindparam(_SO_FAR, type_=Text()), JSONB) if so_far.types else None
        rows = replace(self.partial, stored=so_far.types).union_of(unit, document)
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
        return statement.order_by(*self._order(values)).limit((self.limit or 0) + self.offset)

    def _order(self, columns: Sequence[Any]) -> list[Any]:
        """ORDER BY of the statement, over these columns in the place of its own."""
        selected = list(zip(self.statement.selected_columns, self.columns, columns, strict=True))

        def find(element: Any, **_: Any) -> Any:
            for own, column, target in selected:
                if isinstance(element, elements._textual_label_reference):
                    if element.element == column.name:
                        return target
                elif isinstance(element, elements.ColumnElement) and unlabelled(element).compare(
                    unlabelled(own)
                ):
                    check_order(column.type, element)
                    return target
            return None

        ordered = []
        for clause in self.statement._order_by_clauses:
            found = visitors.replacement_traverse(clause, {}, find)
            left = [part for part in visitors.iterate(found) if isinstance(part, elements.ColumnClause)]
            if found.compare(clause) or any(isinstance(column.table, Table) for column in left):
                raise refused(clause, "rows are ordered by it; select it, too")
            ordered.append(found)
        return ordered


def _types_of(connection: Connection, statement: Any, params: dict[str, Any]) -> tuple[str, ...]:
    """The types of a statement's columns, as the server calls them."""
    with closing(connection.execute(select(statement.limit(0).subquery("q")), params)) as result:
        described: Any = result.cursor
        oids = [int(column[1]) for column in described.description]
    names = text(
        "SELECT format_type(o, -1) FROM unnest(CAST(:oids AS oid[])) WITH ORDINALITY AS u(o, n) ORDER BY n"
    )
    return tuple(connection.execute(names, {"oids": oids}).scalars())
