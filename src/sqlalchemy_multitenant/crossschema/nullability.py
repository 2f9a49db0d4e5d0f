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

from sqlalchemy import CTE, CompoundSelect, FromClause, Join, Select, Subquery, Table
from sqlalchemy.sql import elements, functions, operators, visitors
from sqlalchemy.sql.selectable import AliasedReturnsRows, Exists, ScalarSelect, SelectBase

from ..errors import ConfigurationError


class Null(Enum):
    """NULL by the way the query is built."""

    NEVER = "never"
    PERHAPS = "perhaps"
    UNKNOWN = "unknown"
    """Nobody can tell: both a mark and none are right."""


@dataclass(frozen=True, slots=True)
class Sides:
    """What a query's joins and groups make of its tables.

    Attributes:
        optional: tables that a row may lack.
        grouped: whether each row has a group of rows behind it, as under GROUP BY; None while that is not
            known yet.
    """

    optional: frozenset[FromClause]
    grouped: bool | None

    def judge(self, expression: Any) -> Null:
        """Whether what is selected may be NULL. Of a column by itself, its type tells the rest."""
        column = _unwrapped(expression)
        if not isinstance(column, elements.ColumnClause) or column.table is None:
            return self.judge_part(expression)
        if column.table in self.optional:
            return Null.PERHAPS
        if isinstance(table_of(column), Table):
            is_typed = "parententity" in column._annotations or not getattr(column, "nullable", False)
            return Null.NEVER if is_typed else Null.UNKNOWN
        # Of a subquery: what a mapped class stands for has a type, which is to be true.
        if "parententity" not in column._annotations:
            return Null.UNKNOWN
        return Null.PERHAPS if may_lose_rows(column.table) else Null.NEVER

    def judge_part(self, expression: Any) -> Null:
        """Whether a part of an expression may be NULL, which the expression's type may have forgotten."""
        return _judge(expression, self)

    def judge_all(self, expressions: Iterable[Any]) -> Null:
        """Of an expression that is NULL as soon as one of its parts is."""
        return _worst(self.judge_part(part) for part in expressions)


def _worst(found: Iterable[Null]) -> Null:
    seen = set(found)
    return next((null for null in (Null.PERHAPS, Null.UNKNOWN) if null in seen), Null.NEVER)


def table_of(column: Any) -> Any:
    """The table behind aliases that a column is of; a subquery where it is of one."""
    table = column.table
    while isinstance(table, AliasedReturnsRows) and not isinstance(table, CTE | Subquery):
        table = table.element
    return table


def may_lose_rows(selectable: Any) -> bool:
    """Whether there is an outer join in it, or what makes NULL of columns in other ways."""
    return any(
        (isinstance(part, Join) and (part.isouter or part.full))
        or isinstance(part, CompoundSelect)
        or (isinstance(part, functions.FunctionElement) and function_name(part) in SETS)
        for part in visitors.iterate(selectable)
    )


SETS = frozenset({"cube", "grouping_sets", "rollup"})
"""What groups by fewer columns as well, which are NULL then."""


def function_name(function: Any) -> str:
    """In lower case; "" of what is no function."""
    return (
        str(getattr(function, "name", "")).lower() if isinstance(function, functions.FunctionElement) else ""
    )


_NULL_SAFE = (
    operators.is_,
    operators.is_not,
    operators.is_distinct_from,
    operators.is_not_distinct_from,
)

_LOOKUPS = frozenset({"->", "->>", "#>", "#>>"})
"""What is asked for may not be there: a key of a document, an element of an array."""

_MAY_MISS = frozenset({
    "corr", "covar_samp", "lag", "lead", "nth_value", "nullif", "regr_intercept", "regr_r2", "regr_slope",
    "stddev", "stddev_samp", "var_samp", "variance",
})  # fmt: skip
"""NULL for few rows, or of their own accord."""

