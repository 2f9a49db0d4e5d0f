"""A service for keeping track of projects: companies sign up, and each is a tenant."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import accounts
import admin
import graphql_api
import jobs
import projects
from context import context, tenants
from fastapi import FastAPI

from sqlalchemy_multitenant.integrations.extractors import chain, from_subdomain
from sqlalchemy_multitenant.integrations.fastapi import install_tenancy


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    async with jobs.working():
        yield


app = FastAPI(title="Projects", lifespan=lifespan)
install_tenancy(
    app,
    tenants,
    context=context,
    # Where the host's name is a tenant's, it must be that of the token.
    extract_tenant_id=chain(accounts.from_token, from_subdomain([os.environ.get("DOMAIN") or "localhost"])),
    enrich_context=accounts.find_user,
    public_paths=["/health", "/signup", "/login", "/admin/*"],
)
app.include_router(accounts.router)
app.include_router(projects.router)
app.include_router(graphql_api.router, prefix="/graphql")
app.include_router(admin.router)


@app.get("/health")
async def health() -> dict[str, str | None]:
    return {"status": "ok", "tenant": context.get_tenant_or_none()}
