"""A client for an application in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection

from sqlalchemy_multitenant import AsyncTenantManager, TenantManager
from sqlalchemy_multitenant.integrations.extractors import from_header
from sqlalchemy_multitenant.integrations.tenancy import Tenancy
from tests.conftest import MakeConfig
from tests.web.apps import APPS, SYNC


@dataclass
class Client:
    """Asks an application.

    Attributes:
        app: the application.
        tenancy: of it.
    """

    app: Any
    tenancy: Tenancy
    runner: asyncio.Runner
    name: str
    seen: list[httpx.Response] = field(default_factory=list)

    def ask(
        self,
        path: str,
        tenant: str | None = None,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request, in a new connection."""
        sent = dict(headers or {}) | ({"X-Tenant-ID": tenant} if tenant is not None else {})
        if self.name == "flask":
            transport: Any = httpx.WSGITransport(self.app, raise_app_exceptions=False)
            with httpx.Client(transport=transport, base_url="http://test") as client:
                try:
                    return client.request(method, path, headers=sent)
                except Exception:
                    return httpx.Response(500)  # as a server answers
        return self.runner.run(self._ask(method, path, sent))

    async def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=headers)

    @contextmanager
    def holding(self, tenant: str) -> Iterator[None]:
        """A transaction of the tenant's, beside the application's own."""
        tenants = self.tenancy.tenants
        if isinstance(tenants, TenantManager):
            with tenants.get_db(tenant).connect() as connection:
                connection.execute(text("SELECT 1"))
                yield
            return
        stack = AsyncExitStack()
        held = self.runner.run(stack.enter_async_context(tenants.get_db(tenant).connect()))
        try:
            self.runner.run(_begin(held))
            yield
        finally:
            self.runner.run(stack.aclose())

    def names(self, tenant: str) -> list[str]:
        """The users of a tenant, as the application has them."""
        response = self.ask("/users", tenant)
        assert response.status_code == 200, response.text
        found: list[str] = response.json()[2]
        return found


async def _begin(connection: AsyncConnection) -> None:
    await connection.execute(text("SELECT 1"))


MakeClient = Callable[..., Client]


@pytest.fixture(params=APPS)
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_client(framework: str, make_config: MakeConfig, url: URL) -> Iterator[MakeClient]:
    """Builds applications of a framework on the test's database; options go to the tenancy."""
    runner = asyncio.Runner()
    clients: list[Client] = []

    def make(*, pool_size: int = 1, pool_timeout_s: float = 2, **options: Any) -> Client:
        options = {"extract_tenant_id": from_header(), "public_paths": ["/health"], **options}
        config = make_config(url=url, pool_size=pool_size, pool_timeout_s=pool_timeout_s)
        tenants = TenantManager(config) if framework in SYNC else AsyncTenantManager(config)
        app, tenancy = APPS[framework](tenants, **options)
        clients.append(Client(app, tenancy, runner, framework))
        return clients[-1]

    yield make
    for client in clients:
        tenants = client.tenancy.tenants
        if isinstance(tenants, AsyncTenantManager):
            runner.run(tenants.close())
        else:
            tenants.close()
    runner.close()


@pytest.fixture
def client(make_client: MakeClient) -> Client:
    """An application with one connection, whose tenant is in a header."""
    return make_client()
