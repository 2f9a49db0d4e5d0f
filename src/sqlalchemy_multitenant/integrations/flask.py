"""Flask: `install_tenancy`, and the request's sessions. Needs the extra `flask`.

tenancy = install_tenancy(app, tenants, extract_tenant_id=from_header())

@app.get("/users")
def users():
    return list(tenant_session().scalars(select(User.name)))
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy.orm import Session

from ..context import CurrentTenant
from ..manager import TenantManager
from .extra import Extra
from .problem import HANDLED, problem_of
from .tenancy import Tenancy, is_marked, no_tenant
from .unit import UnitOfWork
from .wsgi import Environ, TenancyMiddleware

with Extra("flask"):
    from flask import Flask, Response
    from werkzeug.exceptions import HTTPException

__all__ = ["current_tenant", "install_tenancy", "no_tenant", "shared_session", "tenant_session"]


def install_tenancy(app: Flask, tenants: TenantManager, **options: Any) -> Tenancy:
    """Make the tenant of each request the current one, and answer what is wrong with it.

    Args:
        app: the application; its `extensions["tenancy"]` is what is returned.
        tenants: the manager. It is closed when the process ends.
        options: see `Tenancy`.
    """
    tenancy = Tenancy(tenants, **options)
    tenancy.is_marked_public = lambda environ: _is_marked(app, environ)
    app.wsgi_app = TenancyMiddleware(app.wsgi_app, tenancy)  # type: ignore[method-assign]
    app.extensions["tenancy"] = tenancy
    for kind in HANDLED:
        app.register_error_handler(kind, _answer)
    return tenancy


def _is_marked(app: Flask, environ: Environ) -> bool:
    try:
        endpoint, _ = app.url_map.bind_to_environ(environ).match()
    except HTTPException:
        return False
    return is_marked(app.view_functions.get(endpoint))


def _answer(error: Exception) -> Response:
    """What an error in a view means. Others are the application's own: status 500."""
    problem = problem_of(error)
    if problem is None:
        raise error
    return Response(problem.body, problem.status, problem.all_headers)


def tenant_session() -> Session:
    """The request's session of its tenant, one transaction: committed before the answer begins, rolled back
    on an error or a status of 400 or more.

    Raises:
        NoTenantError: the request has no tenant, or there is no request.
    """
    return cast("Session", UnitOfWork.current().session())


def shared_session() -> Session:
    """The same for the shared data; needs no tenant."""
    return cast("Session", UnitOfWork.current().session(shared=True))


def current_tenant() -> CurrentTenant[Any]:
    """The tenant: a `str`, with the application's own `data`.

    Raises:
        NoTenantError: the request has none.
    """
    return UnitOfWork.current().tenancy.context.get_tenant()
