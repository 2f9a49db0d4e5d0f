"""The same small application under each framework: what it answers must not depend on that."""

# Without `from __future__ import annotations`: FastAPI and Litestar read annotations, and find in text only
# the names of the module.

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import AsyncTenantManager, MultitenantError, TenantManager
from sqlalchemy_multitenant.integrations.tenancy import Tenancy, no_tenant
from tests.models import Plan, User

NAMES = select(User.name).order_by(User.id)
PLANS = select(Plan.name).order_by(Plan.id)

# Each application has these endpoints:
#   GET  /health                 listed as public
#   GET  /plans                  marked with no_tenant; reads the shared data
#   GET  /users                  [tenant, user's data, names of users]
#   POST /users?name=&status=    adds a user, answers with the status; raise=true: by an exception
#   GET  /broken                 raises a ZeroDivisionError after adding a user
#   GET  /unique                 adds two users of one id: the commit fails
#   GET  /late                   adds a user, and leaves it to the commit to open a transaction
#   GET  /shared-only            reads the tenant's database on a public path
#   GET  /stream                 the tenant in ten parts, read from the context anew for each
#   GET  /own-error              raises an error of the application's own that is a MultitenantError


class OwnError(MultitenantError):
    """One that the integrations know nothing of."""


Make = Callable[..., tuple[Any, Tenancy]]


def fastapi_sync(tenants: TenantManager, **options: Any) -> tuple[Any, Tenancy]:
    from fastapi import FastAPI, HTTPException, Response
    from fastapi.responses import StreamingResponse

    from sqlalchemy_multitenant.integrations import fastapi as ours

    app = FastAPI()
    tenancy = ours.install_tenancy(app, tenants, **options)
    app.get("/health")(lambda: "ok")

    @app.get("/plans")
    @no_tenant
    def plans(session: ours.SharedSession) -> list[str]:
        return list(session.scalars(PLANS))

    @app.get("/users")
    def users(session: ours.TenantSession, tenant: ours.TenantDep, db: ours.TenantDbDep) -> list[Any]:
        assert db.tenant == tenant.id == tenancy.context.get_tenant().id
        return [tenant, tenant.data, list(session.scalars(NAMES))]

    @app.post("/users")
    def add(session: ours.TenantSession, name: str, status: int = 200, raised: bool = False) -> Response:
        session.add(User(name=name))
        session.flush()
        if raised:
            raise HTTPException(status)
        return Response(status_code=status)

    @app.get("/broken")
    def broken(session: ours.TenantSession) -> None:
        session.add(User(name="broken"))
        session.flush()
        raise ZeroDivisionError

    @app.get("/unique")
    def unique(session: ours.TenantSession) -> None:
        session.add(User(id=50, name="x"))
        session.flush()
        session.expunge_all()
        session.add(User(id=50, name="again"))

    @app.get("/late")
    def late(session: ours.TenantSession) -> None:
        session.add(User(name="late"))

    @app.get("/shared-only")
    @no_tenant
    def shared_only(session: ours.TenantSession) -> None:
        session.scalars(NAMES)

    @app.get("/stream")
    def stream() -> StreamingResponse:
        def parts() -> Iterator[str]:
            for _ in range(10):
                yield f"{tenancy.context.get_tenant()} "

        return StreamingResponse(parts())

    @app.get("/own-error")
    def own_error() -> None:
        raise OwnError("mine")

    return app, tenancy


def fastapi_async(tenants: AsyncTenantManager, **options: Any) -> tuple[Any, Tenancy]:
    from fastapi import FastAPI, HTTPException, Response
    from fastapi.responses import StreamingResponse

    from sqlalchemy_multitenant.integrations import fastapi as ours

    app = FastAPI()
    tenancy = ours.install_tenancy(app, tenants, **options)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.get("/plans")
    @no_tenant
    async def plans(session: ours.AsyncSharedSession) -> list[str]:
        return list(await session.scalars(PLANS))

    @app.get("/users")
    async def users(
        session: ours.AsyncTenantSession, tenant: ours.TenantDep, db: ours.AsyncTenantDbDep
    ) -> list[Any]:
        assert db.tenant == tenant.id == tenancy.context.get_tenant().id
        return [tenant, tenant.data, list(await session.scalars(NAMES))]

    @app.post("/users")
    async def add(
        session: ours.AsyncTenantSession, name: str, status: int = 200, raised: bool = False
    ) -> Response:
        session.add(User(name=name))
        await session.flush()
        if raised:
            raise HTTPException(status)
        return Response(status_code=status)

    @app.get("/broken")
    async def broken(session: ours.AsyncTenantSession) -> None:
        session.add(User(name="broken"))
        await session.flush()
        raise ZeroDivisionError

    @app.get("/unique")
    async def unique(session: ours.AsyncTenantSession) -> None:
        session.add(User(id=50, name="x"))
        await session.flush()
        session.expunge_all()
        session.add(User(id=50, name="again"))

    @app.get("/late")
    async def late(session: ours.AsyncTenantSession) -> None:
        session.add(User(name="late"))

    @app.get("/shared-only")
    @no_tenant
    async def shared_only(session: ours.AsyncTenantSession) -> None:
        await session.scalars(NAMES)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            for _ in range(10):
                yield f"{tenancy.context.get_tenant()} "

        return StreamingResponse(parts())

    @app.get("/own-error")
    async def own_error() -> None:
        raise OwnError("mine")

    return app, tenancy


