"""What a query over several schemas is made of: its joins, on which side of them each table stands, and what
is selected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from sqlalchemy import ColumnExpressionArgument, FromClause, Join, Select, Table, inspect, select
from sqlalchemy.orm import Mapper, QueryableAttribute, RelationshipProperty
from sqlalchemy.orm import join as orm_join
from sqlalchemy.orm.util import AliasedClass
from sqlalchemy.sql import elements, visitors

from ..config import Schemas
from ..errors import ConfigurationError
from .nullability import SETS, Null, Sides, function_name, may_lose_rows, parts_of
from .optional import Optional

Owner: TypeAlias = Literal["tenant", "shared"]
Source: TypeAlias = type[Any] | AliasedClass[Any] | FromClause
"""A mapped class, an alias of one, a table, a CTE or another subquery."""
OnClause: TypeAlias = ColumnExpressionArgument[bool] | QueryableAttribute[Any]
"""A condition, or a relationship."""


@dataclass(frozen=True, slots=True)
class _Join:
    """A source, and how it is joined to what is before it."""

    source: Any
    on: Any
    isouter: bool
    full: bool


@dataclass(frozen=True, slots=True)
class Selected:
    """What is selected.

    Attributes:
        entity: a column, an expression or a mapped class.
        mark: whether it is marked `optional()`; None where its type has the None in any case.
    """

    entity: Any
    mark: bool | None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a query is made of so far.

    Attributes:
        root: what it begins with; None before `from_()`.
        joins: what is joined to that.
        tables: all of these, each table, alias or subquery by itself.
        optional: those of them that a row may lack.
        selected: the columns.
        steps: the methods of `Select` that are to be called, with their arguments.
    """

    schemas: Schemas
    root: Any = None
    joins: tuple[_Join, ...] = ()
    tables: frozenset[FromClause] = frozenset()
    optional: frozenset[FromClause] = frozenset()
    selected: tuple[Selected, ...] = ()
    steps: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def start(self, owner: Owner, source: Source) -> Parts:
        if self.root is not None:
            raise ConfigurationError(
                "from_", name_of(source), "the query has one already; join what comes next"
            )
        tables, optional = self._tables(owner, source)
        return replace(self, root=source, tables=tables, optional=optional)

    def join(self, owner: Owner, source: Source, on: Any, *, keeps_left: bool, keeps_right: bool) -> Parts:
        """Join `source`; what is not kept on one side has rows that are missing on the other.

        Args:
            keeps_left: rows that are there so far stay without a match, as in a LEFT or FULL join.
            keeps_right: rows of `source` do, as in a RIGHT or FULL join.
        """
        if self.root is None:
            raise ConfigurationError(
                "join", name_of(source), "there is nothing to join it to: begin with from_()"
            )
        added, lost = self._tables(owner, source)
        if both := added & self.tables:
            name = name_of(next(iter(both)))
            raise ConfigurationError(
                "join", name, "it is in the query already; join sqlalchemy.orm.aliased(...)"
            )
        if keeps_right:
            # Which rows are of the class would be asked after the join, which loses those without a match.
            for joined in (source, self.root, *(j.source for j in self.joins)):
                if _is_part_of_table(joined):
                    raise ConfigurationError(
                        "join", name_of(joined), "it has but some rows of its table: turn it into a left join"
                    )
        self._check_present(_tables_in(on), on, among=self.tables | added)
        root, joins = self.root, (*self.joins, _Join(source, on, keeps_left, keeps_left and keeps_right))
        if keeps_right and not keeps_left:
            root, joins = orm_join(source, self._chain(), on, isouter=True), ()
        optional = self.optional | lost | (added if keeps_left else frozenset())
        optional |= self.tables if keeps_right else frozenset()
        parts = replace(self, root=root, joins=joins, tables=self.tables | added, optional=optional)
        parts.check(grouped=None)
        return parts

    def select(self, entities: Iterable[Any]) -> Parts:
        """Select these; each may be a `Selected`, an `optional()`, or else has no mark."""
        selected = tuple(map(_selected, entities))
        if self.root is None:
            raise ConfigurationError(
                "select", len(selected), "there is nothing to select from: begin with from_()"
            )
        if not selected:
            raise ConfigurationError("select", (), "name at least one column")
        parts = replace(self, selected=selected)
        parts.check(grouped=None)
        return parts

    def step(self, method: str, *arguments: Any) -> Parts:
        for argument in arguments:
            if isinstance(argument, Optional):
                raise ConfigurationError(method, repr(argument), "optional() belongs in select() alone")
        return replace(self, steps=(*self.steps, (method, arguments)))

    def has(self, method: str) -> bool:
        """Whether there is a step of this name, with something in it."""
        return any(name == method and any(g is not None for g in given) for name, given in self.steps)

    def first(self) -> Parts:
        """With no more rows than the first."""
        return self if self.has("limit") else self.step("limit", 1)

    def build(self) -> Select[*tuple[Any, ...]]:
        for _, arguments in self.steps:
            for argument in arguments:
                self._check_present(_tables_in(argument), argument, among=self.tables)
        self.check(grouped=self.has("group_by"))
        statement = select(*(item.entity for item in self.selected)).select_from(self.root)
        for joined in self.joins:
            statement = statement.join(joined.source, joined.on, isouter=joined.isouter, full=joined.full)
        for method, arguments in self.steps:
            statement = getattr(statement, method)(*arguments)
        return statement

    def _has_grouping_sets(self) -> bool:
        given = [g for method, arguments in self.steps if method == "group_by" for g in arguments]
        parts = (part for g in given if isinstance(g, elements.ClauseElement) for part in parts_of(g))
        return any(function_name(part) in SETS for part in parts)

    def check(self, *, grouped: bool | None) -> None:
        """Hold the marks against the joins, so that the types of the rows are true.

        Args:
            grouped: whether there is a GROUP BY; None while that may still come.
        """
        sides = Sides(self.optional, grouped)
        if self._has_grouping_sets():
            # They make NULL of what a row is not grouped by, and a row of nothing.
            sides = Sides(self.tables, grouped=False)
        for item in self.selected:
            null, name = self._judge(item.entity, sides), name_of(item.entity)
            if null is Null.PERHAPS and item.mark is False:
                raise ConfigurationError(
                    "select",
                    name,
                    "it is None where an outer join has no match, where there is nothing to aggregate, or "
                    f"where a part of it is; write optional({name}), and its type says so",
                )
            if null is Null.NEVER and item.mark:
                raise ConfigurationError(
                    "select", f"optional({name})", "the joins leave no row without it: take the mark off"
                )

    def _judge(self, entity: Any, sides: Sides) -> Null:
        if isinstance(getattr(entity, "property", None), RelationshipProperty):
            raise ConfigurationError(
                "select", name_of(entity), "a relationship: join what it refers to, and select that"
            )
        inspected = inspect(entity, raiseerr=False)
        mapped = getattr(inspected, "selectable", None)
        if mapped is not None and hasattr(inspected, "mapper"):
            tables = frozenset(leaf for leaf, _ in leaves_of(mapped))
            self._check_present(tables, entity, among=self.tables)
            lost = not isinstance(mapped, Table | Join) and may_lose_rows(mapped)
            sure = frozenset(leaf for leaf, is_lost in leaves_of(mapped) if not is_lost)
            return Null.PERHAPS if lost or sure & sides.optional else Null.NEVER
        expression = getattr(entity, "expression", entity)
        if not isinstance(expression, elements.ColumnElement):
            raise ConfigurationError("select", name_of(entity), "a column, an expression, or a mapped class")
        self._check_present(_tables_in(expression), entity, among=self.tables)
        return sides.judge(expression)

    def _check_present(
        self, tables: frozenset[FromClause], where: Any, *, among: frozenset[FromClause]
    ) -> None:
        if absent := tables - among:
            raise ConfigurationError(
                "query", name_of(where), f"{name_of(next(iter(absent)))} is not in the query: join it first"
            )

    def _chain(self) -> Any:
        """All that is joined so far, as one."""
        chain = self.root
        for joined in self.joins:
            chain = orm_join(chain, joined.source, joined.on, isouter=joined.isouter, full=joined.full)
        return chain

    def _tables(self, owner: Owner, source: Source) -> tuple[frozenset[FromClause], frozenset[FromClause]]:
        """The tables of a source, and those of them that its rows may lack."""
        selectable = getattr(inspect(source, raiseerr=False), "selectable", None)
        if not isinstance(selectable, FromClause):
            raise ConfigurationError("source", source, "a mapped class, a table, or a subquery")
        tables = {t for t in visitors.iterate(selectable) if isinstance(t, Table)}
        own = {t for t in tables if t.metadata in self.schemas.tenant}
        if owner == "tenant" and not own:
            raise ConfigurationError(
                "source",
                name_of(source),
                'it is in none of the tenant\'s models (schemas.tenant); say "shared"',
            )
        if owner == "shared" and own:
            raise ConfigurationError(
                "source", name_of(source), f'{name_of(next(iter(own)))} is a tenant\'s table; say "tenant"'
            )
        if owner not in ("tenant", "shared"):
            raise ConfigurationError("source", owner, '"tenant" or "shared"')
        leaves = list(leaves_of(selectable))
        return frozenset(leaf for leaf, _ in leaves), frozenset(leaf for leaf, is_lost in leaves if is_lost)


