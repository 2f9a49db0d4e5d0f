"""FastAPI: `install_tenancy` and typed dependencies. Needs the extra `fastapi`.

    tenancy = install_tenancy(app, tenants, extract_tenant_id=from_header())

    @app.get("/users")
    def users(session: TenantSession) -> list[str]:
        return list(session.scalars(select(User.name)))

Endpoints may be sync or async. With an `AsyncTenantManager` the dependencies are those whose names begin with
`Async`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ..context import CurrentTenant
from ..database import TenantDb
from ..database_async import AsyncTenantDb
from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from .extra import Extra
from .extractors import Extractor, is_one_of_several, openapi_parameters
from .tenancy import Tenancy, is_marked, no_tenant
from .unit import UnitOfWork

with Extra("fastapi"):
    from fastapi import Depends, FastAPI
    from fastapi.routing import APIRoute

    from . import starlette

__all__ = [
    "AsyncSharedSession",
    "AsyncTenantDbDep",
    "AsyncTenantSession",
    "SharedSession",
    "TenantDbDep",
    "TenantDep",
    "TenantSession",
    "install_tenancy",
    "no_tenant",
    "require_tenant",
]


def install_tenancy(
    app: FastAPI,
    tenants: TenantManager | AsyncTenantManager,
    *,
    extract_tenant_id: Extractor,
    public_paths: list[str] | tuple[str, ...] = (),
    **options: Any,
) -> Tenancy:
    """Make the tenant of each request the current one, answer what is wrong with it, show in the API's
    description where it stands, and close the manager when the server stops.

    Args:
        app: the application; its `state.tenancy` is what is returned.
        tenants: the manager.
        extract_tenant_id: finds the id in a request, such as `from_header()`.
        public_paths: paths that need no tenant, besides those of the API's description.
        options: see `Tenancy`.
    """
    own = [app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url]
    tenancy = Tenancy(
        tenants,
        extract_tenant_id=extract_tenant_id,
        public_paths=[*public_paths, *(path for path in own if path)],
        **options,
    )
    app.openapi = _describing(app, tenancy, extract_tenant_id)  # type: ignore[method-assign]
    return starlette.install(app, tenancy)


def _describing(app: FastAPI, tenancy: Tenancy, extract: Extractor) -> Callable[[], dict[str, Any]]:
    """The API's description, with the parameter that names the tenant."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        found = openapi_parameters(extract)
        public = {r.path for r in app.routes if isinstance(r, APIRoute) and is_marked(r.endpoint)}
        for path, operations in document.get("paths", {}).items():
            if path in public or tenancy.is_public_path(path):
                continue
            for operation in operations.values():
                parameters = operation.setdefault("parameters", [])
                known = {(p.get("in"), p.get("name")) for p in parameters}
                for place in found:
                    if (place["in"], place["name"]) not in known:
                        schema = {"type": "string", "title": "Tenant"}
                        # Of several places one will do.
                        is_required = len(found) == 1 and not is_one_of_several(extract)
                        parameters.append({**place, "required": is_required, "schema": schema})
        return document

    return openapi


def require_tenant() -> CurrentTenant[Any]:
    """A guard: `dependencies=[Depends(require_tenant)]`. Without a tenant, the answer is 400."""
    return UnitOfWork.current().tenancy.context.get_tenant()


# Coroutine functions, though they await nothing: FastAPI runs others in a thread, which takes longer.


async def _tenant() -> Any:
    return require_tenant()


async def _tenant_session() -> Any:
    return UnitOfWork.current().session()


async def _shared_session() -> Any:
    return UnitOfWork.current().session(shared=True)


async def _tenant_db() -> Any:
    return UnitOfWork.current().tenancy.context.get_tenant_db()


TenantDep = Annotated[CurrentTenant[Any], Depends(_tenant)]
"""The tenant: a `str`, with the application's own `data`."""

TenantSession = Annotated[Session, Depends(_tenant_session)]
"""The tenant's session, one transaction a request: committed before the answer begins, rolled back on an
error or a status of 400 or more."""

AsyncTenantSession = Annotated[AsyncSession, Depends(_tenant_session)]
"""The same of an `AsyncTenantManager`."""

SharedSession = Annotated[Session, Depends(_shared_session)]
"""A session of the shared data; needs no tenant."""

AsyncSharedSession = Annotated[AsyncSession, Depends(_shared_session)]
"""The same of an `AsyncTenantManager`."""

TenantDbDep = Annotated[TenantDb, Depends(_tenant_db)]
"""The tenant's `TenantDb`, for transactions of one's own."""

AsyncTenantDbDep = Annotated[AsyncTenantDb, Depends(_tenant_db)]
"""The same of an `AsyncTenantManager`."""
