"""Starlette: `install_tenancy(app, tenants, extract_tenant_id=...)`. Needs the extra `starlette`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from .asgi import Scope, TenancyMiddleware
from .extra import Extra
from .tenancy import Tenancy, is_marked, no_tenant
from .unit import shared_session, tenant_session

with Extra("starlette"):
    from starlette.routing import Match

__all__ = ["install_tenancy", "no_tenant", "shared_session", "tenant_session"]

if TYPE_CHECKING:
    from starlette.applications import Starlette

AppT = TypeVar("AppT", bound="Starlette")


def install_tenancy(app: Starlette, tenants: TenantManager | AsyncTenantManager, **options: Any) -> Tenancy:
    """Make the tenant of each request the current one, and close the manager when the server stops.

    Args:
        app: the application; its `state.tenancy` is what is returned.
        tenants: the manager.
        options: see `Tenancy`.
    """
    return install(app, Tenancy(tenants, **options))


def install(app: Starlette, tenancy: Tenancy) -> Tenancy:
    """Add the middleware, and let `no_tenant` mark endpoints."""
    tenancy.is_marked_public = lambda scope: _is_marked(app.routes, scope)
    app.add_middleware(TenancyMiddleware, tenancy=tenancy)
    app.state.tenancy = tenancy
    return tenancy


def _is_marked(routes: Any, scope: Scope) -> bool:
    for route in routes:
        match, child = route.matches(scope)
        if match is Match.FULL:
            inner = getattr(route, "routes", None)
            if inner:
                return _is_marked(inner, {**scope, **child})
            return is_marked(child.get("endpoint", getattr(route, "endpoint", None)))
    return False