def _selected(entity: Any) -> Selected:
    if isinstance(entity, Selected):
        return entity
    return Selected(entity.entity, True) if isinstance(entity, Optional) else Selected(entity, False)


def leaves_of(selectable: FromClause, *, is_lost: bool = False) -> Iterator[tuple[FromClause, bool]]:
    """What a join joins, or the table itself, and whether an outer join in it may lose it."""
    if isinstance(selectable, Join):
        yield from leaves_of(selectable.left, is_lost=is_lost or selectable.full)
        yield from leaves_of(selectable.right, is_lost=is_lost or selectable.isouter or selectable.full)
    elif isinstance(selectable, elements.GroupedElement) and isinstance(
        inner := getattr(selectable, "element", None), FromClause
    ):
        yield from leaves_of(inner, is_lost=is_lost)
    else:
        yield selectable, is_lost


def _is_part_of_table(source: Any) -> bool:
    """Whether it is a class that shares its table with others (single table inheritance)."""
    mapper = getattr(inspect(source, raiseerr=False), "mapper", None)
    return isinstance(mapper, Mapper) and mapper.single


def _tables_in(expression: Any) -> frozenset[FromClause]:
    """Those whose columns `expression` has, and not a subquery in it; none of what is no expression."""
    expression = getattr(expression, "expression", expression)
    is_relationship = isinstance(getattr(expression, "property", None), RelationshipProperty)
    if is_relationship or not isinstance(expression, elements.ClauseElement):
        return frozenset()
    columns = (part for part in parts_of(expression) if isinstance(part, elements.ColumnClause))
    return frozenset(column.table for column in columns if column.table is not None)


def name_of(thing: Any) -> str:
    """How the user wrote it, more or less."""
    if isinstance(thing, type):
        return thing.__name__
    is_table = isinstance(thing, FromClause) and not isinstance(thing, elements.ColumnElement)
    return str(getattr(thing, "name", thing) if is_table else thing)
