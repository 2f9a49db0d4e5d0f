"""How the columns of a statement are put together from the answers of tenants, and which ones cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    CompoundSelect,
    Double,
    Enum,
    Float,
    FromClause,
    Integer,
    Interval,
    Numeric,
    Select,
    func,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.dialects.postgresql.ext import DistinctOnClause
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import elements, operators, visitors
from sqlalchemy.sql.selectable import ScalarSelect, SelectBase, SelectStatementGrouping
from sqlalchemy.types import NullType, TypeEngine

from ..errors import ConfigurationError
from .nullability import function_name, has_aggregate, parts_of
from .union import item_type


@dataclass(frozen=True)
class MergedColumn:
    """A column of the statement, and how it is put together from those of tenants.

    Attributes:
        name: of the column; None where it has none.
        type: of the column.
        parts: what each tenant is asked for; two for an average.
        merge: puts the answers to a part together; None for what rows are grouped by.
        combine: from the merged parts to the column.
        is_count: whether it is 0, and not NULL, of nothing.
    """

    name: str | None
    type: TypeEngine[Any]
    parts: tuple[Any, ...]
    merge: Callable[[Any], Any] | None
    combine: Callable[..., Any]
    is_count: bool = False


def refused(what: Any, reason: str) -> ConfigurationError:
    """The error about a statement, or a part of it, that cannot be put together."""
    return ConfigurationError("statement", " ".join(str(what).split()), reason)


def unlabelled(element: Any) -> Any:
    """What is behind labels, and the lists of one that SQLAlchemy makes of a function in GROUP BY."""
    while True:
        if isinstance(element, elements.Label | elements._label_reference):
            element = element.element
        elif isinstance(element, elements.ClauseList) and len(element.clauses) == 1:
            (element,) = element.clauses
        else:
            return element


def check_order(type_: TypeEngine[Any], what: Any) -> None:
    if isinstance(item := item_type(type_), Enum) and item.native_enum:
        raise refused(what, "each tenant has an enum of its own, and its order is not that of others")


def check_clauses(statement: Select[*tuple[Any, ...]]) -> None:
    """Refuse what is a tenant's own, and means something else over all of them."""
    if statement._having_criteria:
        raise refused(statement, "HAVING is of each tenant's groups; filter the rows that come back")
    parts = list(visitors.iterate(statement))
    if statement._distinct_on or any(isinstance(part, DistinctOnClause) for part in parts):
        raise refused(statement, "DISTINCT ON cannot be put together; group by the columns")
    if statement._fetch_clause is not None:
        raise refused(statement, "use limit() in place of fetch()")
    for column in statement.selected_columns:
        if any(isinstance(part, elements.Over) for part in parts_of(column)):
            raise refused(column, "a window is each tenant's own")
        if isinstance(item_type(column.type), JSON) and not has_aggregate(column):
            raise refused(column, "documents cannot be compared after a journey; cast it to Text")
    for part in parts:
        if part is statement or not isinstance(part, SelectBase):
            continue
        inner = part.element if isinstance(part, SelectStatementGrouping | ScalarSelect) else part
        if isinstance(inner, CompoundSelect) or (
            isinstance(inner, Select)
            and (
                inner._group_by_clauses
                or inner._distinct
                or any(
                    c is not None for c in (inner._limit_clause, inner._offset_clause, inner._fetch_clause)
                )
                or any(has_aggregate(column) for column in inner.selected_columns)
            )
        ):
            raise refused(inner, "a subquery that counts, cuts or leaves out rows does so for each tenant")


def check_groups(columns: Sequence[MergedColumn], groups: Sequence[Any]) -> None:
    """See to it that what is selected and what is grouped by are the same."""
    names = {column.name for column in columns}
    keys = [column.parts[0] for column in columns if column.merge is None]
    for group in groups:
        is_name = isinstance(group, elements._textual_label_reference) and group.element in names
        if not is_name and not any(group.compare(key) for key in keys):
            raise refused(group, "rows are grouped by it; select it, too")
    if groups or any(column.merge for column in columns):
        named = {g.element for g in groups if isinstance(g, elements._textual_label_reference)}
        for column in columns:
            is_grouped = column.name in named or any(g.compare(column.parts[0]) for g in groups)
            if column.merge is None and not is_grouped:
                known = ", ".join(sorted(_MERGES))
                raise refused(column.parts[0], f"group by it; the aggregates are {known}, each by itself")