_AGGREGATES = frozenset({
    "aggregate_strings", "any_value", "array_agg", "avg", "bit_and", "bit_or", "bit_xor", "bool_and",
    "bool_or", "every", "json_agg", "json_object_agg", "jsonb_agg", "jsonb_object_agg", "max", "min",
    "mode", "percentile_cont", "percentile_disc", "range_agg", "stddev", "stddev_pop", "stddev_samp",
    "string_agg", "sum", "variance", "var_pop", "var_samp", "xmlagg",
})  # fmt: skip
"""NULL where they have no rows
(https://www.postgresql.org/docs/current/functions-aggregate.html)."""

_NEVER_NULL = frozenset({
    "clock_timestamp", "concat", "count", "cume_dist", "current_date", "current_schema",
    "current_time", "current_timestamp", "current_user", "dense_rank", "gen_random_uuid",
    "json_build_array", "json_build_object", "jsonb_build_array", "jsonb_build_object", "localtime",
    "localtimestamp", "now", "ntile", "num_nonnulls", "num_nulls", "percent_rank", "random", "rank",
    "row_number", "session_user", "statement_timestamp", "uuidv4", "uuidv7",
})  # fmt: skip


BUILTINS = (_AGGREGATES | _NEVER_NULL | _MAY_MISS | SETS | frozenset({
    "", "abs", "age", "any", "all", "array_append", "array_cat", "array_length", "array_position",
    "array_remove", "array_to_string", "ascii", "bit_length", "btrim", "cardinality", "cast", "ceil",
    "ceiling", "char_length", "character_length", "chr", "coalesce", "concat_ws", "count", "date",
    "date_bin", "date_part", "date_trunc", "degrees", "distinct", "div", "encode", "exp", "extract",
    "first_value", "floor", "format", "generate_series", "greatest", "initcap", "isfinite",
    "json_array_length", "json_extract_path", "json_extract_path_text", "jsonb_array_elements",
    "jsonb_array_elements_text", "jsonb_array_length", "jsonb_each", "jsonb_each_text",
    "jsonb_extract_path", "jsonb_extract_path_text", "jsonb_path_query", "jsonb_typeof", "last_value",
    "least", "left", "length", "ln", "log", "lower", "lpad", "ltrim", "make_date", "make_interval",
    "make_timestamp", "md5", "mod", "octet_length", "overlay", "pg_sleep", "pi", "position", "power",
    "quote_ident", "quote_literal", "regexp_count", "regexp_match", "regexp_replace", "repeat", "replace",
    "reverse", "right", "round", "row", "rpad", "rtrim", "sign", "split_part", "sqrt", "starts_with",
    "string_to_array", "strpos", "substr", "substring", "tenants", "timezone", "to_char", "to_date",
    "to_json", "to_jsonb", "to_number", "to_timestamp", "translate", "trim", "trunc", "unnest", "upper",
    "width_bucket",
})) - {"current_schema"}  # fmt: skip
"""Functions that are found in pg_catalog, whatever a tenant's schema has: it is searched first
(https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-SEARCH-PATH)."""


@singledispatch
def _judge(expression: Any, sides: Sides) -> Null:
    """Of a kind that is not known here: NULL where it holds something that may be."""
    columns = [part for part in parts_of(expression) if isinstance(part, elements.ColumnClause)]
    return Null.PERHAPS if sides.judge_all(columns) is Null.PERHAPS else Null.UNKNOWN


@_judge.register
def _(column: elements.ColumnClause, sides: Sides) -> Null:  # type: ignore[type-arg]
    if column.table is None:
        return Null.UNKNOWN  # literal_column()
    if column.table in sides.optional or getattr(column, "nullable", False):
        return Null.PERHAPS
    return Null.NEVER if isinstance(table_of(column), Table) else Null.UNKNOWN


@_judge.register
def _(value: elements.BindParameter, _: Sides) -> Null:  # type: ignore[type-arg]
    if value.callable is not None or value.required:
        return Null.UNKNOWN
    values = value.value if value.expanding and isinstance(value.value, list | tuple) else [value.value]
    return Null.PERHAPS if None in values else Null.NEVER


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
    return sides.judge_part(wrapper.element)


