"""What type checkers infer for queries over several schemas; read by them alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, assert_type

from pydantic import BaseModel
from sqlalchemy import Row, ScalarResult, Select, func, select, text, update
from sqlalchemy.orm import aliased

from sqlalchemy_multitenant import (
    AsyncCrossSchemaQuery,
    AsyncTenantDb,
    AsyncTenantManager,
    CrossSchemaQuery,
    TenantDb,
    TenantError,
    TenantManager,
    aggregate_all,
    cross_schema_raw,
    for_all_tenants,
    optional,
    with_shared_lookup,
)
from tests.models import Mood, Note, Plan, User


def the_example_of_the_readme(tenant_db: TenantDb, shared_db: TenantDb) -> None:
    rows = (
        CrossSchemaQuery(tenant_db, shared_db)
        .from_("tenant", User)
        .left_join("shared", Plan, User.plan_id == Plan.id)
        .select(User.id, optional(Plan.name))
        .where(User.name == "x")
    ).all()
    assert_type(rows, list[tuple[int, str | None]])
    for number, plan in rows:
        assert_type(number, int)
        assert_type(plan, str | None)


def builder(tenant_db: TenantDb, shared_db: TenantDb) -> None:
    begun = CrossSchemaQuery(tenant_db, shared_db).from_("tenant", User)
    assert_type(begun, CrossSchemaQuery)
    assert_type(begun.inner_join("tenant", Note, Note.user_id == User.id), CrossSchemaQuery)
    assert_type(begun.right_join("shared", Plan), CrossSchemaQuery)
    assert_type(begun.full_join("shared", aliased(Plan)), CrossSchemaQuery)
    big = select(User.id).where(User.id > 1).cte()
    assert_type(CrossSchemaQuery(tenant_db, shared_db).from_("tenant", big), CrossSchemaQuery)
    query = (
        begun.left_join("shared", Plan)
        .where(User.id > 1, Plan.id == 2)
        .select(User, User.mood, optional(Plan), func.count(), optional(func.max(User.id)))
        .group_by(User.id, "mood")
        .having(func.count() > 1)
        .order_by(User.name.desc(), "mood")
        .limit(3)
        .offset(1)
        .distinct()
    )
    assert_type(query.statement, Select[User, Mood, Plan | None, int, int | None])
    assert_type(query.first(), tuple[User, Mood, Plan | None, int, int | None] | None)
    assert_type(query.one(), tuple[User, Mood, Plan | None, int, int | None])
    assert_type(query.one_or_none(), tuple[User, Mood, Plan | None, int, int | None] | None)
    assert_type(query.scalars(), ScalarResult[User])
    assert_type(next(query.stream(batch=10))[2], Plan | None)
    assert_type(begun.select(User.plan_id).all(), list[tuple[int | None]])
    assert_type(begun.left_join("shared", Plan).select(optional(Plan.name)).scalars().all()[0], str | None)


def one_untyped_column_spoils_no_other(tenant_db: TenantDb, shared_db: TenantDb) -> None:
    query = CrossSchemaQuery(tenant_db, shared_db).from_("tenant", User).left_join("shared", Plan)
    assert_type(query.select(User.id, func.lower(User.name)).one(), tuple[int, Any])
    assert_type(query.select(User.id, optional(User.plan_id)).one(), tuple[int, int | None])
    assert_type(query.select(User.id, optional(func.max(User.id))).one(), tuple[int, int | None])


def wrong_builder(tenant_db: TenantDb, shared_db: TenantDb, async_db: AsyncTenantDb) -> None:
    query = CrossSchemaQuery(tenant_db, shared_db)
    query.from_("nobody", User)  # type: ignore[arg-type]
    query.from_("tenant", "users")  # type: ignore[arg-type]
    query.from_("tenant", User).all()  # type: ignore[attr-defined]
    query.from_("tenant", User).select("name")  # type: ignore[call-overload]
    query.from_("tenant", User).select(User.id, 5)  # type: ignore[call-overload]
    query.from_("tenant", User).select()  # type: ignore[call-overload]
    query.from_("tenant", User).select(User.id).limit("3")  # type: ignore[arg-type]
    query.from_("tenant", User).select(User.id).where(User.plan)  # type: ignore[arg-type]
    CrossSchemaQuery(tenant_db, async_db)  # type: ignore[arg-type]
    AsyncCrossSchemaQuery(tenant_db, shared_db)  # type: ignore[arg-type]
    optional("name")  # type: ignore[arg-type]
    name: str = query.from_("tenant", User).select(optional(Plan.name)).one()[0]  # type: ignore[assignment]
    del name


async def async_builder(tenant_db: AsyncTenantDb, shared_db: AsyncTenantDb) -> None:
    query = (
        AsyncCrossSchemaQuery(tenant_db, shared_db)
        .from_("tenant", User)
        .left_join("shared", Plan, User.plan_id == Plan.id)
        .select(User.id, optional(Plan.name))
    )
    assert_type(await query.all(), list[tuple[int, str | None]])
    assert_type(await query.first(), tuple[int, str | None] | None)
    assert_type(await query.one(), tuple[int, str | None])
    assert_type(await query.one_or_none(), tuple[int, str | None] | None)
    assert_type(await query.scalars(), ScalarResult[int])
    assert_type(query.statement, Select[int, str | None])
    async for row in query.stream():
        assert_type(row, tuple[int, str | None])


def lookup(tenant_db: TenantDb, shared_db: TenantDb) -> None:
    rows = with_shared_lookup(
        tenant_db, shared_db, User, Plan, foreign_key=User.plan_id, fields=(Plan.id, Plan.name)
    )
    assert_type(rows, list[tuple[User, int | None, str | None]])
    whole = with_shared_lookup(
        tenant_db,
        shared_db,
        User,
        Plan,
        foreign_key=User.plan_id,
        where=[User.name == "x", User.id > 1],
        order_by=User.id.desc(),
        limit=3,
    )
    assert_type(whole, list[tuple[User, Plan | None]])
    with_shared_lookup(tenant_db, shared_db, User, Plan, foreign_key="plan_id")  # type: ignore[call-overload]


async def async_lookup(tenant_db: AsyncTenantDb, shared_db: AsyncTenantDb) -> None:
    rows = await with_shared_lookup(
        tenant_db, shared_db, User, Plan, foreign_key=User.plan_id, fields=(Plan.name,), where=User.id > 1
    )
    assert_type(rows, list[tuple[User, str | None]])


class AsNamedTuple(NamedTuple):
    name: str


class AsTypedDict(TypedDict):
    name: str


@dataclass
class AsDataclass:
    name: str


class AsModel(BaseModel):
    name: str


def raw(db: TenantDb) -> None:
    sql = "SELECT name FROM $tenant.users WHERE id = :id"
    assert_type(cross_schema_raw(db, sql, {"id": 1}, into=AsNamedTuple), list[AsNamedTuple])
    assert_type(cross_schema_raw(db, sql, {"id": 1}, into=AsTypedDict), list[AsTypedDict])
    assert_type(cross_schema_raw(db, sql, {"id": 1}, into=AsDataclass), list[AsDataclass])
    assert_type(cross_schema_raw(db, sql, {"id": 1}, into=AsModel)[0].name, str)
    assert_type(cross_schema_raw(db, sql, {"id": 1}), list[Row[*tuple[Any, ...]]])
    cross_schema_raw(db, sql, into=AsModel(name="x"))  # type: ignore[call-overload]


async def async_raw(db: AsyncTenantDb) -> None:
    assert_type(await cross_schema_raw(db, "SELECT 1 AS name", into=AsModel), list[AsModel])


def all_tenants(manager: TenantManager) -> None:
    for tenant, count in for_all_tenants(manager, select(func.count()).select_from(User)):
        assert_type(tenant, str)
        assert_type(count, int)
    for row in for_all_tenants(manager, select(User.name, User.plan_id), tenants=["a"], limit=3, batch=10):
        assert_type(row, tuple[str, str, int | None])
    for answer in for_all_tenants(manager, select(User), errors="return", asked_by="me"):
        assert_type(answer, tuple[str, User] | TenantError)
    for change in for_all_tenants(manager, update(User).values(name="x"), read_only=False):
        assert_type(change, Any)
    for_all_tenants(manager, text("SELECT 1"), where_status="suspended")
    for_all_tenants(manager, select(User.id), where_status="gone")  # type: ignore[call-overload]
    for_all_tenants(manager, select(User.id), tenant="a")  # type: ignore[call-overload]
    for_all_tenants(manager, select(User.id)).close()
    assert_type(
        aggregate_all(manager, select(User.mood, func.count()).group_by(User.mood)), list[tuple[Mood, int]]
    )


async def all_tenants_async(manager: AsyncTenantManager) -> None:
    async for row in for_all_tenants(manager, select(User.id, User.mood)):
        assert_type(row, tuple[str, int, Mood])
    async for answer in for_all_tenants(manager, select(User.id), errors="return"):
        assert_type(answer, tuple[str, int] | TenantError)
    assert_type(await aggregate_all(manager, select(func.count())), list[tuple[int]])
