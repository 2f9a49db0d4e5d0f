"""What type checkers infer for the integrations and the fixtures; read by them alone, see
tests/unit/test_typing.py."""

from __future__ import annotations

from typing import Any, assert_type

import psycopg
from fastapi import FastAPI
from flask import Flask
from procrastinate import App, PsycopgConnector
from sqlalchemy import ScalarResult, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import (
    AsyncTenantDb,
    AsyncTenantManager,
    CurrentTenant,
    TenantConfig,
    TenantDb,
    TenantManager,
)
from sqlalchemy_multitenant.integrations import fastapi as for_fastapi
from sqlalchemy_multitenant.integrations import flask as for_flask
from sqlalchemy_multitenant.integrations import litestar as for_litestar
from sqlalchemy_multitenant.integrations import procrastinate as for_procrastinate
from sqlalchemy_multitenant.integrations.extractors import chain, from_header, from_jwt
from sqlalchemy_multitenant.integrations.tenancy import Tenancy, no_tenant
from sqlalchemy_multitenant.testing import assert_isolated, assert_isolated_async
from tests.models import User


def endpoints_of_fastapi(
    session: for_fastapi.TenantSession,
    async_session: for_fastapi.AsyncTenantSession,
    shared: for_fastapi.SharedSession,
    async_shared: for_fastapi.AsyncSharedSession,
    db: for_fastapi.TenantDbDep,
    async_db: for_fastapi.AsyncTenantDbDep,
    tenant: for_fastapi.TenantDep,
) -> None:
    assert_type(session, Session)
    assert_type(async_session, AsyncSession)
    assert_type(shared, Session)
    assert_type(async_shared, AsyncSession)
    assert_type(db, TenantDb)
    assert_type(async_db, AsyncTenantDb)
    assert_type(tenant, CurrentTenant[Any])
    assert_type(session.scalars(select(User.name)), ScalarResult[str])


def handlers_of_litestar(
    tenant_session: for_litestar.TenantSession, async_session: for_litestar.AsyncTenantSession
) -> None:
    assert_type(tenant_session, Session)
    assert_type(async_session, AsyncSession)


def views_of_flask() -> None:
    assert_type(for_flask.tenant_session(), Session)
    assert_type(for_flask.shared_session(), Session)
    assert_type(for_flask.current_tenant(), CurrentTenant[Any])


def installation(tenants: TenantManager, async_tenants: AsyncTenantManager) -> None:
    extract = chain(from_jwt("key", algorithm="HS256"), from_header())
    assert_type(for_fastapi.install_tenancy(FastAPI(), tenants, extract_tenant_id=extract), Tenancy)
    assert_type(for_fastapi.install_tenancy(FastAPI(), async_tenants, extract_tenant_id=extract), Tenancy)
    assert_type(for_flask.install_tenancy(Flask("x"), tenants, extract_tenant_id=extract), Tenancy)
    for_flask.install_tenancy(Flask("x"), async_tenants)  # type: ignore[arg-type]
    for_fastapi.install_tenancy(FastAPI(), tenants)  # type: ignore[call-arg]


@no_tenant
def marked(number: int) -> str:
    return str(number)


def marks() -> None:
    assert_type(marked(1), str)
    marked("1")  # type: ignore[arg-type]


async def jobs(
    config: TenantConfig, tenants: AsyncTenantManager, session: Session, async_session: AsyncSession
) -> None:
    app = App(connector=for_procrastinate.make_connector(config))
    assert_type(for_procrastinate.make_connector(config), PsycopgConnector)
    tenancy = for_procrastinate.install_tenancy(app, tenants)
    assert_type(tenancy, for_procrastinate.ProcrastinateTenancy)
    assert_type(for_procrastinate.connection_of(session), psycopg.Connection[Any])
    assert_type(await for_procrastinate.connection_of(async_session), psycopg.AsyncConnection[Any])


def isolation(a: TenantDb, b: TenantDb, c: AsyncTenantDb) -> None:
    def write(db: TenantDb, word: str) -> None: ...
    def read(db: TenantDb) -> list[str]:
        return []

    assert_isolated(a, b, write=write, read=read)
    assert_isolated(a, c, write=write, read=read)  # type: ignore[arg-type]
    assert_isolated(a, b, write=read, read=read)  # type: ignore[arg-type]


async def isolation_async(a: AsyncTenantDb, b: AsyncTenantDb) -> None:
    async def write(db: AsyncTenantDb, word: str) -> None: ...
    async def read(db: AsyncTenantDb) -> list[str]:
        return []

    await assert_isolated_async(a, b, write=write, read=read)
    await assert_isolated_async(a, b, write=lambda db, word: word, read=read)  # type: ignore[arg-type,return-value]
