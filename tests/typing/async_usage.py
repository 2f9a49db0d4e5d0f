"""What type checkers infer for the async API; read by them alone, see tests/unit/test_typing.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

from sqlalchemy import Result, ScalarResult, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from sqlalchemy_multitenant import (
    AsyncTenantDb,
    AsyncTenantManager,
    CurrentTenant,
    TenantConfig,
    TenantContext,
    TenantRecord,
)
from tests.models import Plan, User


@dataclass(frozen=True)
class Info:
    user: str


async def one_shot_queries(db: AsyncTenantDb) -> None:
    assert_type(await db.scalars(select(User)), ScalarResult[User])
    assert_type((await db.scalars(select(User.name))).all()[0], str)
    assert_type(await db.execute(select(User.id, User.name)), Result[int, str])
    assert_type(await db.execute(select(User, Plan.name)), Result[User, str])
    assert_type(await db.scalar(select(User)), User | None)
    assert_type(await db.scalar(select(func.count()).select_from(User)), int | None)
    await db.execute(text("SELECT 1"), [{"x": 1}])


async def scopes(db: AsyncTenantDb) -> None:
    async with db.session() as session:
        assert_type(session, AsyncSession)
    async with db.begin() as session:
        assert_type(session, AsyncSession)
    async with db.connect() as connection:
        assert_type(connection, AsyncConnection)
    assert_type(db.engine, AsyncEngine)


async def managers(config: TenantConfig) -> None:
    async with AsyncTenantManager(config) as tenants:
        assert_type(tenants, AsyncTenantManager)
        assert_type(tenants.get_db("a"), AsyncTenantDb)
        assert_type(tenants.get_shared_db(), AsyncTenantDb)
        assert_type(await tenants.create_tenant("a"), TenantRecord)
        assert_type(await tenants.tenant_exists("a"), bool)


async def contexts(tenants: AsyncTenantManager) -> None:
    context = TenantContext[Info, AsyncTenantDb](tenants)
    assert_type(context.get_tenant_db(), AsyncTenantDb)
    assert_type(context.get_shared_db(), AsyncTenantDb)
    assert_type(context.get_tenant().data, Info | None)
    assert_type(context.get_tenant_or_none(), CurrentTenant[Info] | None)
    async with context.use_tenant("a", Info("ada")) as current:
        assert_type(current, CurrentTenant[Info])
    by_argument = TenantContext(tenants, data_type=Info)
    assert_type(by_argument.get_tenant().data, Info | None)
    assert_type(by_argument.get_tenant_db(), AsyncTenantDb)
    assert_type(TenantContext(tenants).get_tenant_db(), AsyncTenantDb)


async def decorated(context: TenantContext[Info, AsyncTenantDb]) -> None:
    @context.use_tenant("a")
    async def work(x: int, *, y: str = "") -> list[int]:
        return [x]

    assert_type(await work(1, y="z"), list[int])
    assert_type(await context.run_with_tenant("a", work, 1, y="z"), list[int])
    await context.run_with_tenant("a", work, "1")  # type: ignore[arg-type]


async def wrong(db: AsyncTenantDb, tenants: AsyncTenantManager) -> None:
    await db.execute("SELECT 1")  # type: ignore[call-overload]
    first: User = await db.scalar(select(User))  # type: ignore[assignment]
    db.scalars(select(User)).all()  # type: ignore[attr-defined]
    with db.session() as session:  # type: ignore[attr-defined]
        del session
    with db.connect() as connection:  # type: ignore[attr-defined]
        del connection
    TenantContext[Info](tenants)  # type: ignore[arg-type]
    del first