def behind_name(group: Any, columns: Sequence[MergedColumn]) -> Any:
    """What a group is of: a name stands for the column of that name."""
    if not isinstance(group, elements._textual_label_reference):
        return group
    return next(column.parts[0] for column in columns if column.name == group.element)


def number_of(statement: Any, attribute: str) -> int | None:
    try:
        number: int | None = getattr(statement, attribute)
    except CompileError:
        raise refused(statement, "LIMIT and OFFSET must be plain numbers here") from None
    return number


def merged_column(column: Any) -> MergedColumn:
    """How a column is put together."""
    expression = unlabelled(column)
    key = getattr(column, "key", None)
    name = None if key is None or str(key).startswith("_no_label") else str(key)
    function = expression.func if isinstance(expression, elements.FunctionFilter) else expression
    kind = function_name(function)
    inner = list(function.clauses) if kind in _MERGES else [expression]
    if any(_is_distinct(part) for argument in inner for part in parts_of(argument)):
        raise refused(column, "the distinct values of tenants cannot be put together: group by them instead")
    if any(has_aggregate(argument) for argument in inner):
        raise refused(column, f"only {', '.join(sorted(_MERGES))} can be put together, each by itself")
    if kind in ("min", "max"):
        check_order(column.type, column)
    if kind not in _MERGES:
        return MergedColumn(name, column.type, (expression,), None, _itself)
    if kind == "avg":
        return _average(name, column.type, expression, inner[0])
    merge, combine = _MERGES[kind]
    if kind == "sum" and _is_whole(inner[0]):
        combine = _whole
    return MergedColumn(name, column.type, (expression,), merge, combine, is_count=kind == "count")


def _average(name: str | None, type_: Any, expression: Any, inner: Any) -> MergedColumn:
    """Of sums and counts, as PostgreSQL reckons it."""
    plain = item_type(inner.type)
    is_interval = isinstance(inner.type, Interval | INTERVAL)
    argument = sql_cast(inner, Double()) if isinstance(plain, Float) else inner

    def part(aggregate: Any, of: Any) -> Any:
        own = aggregate(of)
        return own.filter(expression.criterion) if isinstance(expression, elements.FunctionFilter) else own

    def combine(total: Any, count: Any) -> Any:
        if is_interval:
            # Python's side of it knows no such division; the server's does.
            return type_coerce(total, Numeric()) / func.nullif(sql_cast(count, Double()), 0)
        kind: Any = Double() if isinstance(plain, Float) else Numeric()
        return sql_cast(total, kind) / func.nullif(sql_cast(count, kind), 0)

    result: Any = type_
    if is_interval:
        result = INTERVAL()
    elif isinstance(type_, NullType):
        result = Double() if isinstance(plain, Float) else Numeric()
    return MergedColumn(name, result, (part(func.sum, argument), part(func.count, inner)), _SUM, combine)


def _is_distinct(part: Any) -> bool:
    return getattr(part, "operator", None) is operators.distinct_op or function_name(part) == "distinct"


def _is_whole(expression: Any) -> bool:
    """Whether it is a whole number to the server as well: SQLAlchemy's types of expressions are guesses."""
    expression = unlabelled(expression)
    if isinstance(expression, elements.Grouping):
        return _is_whole(expression.element)
    if isinstance(expression, elements.BinaryExpression):
        plain = expression.operator in (operators.add, operators.sub, operators.mul)
        return plain and _is_whole(expression.left) and _is_whole(expression.right)
    if isinstance(expression, elements.Case):
        results = [*(result for _, result in expression.whens), expression.else_]
        return all(result is None or _is_whole(result) for result in results)
    if isinstance(expression, elements.BindParameter):
        return isinstance(expression.value, int)
    is_column = isinstance(expression, Column) and isinstance(expression.table, FromClause)
    is_integer = isinstance(expression.type, Integer) and not isinstance(expression.type, BigInteger)
    return is_column and is_integer


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