def starlette(tenants: AsyncTenantManager, **options: Any) -> tuple[Any, Tenancy]:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Mount, Route

    from sqlalchemy_multitenant.integrations.starlette import install_tenancy, shared_session, tenant_session

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok")

    @no_tenant
    async def plans(_: Request) -> Response:
        return JSONResponse(list(await shared_session().scalars(PLANS)))

    async def users(_: Request) -> Response:
        tenant = tenancy.context.get_tenant()
        return JSONResponse([tenant, tenant.data, list(await tenant_session().scalars(NAMES))])

    async def add(request: Request) -> Response:
        tenant_session().add(User(name=request.query_params["name"]))
        await tenant_session().flush()
        status = int(request.query_params.get("status", "200"))
        if "raised" in request.query_params:
            raise HTTPException(status)
        return Response(status_code=status)

    async def broken(_: Request) -> Response:
        tenant_session().add(User(name="broken"))
        await tenant_session().flush()
        raise ZeroDivisionError

    async def unique(_: Request) -> Response:
        tenant_session().add(User(id=50, name="x"))
        await tenant_session().flush()
        tenant_session().expunge_all()
        tenant_session().add(User(id=50, name="again"))
        return Response()

    async def late(_: Request) -> Response:
        tenant_session().add(User(name="late"))
        return Response()

    @no_tenant
    async def shared_only(_: Request) -> Response:
        return JSONResponse(list(await tenant_session().scalars(NAMES)))

    async def stream(_: Request) -> Response:
        async def parts() -> AsyncIterator[str]:
            for _ in range(10):
                yield f"{tenancy.context.get_tenant()} "

        return StreamingResponse(parts())

    async def own_error(_: Request) -> Response:
        raise OwnError("mine")

    routes = [
        Route("/health", health),
        Mount("/", routes=[Route("/plans", plans)]),
        Route("/users", users),
        Route("/users", add, methods=["POST"]),
        Route("/broken", broken),
        Route("/unique", unique),
        Route("/late", late),
        Route("/shared-only", shared_only),
        Route("/stream", stream),
        Route("/own-error", own_error),
    ]
    # A mount at the root takes all that the routes before it do not: last.
    routes.append(routes.pop(1))
    app = Starlette(routes=routes)
    tenancy = install_tenancy(app, tenants, **options)
    return app, tenancy


def litestar(tenants: AsyncTenantManager, **options: Any) -> tuple[Any, Tenancy]:
    from litestar import Litestar, Response, get, post
    from litestar.exceptions import HTTPException
    from litestar.params import FromQuery
    from litestar.response import Stream

    from sqlalchemy_multitenant.integrations import litestar as ours

    plugin = ours.TenancyPlugin(tenants, **options)
    tenancy = plugin.tenancy

    @get("/health", sync_to_thread=False)
    def health() -> str:
        return "ok"

    @get("/plans")
    @no_tenant
    async def plans(shared_session: ours.AsyncSharedSession) -> list[str]:
        return list(await shared_session.scalars(PLANS))

    @get("/users")
    async def users(tenant_session: ours.AsyncTenantSession, tenant: ours.TenantDep) -> list[Any]:
        return [tenant, tenant.data, list(await tenant_session.scalars(NAMES))]

    @post("/users")
    async def add(
        tenant_session: ours.AsyncTenantSession,
        name: FromQuery[str],
        status: FromQuery[int] = 200,
        raised: FromQuery[bool] = False,
    ) -> Response[None]:
        tenant_session.add(User(name=name))
        await tenant_session.flush()
        if raised:
            raise HTTPException(status_code=status)
        return Response(None, status_code=status)

    @get("/broken")
    async def broken(tenant_session: ours.AsyncTenantSession) -> None:
        tenant_session.add(User(name="broken"))
        await tenant_session.flush()
        raise ZeroDivisionError

    @get("/unique")
    async def unique(tenant_session: ours.AsyncTenantSession) -> None:
        tenant_session.add(User(id=50, name="x"))
        await tenant_session.flush()
        tenant_session.expunge_all()
        tenant_session.add(User(id=50, name="again"))

    @get("/late")
    async def late(tenant_session: ours.AsyncTenantSession) -> None:
        tenant_session.add(User(name="late"))

    @get("/shared-only")
    @no_tenant
    async def shared_only(tenant_session: ours.AsyncTenantSession) -> list[str]:
        return list(await tenant_session.scalars(NAMES))

    @get("/stream")
    async def stream() -> Stream:
        async def parts() -> AsyncIterator[str]:
            for _ in range(10):
                yield f"{tenancy.context.get_tenant()} "

        return Stream(parts())

    @get("/own-error")
    async def own_error() -> None:
        raise OwnError("mine")

    handlers = [health, plans, users, add, broken, unique, late, shared_only, stream, own_error]
    return Litestar(handlers, plugins=[plugin]), tenancy


