"""The servers that `web` measures: an endpoint that reads one row, with the middleware and its dependency,
and with a plain session; each in one transaction, which is committed.

`uvicorn benchmarks.web_apps:app`, configured by the environment.
"""

# Without `from __future__ import annotations`: FastAPI reads annotations, and finds in text only the names of
# the module.

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from flask import Flask
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_multitenant import AsyncTenantManager, TenantManager
from sqlalchemy_multitenant.integrations.extractors import from_header
from sqlalchemy_multitenant.integrations.fastapi import AsyncTenantSession, TenantSession, install_tenancy
from sqlalchemy_multitenant.integrations.flask import install_tenancy as install_in_flask
from sqlalchemy_multitenant.integrations.flask import tenant_session

from .database import Base, User, make_config

POOL = 10


def _url() -> Any:
    return make_url(os.environ["BENCH_DATABASE"])


def _tenancy(kind: type[Any]) -> dict[str, Any]:
    config = make_config(_url(), Path(os.environ["BENCH_FOLDER"]), Base, pool_size=POOL)
    return {"tenants": kind(config), "extract_tenant_id": from_header()}


def _pinned() -> dict[str, Any]:
    """As one writes it by hand for one schema: the path goes with the connection."""
    arguments = {"options": "-csearch_path=tenant_t0", "prepare_threshold": None}
    return {"pool_size": POOL, "max_overflow": 0, "connect_args": arguments}


def fastapi_async_ours() -> FastAPI:
    app = FastAPI()
    install_tenancy(app, **_tenancy(AsyncTenantManager))

    @app.get("/users/{user_id}")
    async def user(user_id: int, session: AsyncTenantSession) -> str:
        return (await session.get_one(User, user_id)).name

    return app


def fastapi_async_plain() -> FastAPI:
    app = FastAPI()
    make = async_sessionmaker(create_async_engine(_url(), **_pinned()))

    async def open_session() -> AsyncIterator[AsyncSession]:
        async with make.begin() as session:
            yield session

    @app.get("/users/{user_id}")
    async def user(user_id: int, session: Annotated[AsyncSession, Depends(open_session)]) -> str:
        return (await session.get_one(User, user_id)).name

    return app


def fastapi_sync_ours() -> FastAPI:
    app = FastAPI()
    install_tenancy(app, **_tenancy(TenantManager))

    @app.get("/users/{user_id}")
    def user(user_id: int, session: TenantSession) -> str:
        return session.get_one(User, user_id).name

    return app


def fastapi_sync_plain() -> FastAPI:
    app = FastAPI()
    make = sessionmaker(create_engine(_url(), **_pinned()))

    def open_session() -> Iterator[Session]:
        with make.begin() as session:
            yield session

    @app.get("/users/{user_id}")
    def user(user_id: int, session: Annotated[Session, Depends(open_session)]) -> str:
        return session.get_one(User, user_id).name

    return app


def flask_ours() -> Flask:
    app = Flask("ours")
    install_in_flask(app, **_tenancy(TenantManager))

    @app.get("/users/<int:user_id>")
    def user(user_id: int) -> str:
        return tenant_session().get_one(User, user_id).name

    return app


def flask_plain() -> Flask:
    app = Flask("plain")
    make = sessionmaker(create_engine(_url(), **_pinned()))

    @app.get("/users/<int:user_id>")
    def user(user_id: int) -> str:
        with make.begin() as session:
            return session.get_one(User, user_id).name

    return app


APPS: dict[str, Callable[[], FastAPI | Flask]] = {
    "fastapi async ours": fastapi_async_ours,
    "fastapi async plain": fastapi_async_plain,
    "fastapi sync ours": fastapi_sync_ours,
    "fastapi sync plain": fastapi_sync_plain,
    "flask ours": flask_ours,
    "flask plain": flask_plain,
}

if name := os.environ.get("BENCH_APP"):
    app = APPS[name]()
