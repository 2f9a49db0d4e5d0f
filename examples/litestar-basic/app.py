"""A shop with a tenant per customer, who is named in a header."""

from collections.abc import AsyncIterator
from typing import Annotated

from litestar import Litestar, get, post
from litestar.exceptions import NotFoundException
from litestar.logging import LoggingConfig
from litestar.params import PathParameter
from litestar.response import Stream
from models import Plan, User
from msgspec import Meta, Struct
from sqlalchemy import select
from tenant_config import config

from sqlalchemy_multitenant import AsyncTenantManager
from sqlalchemy_multitenant.integrations.extractors import from_header
from sqlalchemy_multitenant.integrations.litestar import (
    AsyncSharedSession,
    AsyncTenantDbDep,
    AsyncTenantSession,
    TenancyPlugin,
    TenantDep,
    no_tenant,
)

plugin = TenancyPlugin(
    AsyncTenantManager(config),
    extract_tenant_id=from_header("X-Tenant-ID"),
    public_paths=["/health"],
)


class NewUser(Struct):
    name: Annotated[str, Meta(pattern=r"^[^\x00]+$")]


@get("/users")
async def users(tenant_session: AsyncTenantSession) -> list[str]:
    """The newest fifty."""
    return list(await tenant_session.scalars(select(User.name).order_by(User.id.desc()).limit(50)))


@post("/users")
async def add_user(data: NewUser, tenant_session: AsyncTenantSession, tenant: TenantDep) -> dict[str, str]:
    tenant_session.add(User(name=data.name))
    return {"tenant": tenant, "name": data.name}


@get("/users/{user_id:int}")
async def user(
    user_id: Annotated[int, PathParameter(le=2**31 - 1)], tenant_session: AsyncTenantSession
) -> dict[str, int | str]:
    found = await tenant_session.get(User, user_id)
    if found is None:
        raise NotFoundException("no such user")
    return {"id": found.id, "name": found.name}


@get("/export", media_type="text/plain")
async def export(tenant_db: AsyncTenantDbDep) -> Stream:
    """All users, a line each, in parts as they come from the database."""
    # Without yield_per, the ORM takes all rows into memory before it gives the first.
    names = select(User.name).order_by(User.id).execution_options(yield_per=500)

    async def lines() -> AsyncIterator[str]:
        # The request's own session has ended when the answer begins: a stream opens one for itself.
        async with tenant_db.session() as session:
            async for some in (await session.stream_scalars(names)).partitions():
                yield "".join(f"{name}\n" for name in some)

    return Stream(lines(), media_type="text/plain")


@get("/plans")
@no_tenant
async def plans(shared_session: AsyncSharedSession) -> list[str]:
    """The same for all, from the shared schema."""
    return list(await shared_session.scalars(select(Plan.name).order_by(Plan.id)))


@get("/health")
async def health() -> dict[str, str | None]:
    return {"status": "ok", "tenant": plugin.tenancy.context.get_tenant_or_none()}


app = Litestar(
    [users, add_user, user, export, plans, health],
    plugins=[plugin],
    # Otherwise Litestar answers 500 and does not say why.
    logging_config=LoggingConfig(log_exceptions="always", disable_stack_trace={400, 404, 405}),
)
