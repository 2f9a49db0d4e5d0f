"""Whether an expression may be NULL although its type says otherwise: because of an outer join, or because an
aggregate has no rows to look at.

What a column may hold by itself is the business of its type (`Mapped[str | None]`), and is not judged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import singledispatch
from typing import Any

from sqlalchemy import FromClause, Select
from sqlalchemy.sql import elements, functions, operators
from sqlalchemy.sql.selectable import Exists, ScalarSelect, SelectBase


class Null(Enum):
    """NULL by the way the query is built."""

    NEVER = "never"
    PERHAPS = "perhaps"
    UNKNOWN = "unknown"
    """Nobody can tell: both a mark and none are right."""


@dataclass(frozen=True, slots=True)
class Sides:
    """What a query's joins make of its tables.

    Attributes:
        optional: those that a row may lack.
        grouped: whether each row has a group of rows behind it, as under GROUP BY; None while that is not
            known yet.
    """

    optional: frozenset[FromClause]
    grouped: bool | None

    def judge(self, expression: Any) -> Null:
        """Whether `expression`, a column expression, may be NULL."""
        return _judge(expression, self)

    def judge_all(self, expressions: Iterable[Any]) -> Null:
        """Of an expression that is NULL as soon as one of its parts is."""
        found = {self.judge(part) for part in expressions}
        return next((null for null in (Null.PERHAPS, Null.UNKNOWN) if null in found), Null.NEVER)


_NULL_SAFE = (
    operators.is_,
    operators.is_not,
    operators.is_distinct_from,
    operators.is_not_distinct_from,
)

_LOOKUPS = (operators.getitem, operators.json_getitem_op, operators.json_path_getitem_op)
"""What is asked for may not be there: a key of a document, an element of an array."""

_AGGREGATES = frozenset({
    "aggregate_strings", "any_value", "array_agg", "avg", "bit_and", "bit_or", "bit_xor", "bool_and",
    "bool_or", "every", "json_agg", "json_object_agg", "jsonb_agg", "jsonb_object_agg", "max", "min",
    "mode", "percentile_cont", "percentile_disc", "range_agg", "stddev", "stddev_pop", "stddev_samp",
    "string_agg", "sum", "variance", "var_pop", "var_samp", "xmlagg",
})  # fmt: skip
"""NULL where they have no rows
(https://www.postgresql.org/docs/current/functions-aggregate.html)."""

_NEVER_NULL = frozenset({
    "clock_timestamp", "concat", "concat_ws", "count", "cume_dist", "current_date", "current_schema",
    "current_time", "current_timestamp", "current_user", "dense_rank", "gen_random_uuid",
    "json_build_array", "json_build_object", "jsonb_build_array", "jsonb_build_object", "localtime",
    "localtimestamp", "now", "ntile", "num_nonnulls", "num_nulls", "percent_rank", "random", "rank",
    "row_number", "session_user", "statement_timestamp", "uuidv4", "uuidv7",
})  # fmt: skip


@singledispatch
def _judge(expression: Any, sides: Sides) -> Null:
    """Of a kind that is not known here: NULL where it holds something that may be."""
    columns = [part for part in parts_of(expression) if isinstance(part, elements.ColumnClause)]
    return Null.PERHAPS if sides.judge_all(columns) is Null.PERHAPS else Null.UNKNOWN


@_judge.register
def _(column: elements.ColumnClause, sides: Sides) -> Null:  # type: ignore[type-arg]
    if column.table is None:
        return Null.UNKNOWN  # literal_column()
    return Null.PERHAPS if column.table in sides.optional else Null.NEVER


@_judge.register
def _(value: elements.BindParameter, _: Sides) -> Null:  # type: ignore[type-arg]
    if value.callable is not None or value.required:
        return Null.UNKNOWN
    return Null.PERHAPS if value.value is None else Null.NEVER


@_judge.register(elements.Null)
def _(_null: Any, _: Sides) -> Null:
    return Null.PERHAPS


@_judge.register(elements.True_)
@_judge.register(elements.False_)
@_judge.register(Exists)
def _(_constant: Any, _: Sides) -> Null:
    return Null.NEVER


@_judge.register(elements.Label)
@_judge.register(elements.Grouping)
def _(wrapper: Any, sides: Sides) -> Null:
    return sides.judge(wrapper.element)


@_judge.register(elements.Cast)
@_judge.register(elements.TypeCoerce)
def _(cast: Any, sides: Sides) -> Null:
    return sides.judge(cast.clause)


@_judge.register
def _(unary: elements.UnaryExpression, sides: Sides) -> Null:  # type: ignore[type-arg]
    return Null.NEVER if unary.operator in _NULL_SAFE else sides.judge(unary.element)


@_judge.register
def _(binary: elements.BinaryExpression, sides: Sides) -> Null:  # type: ignore[type-arg]
    if binary.operator in _NULL_SAFE:
        return Null.NEVER
    null = sides.judge_all((binary.left, binary.right))
    return Null.UNKNOWN if null is Null.NEVER and binary.operator in _LOOKUPS else null


@_judge.register(elements.ClauseList)
@_judge.register(elements.ExpressionClauseList)
def _(listed: Any, sides: Sides) -> Null:
    return sides.judge_all(listed.clauses)


@_judge.register
def _(case: elements.Case, sides: Sides) -> Null:  # type: ignore[type-arg]
    if case.else_ is None:
        return Null.PERHAPS
    return sides.judge_all([*(result for _, result in case.whens), case.else_])


@_judge.register
def _(subquery: ScalarSelect, _: Sides) -> Null:  # type: ignore[type-arg]
    """NULL where it finds no row; a count always finds one."""
    statement = subquery.element
    is_plain = isinstance(statement, Select) and not (
        statement._group_by_clauses or statement._having_criteria or statement._limit_clause is not None
    )
    columns = list(statement.selected_columns) if is_plain else []
    counts = [column for column in columns if isinstance(_unlabelled(column), functions.count)]
    return Null.NEVER if counts else Null.PERHAPS


@_judge.register
def _(function: functions.FunctionElement, sides: Sides) -> Null:  # type: ignore[type-arg]
    name = str(getattr(function, "name", "")).lower()
    arguments = list(function.clauses)
    if name in _NEVER_NULL:
        return Null.NEVER
    if name == "coalesce":
        found = [sides.judge(argument) for argument in arguments]
        return Null.NEVER if Null.NEVER in found else sides.judge_all(arguments)
    if name in _AGGREGATES:
        if sides.grouped is False:
            return Null.PERHAPS
        null = sides.judge_all(arguments)
        return null if sides.grouped or null is Null.PERHAPS else Null.UNKNOWN
    return Null.PERHAPS if sides.judge_all(arguments) is Null.PERHAPS else Null.UNKNOWN


@_judge.register
def _(filtered: elements.FunctionFilter, sides: Sides) -> Null:  # type: ignore[type-arg]
    """The filter may leave no rows."""
    name = str(getattr(filtered.func, "name", "")).lower()
    return Null.PERHAPS if name in _AGGREGATES else sides.judge(filtered.func)


@_judge.register
def _(ordered: elements.WithinGroup, sides: Sides) -> Null:  # type: ignore[type-arg]
    return sides.judge(ordered.element)


@_judge.register
def _(window: elements.Over, sides: Sides) -> Null:  # type: ignore[type-arg]
    """Its rows are those of a window, which has at least the current one, unless its frame leaves it out."""
    inner = Sides(sides.optional, grouped=None)
    return inner.judge(window.element)


def parts_of(expression: Any) -> Iterator[Any]:
    """`expression` and what it is made of, but for what is in a subquery."""
    if not isinstance(expression, ScalarSelect | Exists | SelectBase):
        yield expression
        for child in expression.get_children():
            yield from parts_of(child)


def has_aggregate(expression: Any) -> bool:
    """Whether an aggregate function in it makes one row of many; over a window it makes none."""
    parts = list(parts_of(expression))
    windows = [part for part in parts if isinstance(part, elements.Over)]
    return not windows and any(
        isinstance(part, functions.FunctionElement)
        and str(getattr(part, "name", "")).lower() in (*_AGGREGATES, "count")
        for part in parts
    )


def _unlabelled(column: Any) -> Any:
    return column.element if isinstance(column, elements.Label) else column
