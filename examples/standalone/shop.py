"""What the shop does: plain functions, which name no tenant."""

from models import Plan, User
from sqlalchemy import func, select
from tenant_config import config

from sqlalchemy_multitenant import CrossSchemaQuery, TenantContext, TenantManager, for_all_tenants, optional

tenants = TenantManager(config)
context = TenantContext(tenants)


def add_plan(name: str) -> None:
    """In the shared schema, unless it is there."""
    with context.get_shared_db().begin() as session:
        if session.scalar(select(Plan).where(Plan.name == name)) is None:
            session.add(Plan(name=name))


def add_user(name: str, plan: str | None = None) -> None:
    """For the current tenant, in one transaction."""
    with context.get_tenant_db().begin() as session:
        # A tenant sees the shared tables beside its own.
        plan_id = session.scalar(select(Plan.id).where(Plan.name == plan))
        session.add(User(name=name, plan_id=plan_id))


def users() -> list[tuple[str, str | None]]:
    """Of the current tenant, with the plans they are on."""
    query = (
        CrossSchemaQuery(context.get_tenant_db(), context.get_shared_db())
        .from_("tenant", User)
        .left_join("shared", Plan)
    )
    return query.select(User.name, optional(Plan.name)).order_by(User.id).all()


def count_users() -> dict[str, int]:
    """Of every tenant, in one statement."""
    return dict(for_all_tenants(tenants, select(func.count()).select_from(User)))
