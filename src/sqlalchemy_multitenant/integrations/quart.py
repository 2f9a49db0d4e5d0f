"""Quart: `install_tenancy`, and the request's sessions. Needs the extra `quart`.

tenancy = install_tenancy(app, tenants, extract_tenant_id=from_header())

@app.get("/users")
async def users():
    return list(await tenant_session().scalars(select(User.name)))
"""

from __future__ import annotations

from typing import Any

from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from .asgi import Scope, TenancyMiddleware
from .extra import Extra
from .problem import HANDLED, problem_of
from .tenancy import Tenancy, is_marked, no_tenant
from .unit import shared_session, tenant_session

with Extra("quart"):
    from quart import Quart, Response
    from werkzeug.datastructures import Headers
    from werkzeug.exceptions import HTTPException

__all__ = ["install_tenancy", "no_tenant", "shared_session", "tenant_session"]


def install_tenancy(app: Quart, tenants: TenantManager | AsyncTenantManager, **options: Any) -> Tenancy:
    """Make the tenant of each request the current one, answer what is wrong with it, and close the manager
    when the server stops.

    Args:
        app: the application; its `extensions["tenancy"]` is what is returned.
        tenants: the manager.
        options: see `Tenancy`.
    """
    tenancy = Tenancy(tenants, **options)
    tenancy.is_marked_public = lambda scope: _is_marked(app, scope)
    app.asgi_app = TenancyMiddleware(app.asgi_app, tenancy)  # type: ignore[method-assign,arg-type,assignment]
    app.extensions["tenancy"] = tenancy
    for kind in HANDLED:
        app.register_error_handler(kind, _answer)
    return tenancy


def _is_marked(app: Quart, scope: Scope) -> bool:
    adapter = app.url_map.bind("", url_scheme=scope.get("scheme", "http"))
    try:
        endpoint, _ = adapter.match(scope["path"], method=scope.get("method", "GET"))
    except HTTPException:
        return False
    return is_marked(app.view_functions.get(endpoint))


async def _answer(error: Exception) -> Response:
    """What an error in a view means. Others are the application's own: status 500."""
    problem = problem_of(error)
    if problem is None:
        raise error
    return Response(problem.body, problem.status, Headers(problem.all_headers))
