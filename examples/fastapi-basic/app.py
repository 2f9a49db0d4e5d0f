"""A shop with a tenant per customer, who is named in a header."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Body, FastAPI, HTTPException, Path
from fastapi.responses import StreamingResponse
from models import Plan, User
from sqlalchemy import select
from tenant_config import config

from sqlalchemy_multitenant import AsyncTenantManager
from sqlalchemy_multitenant.integrations.extractors import from_header
from sqlalchemy_multitenant.integrations.fastapi import (
    AsyncSharedSession,
    AsyncTenantDbDep,
    AsyncTenantSession,
    TenantDep,
    install_tenancy,
    no_tenant,
)

# What PostgreSQL can store: else its error would be a 500.
NAME = r"^[^\x00]+$"
MAX_ID = 2**31 - 1

app = FastAPI(title="Shop")
tenancy = install_tenancy(
    app,
    AsyncTenantManager(config),
    extract_tenant_id=from_header("X-Tenant-ID"),
    public_paths=["/health"],
)


@app.get("/users")
async def users(session: AsyncTenantSession) -> list[str]:
    """The newest fifty."""
    return list(await session.scalars(select(User.name).order_by(User.id.desc()).limit(50)))


@app.post("/users", status_code=201)
async def add_user(
    name: Annotated[str, Body(embed=True, pattern=NAME)], session: AsyncTenantSession, tenant: TenantDep
) -> dict[str, str]:
    session.add(User(name=name))
    return {"tenant": tenant, "name": name}


@app.get("/users/{user_id}")
async def user(user_id: Annotated[int, Path(le=MAX_ID)], session: AsyncTenantSession) -> dict[str, int | str]:
    found = await session.get(User, user_id)
    if found is None:
        raise HTTPException(404, "no such user")
    return {"id": found.id, "name": found.name}


@app.get("/export")
async def export(db: AsyncTenantDbDep) -> StreamingResponse:
    """All users, a line each, in parts as they come from the database."""
    # Without yield_per, the ORM takes all rows into memory before it gives the first.
    names = select(User.name).order_by(User.id).execution_options(yield_per=500)

    async def lines() -> AsyncIterator[str]:
        # The request's own session has ended when the answer begins: a stream opens one for itself.
        async with db.session() as session:
            async for some in (await session.stream_scalars(names)).partitions():
                yield "".join(f"{name}\n" for name in some)

    return StreamingResponse(lines(), media_type="text/plain")


@app.get("/plans")
@no_tenant
async def plans(session: AsyncSharedSession) -> list[str]:
    """The same for all, from the shared schema."""
    return list(await session.scalars(select(Plan.name).order_by(Plan.id)))


@app.get("/health")
async def health() -> dict[str, str | None]:
    return {"status": "ok", "tenant": tenancy.context.get_tenant_or_none()}
