"""`with_shared_lookup`: a tenant's rows, each with what it refers to in a shared table."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeAlias, TypeVar, overload

from sqlalchemy import Column, ColumnExpressionArgument, SQLColumnExpression, inspect
from sqlalchemy.orm import Mapper

from ..database import TenantDb
from ..database_async import AsyncTenantDb
from ..errors import ConfigurationError
from .handles import AnyDb
from .optional import Entity
from .parts import Selected, leaves_of, name_of
from .query import AsyncCrossSchemaQuery, CrossSchemaQuery

M = TypeVar("M")
S = TypeVar("S")
T0 = TypeVar("T0")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")

Where: TypeAlias = ColumnExpressionArgument[bool] | Sequence[ColumnExpressionArgument[bool]]
OrderBy: TypeAlias = ColumnExpressionArgument[Any] | Sequence[ColumnExpressionArgument[Any]]


@overload
def with_shared_lookup(
    tenant_db: TenantDb,
    shared_db: TenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: None = None,
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> list[tuple[M, S | None]]: ...
@overload
def with_shared_lookup(
    tenant_db: TenantDb,
    shared_db: TenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> list[tuple[M, T0 | None]]: ...
@overload
def with_shared_lookup(
    tenant_db: TenantDb,
    shared_db: TenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0], Entity[T1]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> list[tuple[M, T0 | None, T1 | None]]: ...
@overload
def with_shared_lookup(
    tenant_db: TenantDb,
    shared_db: TenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0], Entity[T1], Entity[T2]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> list[tuple[M, T0 | None, T1 | None, T2 | None]]: ...
@overload
def with_shared_lookup(
    tenant_db: TenantDb,
    shared_db: TenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0], Entity[T1], Entity[T2], Entity[T3]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> list[tuple[M, T0 | None, T1 | None, T2 | None, T3 | None]]: ...
@overload
def with_shared_lookup(
    tenant_db: TenantDb,
    shared_db: TenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0], Entity[T1], Entity[T2], Entity[T3], Entity[T4]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> list[tuple[M, T0 | None, T1 | None, T2 | None, T3 | None, T4 | None]]: ...
@overload
def with_shared_lookup(
    tenant_db: TenantDb,
    shared_db: TenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0], Entity[T1], Entity[T2], Entity[T3], Entity[T4], Entity[T5]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> list[tuple[M, T0 | None, T1 | None, T2 | None, T3 | None, T4 | None, T5 | None]]: ...
@overload
def with_shared_lookup(
    tenant_db: AsyncTenantDb,
    shared_db: AsyncTenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: None = None,
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> Coroutine[Any, Any, list[tuple[M, S | None]]]: ...
@overload
def with_shared_lookup(
    tenant_db: AsyncTenantDb,
    shared_db: AsyncTenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> Coroutine[Any, Any, list[tuple[M, T0 | None]]]: ...
@overload
def with_shared_lookup(
    tenant_db: AsyncTenantDb,
    shared_db: AsyncTenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0], Entity[T1]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> Coroutine[Any, Any, list[tuple[M, T0 | None, T1 | None]]]: ...
@overload
def with_shared_lookup(
    tenant_db: AsyncTenantDb,
    shared_db: AsyncTenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0], Entity[T1], Entity[T2]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> Coroutine[Any, Any, list[tuple[M, T0 | None, T1 | None, T2 | None]]]: ...
@overload
def with_shared_lookup(
    tenant_db: AsyncTenantDb,
    shared_db: AsyncTenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0], Entity[T1], Entity[T2], Entity[T3]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> Coroutine[Any, Any, list[tuple[M, T0 | None, T1 | None, T2 | None, T3 | None]]]: ...
@overload
def with_shared_lookup(
    tenant_db: AsyncTenantDb,
    shared_db: AsyncTenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0], Entity[T1], Entity[T2], Entity[T3], Entity[T4]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> Coroutine[Any, Any, list[tuple[M, T0 | None, T1 | None, T2 | None, T3 | None, T4 | None]]]: ...
@overload
def with_shared_lookup(
    tenant_db: AsyncTenantDb,
    shared_db: AsyncTenantDb,
    tenant_model: type[M],
    shared_model: type[S],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Entity[T0], Entity[T1], Entity[T2], Entity[T3], Entity[T4], Entity[T5]],
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> Coroutine[
    Any, Any, list[tuple[M, T0 | None, T1 | None, T2 | None, T3 | None, T4 | None, T5 | None]]
]: ...
def with_shared_lookup(  # noqa: PLR0913
    tenant_db: AnyDb,
    shared_db: AnyDb,
    tenant_model: type[Any],
    shared_model: type[Any],
    *,
    foreign_key: SQLColumnExpression[Any],
    fields: tuple[Any, ...] | None = None,
    where: Where = (),
    order_by: OrderBy = (),
    limit: int | None = None,
) -> Any:
    """The rows of a tenant's table, each with fields of the shared row that it refers to.

        rows = with_shared_lookup(
            tenant_db, shared_db, Order, Step, foreign_key=Order.step_id, fields=(Step.id, Step.name)
        )  # list[tuple[Order, int | None, str | None]]

    Args:
        tenant_db, shared_db: two handles of one manager. Where that is an `AsyncTenantManager`, await the
            result.
        tenant_model: a mapped class of the tenant's; its objects come back detached.
        shared_model: a shared mapped class.
        foreign_key: the column of `tenant_model` that holds the key of `shared_model`.
        fields: columns of `shared_model`, None where nothing is referred to; types are inferred for up to
            six. Left out: the object itself.
        where: one criterion, or several that must all hold.
        order_by: one column, or several.
        limit: how many rows at most.

    Raises:
        ConfigurationError: the handles are no pair, a model is not where it is said to be, or the key of
            `shared_model` is not a single column.
    """
    if fields is not None and not isinstance(fields, tuple | list):
        raise ConfigurationError("fields", str(fields), "a tuple of columns, such as (Step.id, Step.name)")
    for name, model in (("tenant_model", tenant_model), ("shared_model", shared_model)):
        if not isinstance(getattr(inspect(model, raiseerr=False), "mapper", None), Mapper):
            raise ConfigurationError(name, model, "a mapped class")
    on = foreign_key == _key(tenant_model, shared_model, foreign_key)
    # Their types have the None in any case.
    selected = [Selected(field, None) for field in ((shared_model,) if fields is None else fields)]
    kind = AsyncCrossSchemaQuery if isinstance(tenant_db, AsyncTenantDb) else CrossSchemaQuery
    return (
        kind(tenant_db, shared_db)  # type: ignore[arg-type]
        .from_("tenant", tenant_model)
        .left_join("shared", shared_model, on)
        .select(tenant_model, *selected)
        .where(*_several(where))
        .order_by(*_several(order_by))
        .limit(limit)
        .all()
    )


def _several(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list | tuple) else [given]


def _key(tenant_model: Any, shared_model: Any, foreign_key: Any) -> Any:
    """What the foreign key refers to: what it says itself, or else the primary key."""
    column = getattr(foreign_key, "expression", None)
    own = inspect(tenant_model)
    if not isinstance(column, Column) or column.table not in {leaf for leaf, _ in leaves_of(own.selectable)}:
        raise ConfigurationError(
            "foreign_key", str(foreign_key), f"a column of {name_of(tenant_model)}, such as Order.step_id"
        )
    shared = inspect(shared_model).mapper
    keys = [key for key in column.foreign_keys if key.column.table in shared.tables]
    if column.foreign_keys and not keys:
        others = ", ".join(sorted(key.target_fullname for key in column.foreign_keys))
        raise ConfigurationError(
            "foreign_key", str(foreign_key), f"it refers to {others}, and not to {name_of(shared_model)}"
        )
    target = keys[0].column if keys else shared.primary_key[0]
    is_composite = keys and keys[0].constraint is not None and len(keys[0].constraint.elements) > 1
    if is_composite or (not keys and len(shared.primary_key) != 1):
        raise ConfigurationError(
            "foreign_key",
            str(foreign_key),
            f"the key of {name_of(shared_model)} is not one column; use CrossSchemaQuery.left_join()",
        )
    return getattr(shared_model, shared.get_property_by_column(target).key)
