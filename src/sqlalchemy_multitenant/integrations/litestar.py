"""Litestar: a plugin, with the request's sessions as dependencies. Needs the extra `litestar`.

    app = Litestar([users], plugins=[TenancyPlugin(tenants, extract_tenant_id=from_header())])

    @get("/users")
    async def users(tenant_session: AsyncTenantSession) -> list[str]:
        return list(await tenant_session.scalars(select(User.name)))

Litestar goes by the names of parameters: `tenant_session`, `shared_session`, `tenant_db` and `tenant`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ..context import CurrentTenant
from ..database import TenantDb
from ..database_async import AsyncTenantDb
from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from .asgi import Scope, TenancyMiddleware
from .extra import Extra
from .problem import HANDLED, problem_of
from .tenancy import Tenancy, is_marked, no_tenant
from .unit import UnitOfWork

with Extra("litestar"):
    from litestar import Request, Response
    from litestar.config.app import AppConfig
    from litestar.di import NamedDependency, Provide
    from litestar.middleware import DefineMiddleware
    from litestar.plugins import InitPlugin

__all__ = [
    "AsyncSharedSession",
    "AsyncTenantDbDep",
    "AsyncTenantSession",
    "SharedSession",
    "TenancyPlugin",
    "TenantDbDep",
    "TenantDep",
    "TenantSession",
    "no_tenant",
]


class TenancyPlugin(InitPlugin):
    """Makes the tenant of each request the current one, answers what is wrong with it, and closes the manager
    when the server stops.

    Attributes:
        tenancy: what it is built on.
    """

    def __init__(self, tenants: TenantManager | AsyncTenantManager, **options: Any) -> None:
        """
        Args:
            tenants: the manager.
            options: see `Tenancy`.
        """
        self.tenancy = Tenancy(tenants, **options)

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Called by Litestar."""
        self.tenancy.is_marked_public = _is_marked
        if (openapi := app_config.openapi_config) is not None:
            path = openapi.openapi_router.path if openapi.openapi_router else openapi.path or "/schema"
            self.tenancy.add_public_paths(path, f"{path}/*")
        middleware: Any = TenancyMiddleware  # whose types are the specification's, and not Litestar's own
        app_config.middleware.insert(0, DefineMiddleware(middleware, tenancy=self.tenancy))
        for name, provide in _PROVIDERS.items():
            app_config.dependencies.setdefault(name, Provide(provide, use_cache=False))
        for kind in HANDLED:
            app_config.exception_handlers.setdefault(kind, _answer)
        if self.tenancy.close_on_shutdown:
            app_config.on_shutdown.append(self._close)
        return app_config

    async def _close(self) -> None:
        await self.tenancy.close()


def _is_marked(scope: Scope) -> bool:
    handler = scope.get("route_handler")
    return is_marked(getattr(handler, "fn", None)) or bool(getattr(handler, "opt", {}).get("no_tenant"))


def _answer(_request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """What an error in a handler means. Others are the application's own: status 500."""
    problem = problem_of(error)
    if problem is None:
        raise error
    headers = dict(problem.headers)
    return Response(
        problem.body, status_code=problem.status, media_type="application/problem+json", headers=headers
    )


async def _tenant_session() -> Any:
    return UnitOfWork.current().session()


async def _shared_session() -> Any:
    return UnitOfWork.current().session(shared=True)


async def _tenant_db() -> Any:
    return UnitOfWork.current().tenancy.context.get_tenant_db()


async def _tenant() -> Any:
    return UnitOfWork.current().tenancy.context.get_tenant()


_PROVIDERS = {
    "tenant_session": _tenant_session,
    "shared_session": _shared_session,
    "tenant_db": _tenant_db,
    "tenant": _tenant,
}

TenantSession = NamedDependency[Session]
"""Of `tenant_session`, one transaction a request: committed before the answer begins, rolled back on an error
or a status of 400 or more."""

AsyncTenantSession = NamedDependency[AsyncSession]
"""The same of an `AsyncTenantManager`."""

SharedSession = NamedDependency[Session]
"""Of `shared_session`, a session of the shared data; needs no tenant."""

AsyncSharedSession = NamedDependency[AsyncSession]
"""The same of an `AsyncTenantManager`."""

TenantDbDep = NamedDependency[TenantDb]
"""Of `tenant_db`, for transactions of one's own."""

AsyncTenantDbDep = NamedDependency[AsyncTenantDb]
"""The same of an `AsyncTenantManager`."""

TenantDep = NamedDependency[CurrentTenant[Any]]
"""Of `tenant`: a `str`, with the application's own `data`."""