def quart(tenants: AsyncTenantManager, **options: Any) -> tuple[Any, Tenancy]:
    from quart import Quart, abort, request

    from sqlalchemy_multitenant.integrations.quart import install_tenancy, shared_session, tenant_session

    app = Quart(__name__)
    tenancy = install_tenancy(app, tenants, **options)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.get("/plans")
    @no_tenant
    async def plans() -> Any:
        return list(await shared_session().scalars(PLANS))

    @app.get("/users")
    async def users() -> Any:
        tenant = tenancy.context.get_tenant()
        return [tenant, tenant.data, list(await tenant_session().scalars(NAMES))]

    @app.post("/users")
    async def add() -> Any:
        tenant_session().add(User(name=request.args["name"]))
        await tenant_session().flush()
        status = int(request.args.get("status", "200"))
        if "raised" in request.args:
            abort(status)
        return "", status

    @app.get("/broken")
    async def broken() -> Any:
        tenant_session().add(User(name="broken"))
        await tenant_session().flush()
        raise ZeroDivisionError

    @app.get("/unique")
    async def unique() -> Any:
        tenant_session().add(User(id=50, name="x"))
        await tenant_session().flush()
        tenant_session().expunge_all()
        tenant_session().add(User(id=50, name="again"))
        return ""

    @app.get("/late")
    async def late() -> Any:
        tenant_session().add(User(name="late"))
        return ""

    @app.get("/shared-only")
    @no_tenant
    async def shared_only() -> Any:
        return list(await tenant_session().scalars(NAMES))

    @app.get("/stream")
    async def stream() -> Any:
        async def parts() -> AsyncIterator[str]:
            for _ in range(10):
                yield f"{tenancy.context.get_tenant()} "

        return parts()

    @app.get("/own-error")
    async def own_error() -> Any:
        raise OwnError("mine")

    return app, tenancy


def flask(tenants: TenantManager, **options: Any) -> tuple[Any, Tenancy]:
    from flask import Flask, Response, abort, request

    from sqlalchemy_multitenant.integrations.flask import (
        current_tenant,
        install_tenancy,
        shared_session,
        tenant_session,
    )

    app = Flask(__name__)
    tenancy = install_tenancy(app, tenants, **options)

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.get("/plans")
    @no_tenant
    def plans() -> Any:
        return list(shared_session().scalars(PLANS))

    @app.get("/users")
    def users() -> Any:
        tenant = current_tenant()
        return [tenant, tenant.data, list(tenant_session().scalars(NAMES))]

    @app.post("/users")
    def add() -> Any:
        session: Session = tenant_session()
        session.add(User(name=request.args["name"]))
        session.flush()
        status = int(request.args.get("status", "200"))
        if "raised" in request.args:
            abort(status)
        return "", status

    @app.get("/broken")
    def broken() -> Any:
        tenant_session().add(User(name="broken"))
        tenant_session().flush()
        raise ZeroDivisionError

    @app.get("/unique")
    def unique() -> Any:
        tenant_session().add(User(id=50, name="x"))
        tenant_session().flush()
        tenant_session().expunge_all()
        tenant_session().add(User(id=50, name="again"))
        return ""

    @app.get("/late")
    def late() -> Any:
        tenant_session().add(User(name="late"))
        return ""

    @app.get("/shared-only")
    @no_tenant
    def shared_only() -> Any:
        return list(tenant_session().scalars(NAMES))

    @app.get("/stream")
    def stream() -> Response:
        def parts() -> Iterator[str]:
            for _ in range(10):
                yield f"{tenancy.context.get_tenant()} "

        return Response(parts())

    @app.get("/own-error")
    def own_error() -> Any:
        raise OwnError("mine")

    return app, tenancy


APPS: dict[str, Make] = {
    "fastapi-sync": fastapi_sync,
    "fastapi-async": fastapi_async,
    "starlette": starlette,
    "litestar": litestar,
    "quart": quart,
    "flask": flask,
}
SYNC = ("fastapi-sync", "flask")
