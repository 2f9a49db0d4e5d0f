"""One statement for many tenants: the same SELECT over the tables of each, in a UNION ALL.

The SELECT is compiled once, with a token in place of the tenant's schema, and its text is repeated for each
tenant with the token replaced. Its parameters are there once for all.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ARRAY,
    Column,
    CompoundSelect,
    Enum,
    MetaData,
    Select,
    String,
    Table,
    TableClause,
    Text,
    TextClause,
    column,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql import elements, visitors
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import CTE, SelectStatementGrouping, TableValuedAlias
from sqlalchemy.types import TypeDecorator, TypeEngine

from ..catalog.members import Member
from ..config import Schemas
from .nullability import BUILTINS, function_name

_SECRET = secrets.token_hex(8)
_TOKEN, _TENANT = f"multitenant_{_SECRET}", f"'tenant_{_SECRET}'"
"""They stand for the schema and for the tenant's id; cannot be foreseen, so that no text of a user's can hold
them."""


@dataclass(frozen=True)
class TenantSelect:
    """A SELECT that can be asked of many tenants in one statement.

    Attributes:
        statement: the SELECT, for one tenant.
        names: of its columns; None for one without a name.
        types: of its columns.
        stored: the same as the server calls them, for rows that come from a document.
    """

    statement: Any
    names: tuple[str | None, ...]
    types: tuple[TypeEngine[Any], ...]
    schemas: Schemas
    stored: tuple[str, ...] = ()

    @classmethod
    def of(cls, statement: Any, schemas: Schemas) -> TenantSelect | None:
        """None where `statement` means something only within one tenant's transaction: it loads objects,
        whose identities are the tenant's own; it locks or writes; or it has names in it that only the search
        path can find."""
        if not isinstance(statement, Select | CompoundSelect) or loads_objects(statement):
            return None
        if _is_seen_by_sessions(statement):
            return None
        parts = list(visitors.iterate(statement))
        if any(_is_found_by_path(part, schemas) for part in parts):
            return None
        if any(getattr(part, "_for_update_arg", None) is not None for part in parts):
            return None
        ctes = [part for part in parts if isinstance(part, CTE)]
        if any(not isinstance(cte.element, Select | CompoundSelect) for cte in ctes):
            return None
        if ctes:
            # Else they would be one for all tenants.
            statement = visitors.cloned_traverse(statement, {}, {"cte": _nest})
        # A parameter has one type for all; a constant takes on that of the enum which it stands beside.
        statement = visitors.replacement_traverse(statement, {}, _enum_as_constant)
        columns = statement.selected_columns
        names = [None if key.startswith("_no_label") else key for key in columns.keys()]  # noqa: SIM118
        return cls(statement, tuple(names), tuple(c.type for c in columns), schemas)

    def rows_of(self, tenants: Sequence[Member]) -> Select[*tuple[Any, ...]]:
        """The statement that asks `tenants`: rows of the tenant's id and the columns, tenant by tenant.

        The server takes a sixth less for the union itself; but this gives the rows their names, and the
        columns what their types make of them (https://docs.sqlalchemy.org/en/21/core/custom_types.html).
        """
        rows = self.union_of(tenants)
        labelled = [
            rows.c[f"c{at}"] if name is None else rows.c[f"c{at}"].label(name)
            for at, name in enumerate(self.names)
        ]
        return select(rows.c.tenant, *labelled)

    def union_of(self, tenants: Sequence[Member], so_far: Any = None) -> TableValuedAlias:
        """The rows of `tenants` as a table with the columns `tenant`, `c0`, `c1` and so on.

        Args:
            so_far: an expression, JSON: rows of the same columns that are added to it.
        """
        columns: list[Any] = [column(f"c{at}", type_) for at, type_ in enumerate(self.types)]
        union = _Union(self, tenants, so_far)
        table = union.table_valued(*columns, column("tenant", Text()), name="tenants")
        return table.render_derived(name="tenants")


def _nest(cte: Any) -> None:
    cte.nesting = True


def _enum_as_constant(element: Any, **_: Any) -> Any:
    is_enum = isinstance(element, elements.BindParameter) and _is_native_enum(item_type(element.type))
    return element.render_literal_execute() if is_enum else None


def _is_native_enum(type_: Any) -> bool:
    return isinstance(type_, Enum) and type_.native_enum


def loads_objects(statement: Any) -> bool:
    """Whether a column of the rows is a mapped class, or a bundle, or whatever is not known beforehand."""
    if isinstance(statement, SelectStatementGrouping):
        return loads_objects(statement.element)
    if isinstance(statement, CompoundSelect):  # of which the first SELECT decides
        return any(loads_objects(part) for part in statement.selects)
    described = getattr(statement, "column_descriptions", None)
    if described is None:
        return True
    return any(
        not isinstance(getattr(d["expr"], "expression", d["expr"]), elements.ColumnElement) for d in described
    )


def _is_seen_by_sessions(statement: Any) -> bool:
    """Whether a session would change it: by options, such as `with_loader_criteria`, or by a hook that hides
    rows from every session (https://docs.sqlalchemy.org/en/21/orm/session_events.html#adding-global-where-on-criteria)."""
    if getattr(statement, "_with_options", ()):
        return True
    is_orm = statement._propagate_attrs.get("compile_state_plugin") == "orm"
    hooks: Any = Session().dispatch
    return is_orm and bool(hooks.do_orm_execute)


def _is_found_by_path(part: Any, schemas: Schemas) -> bool:
    """Whether it is text, or names a table that is in no model, or a function that may be a tenant's own."""
    if isinstance(part, Table):
        return part.schema is None and part.metadata not in (*schemas.tenant, *schemas.shared)
    if isinstance(part, TableClause):
        return part.schema is None
    if isinstance(part, FunctionElement):
        packages = getattr(part, "packagenames", ())
        return function_name(part) not in BUILTINS or packages not in ((), ("pg_catalog",))
    if isinstance(part, elements.ColumnClause) and not isinstance(part, Column):
        return part.is_literal and part.name != "*" and not part.name.isdigit()
    is_cast = isinstance(part, elements.Cast | elements.TypeCoerce)
    return isinstance(part, TextClause) or (is_cast and isinstance(part.type, REGCLASS))


class _Union(FunctionElement[Any]):
    """The text of the UNION ALL; a table to SQLAlchemy."""

    name = "tenants"
    inherit_cache = False

    def __init__(self, one: TenantSelect, tenants: Sequence[Member], so_far: Any) -> None:
        self.one, self.tenants, self.so_far = one, tenants, so_far
        super().__init__()


@compiles(_Union)
def _compile(union: _Union, compiler: Any, **_: Any) -> str:
    types = union.one.types
    as_text = [_as_text(type_, compiler.dialect) for type_ in types]
    branches = _branches(union, compiler, as_text) if union.tenants else []
    if union.so_far is not None:
        typed = ", ".join(f"c{at} {stored}" for at, stored in enumerate(union.one.stored))
        rows = f"jsonb_to_recordset({compiler.process(union.so_far)}) AS r({typed})"
        branches.append(f"SELECT r.*, NULL FROM {rows}")
    return f"({' UNION ALL '.join(branches)})"


def _branches(union: _Union, compiler: Any, as_text: Sequence[str | None]) -> list[str]:
    """The SELECT of each tenant.

    Args:
        as_text: what each column is to be cast to, or None.
    """
    statement = union.one.statement
    # Where it can, the id goes into the SELECT itself, since a subquery costs half as much again.
    is_direct = isinstance(statement, Select) and not any(as_text)
    if is_direct:
        statement = statement.add_columns(literal_column(_TENANT, Text()).label(f"id_{_SECRET}"))
    plain = compiler.preparer
    compiler.preparer = _with_token(plain, union.one.schemas.tenant)
    try:
        branch = compiler.process(statement, asfrom=True)
    finally:
        compiler.preparer = plain
    if is_direct:
        branch = f"({branch})"
    else:
        shown = ", ".join(f"c{at}::{cast}" if cast else f"c{at}" for at, cast in enumerate(as_text))
        names = ", ".join(f"c{at}" for at in range(len(as_text)))
        branch = f"SELECT {shown}, {_TENANT} FROM ({branch}) AS q({names})"
    branches: list[str] = []
    string = String()
    for member in union.tenants:
        tenant = compiler.render_literal_value(member.id, string)
        branches.append(
            branch.replace(_TENANT, tenant).replace(_TOKEN, plain.quote_identifier(member.schema))
        )
    return branches


def _with_token(preparer: Any, tenant: Sequence[MetaData]) -> Any:
    """A preparer that writes the token for the schema of a tenant's tables, and of types of its own."""

    def schema_of(item: Any) -> str | None:
        if isinstance(item, Table):
            return _TOKEN if item.metadata in tenant else item.schema
        if isinstance(item, Enum) and item.schema is None and _is_own(item, tenant):
            return _TOKEN
        return getattr(item, "schema", None)

    with_token = copy.copy(preparer)
    with_token.schema_for_object = schema_of
    return with_token


def _is_own(enum: Enum, tenant: Sequence[MetaData]) -> bool:
    """Whether one of the tenant's tables has a column of this type."""
    return any(
        isinstance(item, Enum) and item.name == enum.name
        for metadata in tenant
        for table in metadata.tables.values()
        for item in (item_type(c.type) for c in table.columns)
    )


def item_type(type_: Any) -> Any:
    while isinstance(type_, ARRAY | TypeDecorator):
        type_ = type_.item_type if isinstance(type_, ARRAY) else type_.impl_instance
    return type_


def _as_text(type_: TypeEngine[Any], dialect: Any) -> str | None:
    """What to cast a column to whose type is another one in each schema; None for all others."""
    item = item_type(type_.dialect_impl(dialect) if isinstance(type_, TypeDecorator) else type_)
    if not _is_native_enum(item):
        return None
    is_array = isinstance(type_, ARRAY) or isinstance(getattr(type_, "impl_instance", None), ARRAY)
    return "text[]" if is_array else "text"