@_judge.register(elements.Cast)
@_judge.register(elements.TypeCoerce)
def _(cast: Any, sides: Sides) -> Null:
    return sides.judge_part(cast.clause)


@_judge.register
def _(unary: elements.UnaryExpression, sides: Sides) -> Null:  # type: ignore[type-arg]
    return Null.NEVER if unary.operator in _NULL_SAFE else sides.judge_part(unary.element)


@_judge.register
def _(binary: elements.BinaryExpression, sides: Sides) -> Null:  # type: ignore[type-arg]
    if binary.operator in _NULL_SAFE:
        return Null.NEVER
    null = sides.judge_all((binary.left, binary.right))
    symbol = getattr(binary.operator, "opstring", None)
    looks_up = symbol in _LOOKUPS or "getitem" in getattr(binary.operator, "__name__", "")
    return Null.UNKNOWN if null is Null.NEVER and looks_up else null


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
    if not isinstance(statement, Select):
        return Null.PERHAPS
    cuts = (statement._limit_clause, statement._offset_clause, statement._fetch_clause)
    if any(cut is not None for cut in cuts) or statement._group_by_clauses or statement._having_criteria:
        return Null.PERHAPS
    counts = [c for c in statement.selected_columns if isinstance(_unwrapped(c), functions.count)]
    return Null.NEVER if counts else Null.PERHAPS


@_judge.register
def _(function: functions.FunctionElement, sides: Sides) -> Null:  # type: ignore[type-arg]  # noqa: PLR0911
    name, arguments = function_name(function), list(function.clauses)
    if name == "concat_ws":
        return sides.judge_part(arguments[0]) if arguments else Null.NEVER
    if name in _NEVER_NULL:
        return Null.NEVER
    if name in ("coalesce", "greatest", "least"):
        found = [sides.judge_part(argument) for argument in arguments]
        return Null.NEVER if Null.NEVER in found else _worst(found)
    null = sides.judge_all(arguments)
    if name == "array_agg" and null is Null.PERHAPS:
        raise ConfigurationError(
            "select",
            str(function),
            "its elements may be None: add .filter(... .is_not(None)), or a coalesce()",
        )
    if name in _MAY_MISS:
        return Null.PERHAPS
    if name in _AGGREGATES:
        if sides.grouped is False:
            return Null.PERHAPS
        return null if sides.grouped or null is Null.PERHAPS else Null.UNKNOWN
    return Null.PERHAPS if null is Null.PERHAPS else Null.UNKNOWN


@_judge.register
def _(filtered: elements.FunctionFilter, sides: Sides) -> Null:  # type: ignore[type-arg]
    """The filter may leave no rows."""
    is_aggregate = function_name(filtered.func) in _AGGREGATES
    return Null.PERHAPS if is_aggregate else sides.judge_part(filtered.func)


@_judge.register
def _(ordered: elements.WithinGroup, sides: Sides) -> Null:  # type: ignore[type-arg]
    return _worst((sides.judge_part(ordered.element), sides.judge_part(ordered.order_by)))


@_judge.register
def _(window: elements.Over, sides: Sides) -> Null:  # type: ignore[type-arg]
    """Its rows are those of a window, which has at least the current one, unless a frame leaves that out."""
    name = function_name(window.element)
    if name in _MAY_MISS:
        return Null.PERHAPS
    if name not in _AGGREGATES and name not in ("first_value", "last_value"):
        return sides.judge_part(window.element)
    frames = ("rows", "range_", "groups", "exclude")
    if any(getattr(window, frame, None) is not None for frame in frames):
        return Null.PERHAPS
    return sides.judge_all(window.element.clauses)


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
    return not windows and any(function_name(part) in (*_AGGREGATES, "count") for part in parts)


def _unwrapped(column: Any) -> Any:
    """What is behind labels."""
    while isinstance(column, elements.Label):
        column = column.element
    return column
