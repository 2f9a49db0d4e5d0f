"""What type checkers infer for the sync API; read by them alone, see tests/unit/test_typing.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

from sqlalchemy import Connection, Engine, Result, ScalarResult, func, select, text, update
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import (
    CurrentTenant,
    MigrationReport,
    Migrator,
    TenantConfig,
    TenantContext,
    TenantDb,
    TenantManager,
    TenantRecord,
)
from tests.models import Plan, User


@dataclass(frozen=True)
class Info:
    user: str


def one_shot_queries(db: TenantDb) -> None:
    assert_type(db.scalars(select(User)), ScalarResult[User])
    assert_type(db.scalars(select(User)).all()[0].name, str)
    assert_type(db.scalars(select(User.name)), ScalarResult[str])
    assert_type(db.execute(select(User.id, User.name)), Result[int, str])
    assert_type(db.execute(select(User, Plan.name)), Result[User, str])
    assert_type(db.execute(select(User.id).where(User.id == 1), {"x": 1}).scalar_one(), int)
    for number, name in db.execute(select(User.id, User.name)):
        assert_type(number, int)
        assert_type(name, str)
    assert_type(db.scalar(select(User)), User | None)
    assert_type(db.scalar(select(func.count()).select_from(User)), int | None)
    assert_type(db.scalar(update(User).values(name="x").returning(User.name)), str | None)
    db.execute(text("SELECT 1"), [{"x": 1}])


def scopes(db: TenantDb) -> None:
    with db.session() as session:
        assert_type(session, Session)
    with db.begin() as session:
        assert_type(session, Session)
        assert_type(session.get_one(User, 1).name, str)
    with db.connect() as connection:
        assert_type(connection, Connection)
    assert_type(db.engine, Engine)


def managers(config: TenantConfig) -> None:
    with TenantManager(config) as tenants:
        assert_type(tenants, TenantManager)
        assert_type(tenants.get_db("a"), TenantDb)
        assert_type(tenants.get_shared_db(), TenantDb)
        assert_type(tenants.create_tenant("a"), TenantRecord)
        assert_type(tenants.tenant_exists("a"), bool)
        assert_type(tenants.metrics(), dict[str, float])
    with Migrator(config) as migrator:
        assert_type(migrator, Migrator)
        assert_type(migrator.migrate_all(on_error=lambda tenant, error: "continue"), MigrationReport)


def contexts(tenants: TenantManager) -> None:
    context = TenantContext[Info](tenants)
    assert_type(context, TenantContext[Info, TenantDb])
    assert_type(context.get_tenant_db(), TenantDb)
    assert_type(context.get_shared_db(), TenantDb)
    assert_type(context.get_tenant(), CurrentTenant[Info])
    assert_type(context.get_tenant().data, Info | None)
    assert_type(context.get_tenant_or_none(), CurrentTenant[Info] | None)
    with context.use_tenant("a", Info("ada")) as current:
        assert_type(current, CurrentTenant[Info])
    by_argument = TenantContext(tenants, data_type=Info)
    assert_type(by_argument.get_tenant().data, Info | None)
    assert_type(by_argument.get_tenant_db(), TenantDb)
    tenant: str = context.get_tenant()
    tenants.get_db(tenant)
    assert_type(TenantContext(tenants).get_tenant_db(), TenantDb)


def decorated(context: TenantContext[Info]) -> None:
    @context.use_tenant("a")
    def work(x: int, *, y: str = "") -> list[int]:
        return [x]

    assert_type(work(1, y="z"), list[int])
    assert_type(context.run_with_tenant("a", work, 1, y="z"), list[int])
    work("1")  # type: ignore[arg-type]
    context.run_with_tenant("a", work, "1")  # type: ignore[arg-type]
    context.run_with_tenant("a", work, z=1)  # type: ignore[call-arg]


def wrong(db: TenantDb, tenants: TenantManager, context: TenantContext[Info], config: TenantConfig) -> None:
    db.execute("SELECT 1")  # type: ignore[call-overload]
    db.scalars(User)  # type: ignore[call-overload]
    db.execute(select(User), "params")  # type: ignore[arg-type]
    first: User = db.scalar(select(User))  # type: ignore[assignment]
    numbers = db.scalars(select(User.id)).all()
    names: list[str] = [*numbers]  # type: ignore[list-item]
    tenants.get_db(7)  # type: ignore[arg-type]
    tenants.get_db(None)  # type: ignore[arg-type]
    tenants.create_tenant("a", "schema")  # type: ignore[call-arg]
    context.use_tenant("a", "ada")  # type: ignore[arg-type]
    context.get_tenant().data.user  # type: ignore[union-attr]  # noqa: B018
    TenantContext(config)  # type: ignore[arg-type]
    Migrator(config).migrate_all(on_error=lambda tenant, error: "stop")  # type: ignore[arg-type, return-value]
    config.schemas = config.schemas  # type: ignore[misc]
    del first, names
