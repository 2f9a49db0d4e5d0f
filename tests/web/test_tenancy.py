"""What an application answers, under each framework."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import jwt
import pytest
from sqlalchemy import Engine, text

from sqlalchemy_multitenant import NoTenantError, TenantManager
from sqlalchemy_multitenant.integrations.extractors import chain, from_header, from_jwt, from_path
from sqlalchemy_multitenant.integrations.request import TenantRequest
from sqlalchemy_multitenant.integrations.unit import UnitOfWork
from tests.models import Plan
from tests.web.conftest import Client, MakeClient


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == response.status_code
    assert document["type"] == "about:blank"
    assert document["detail"]
    return response.status_code, document["title"]


class TestTenants:
    def test_each_sees_its_own(self, client: Client) -> None:
        for tenant in ("a", "b", "a"):
            assert client.ask(f"/users?name={tenant}", tenant, method="POST").status_code == 200
        assert client.ask("/users", "a").json() == ["a", None, ["a", "a"]]
        assert client.ask("/users", "b").json() == ["b", None, ["b"]]

    def test_problems(self, client: Client, plain: Engine) -> None:
        assert problem(client.ask("/users")) == (400, "No tenant")
        assert problem(client.ask("/users", "")) == (400, "No tenant")
        assert problem(client.ask("/users", "no id")) == (400, "Invalid tenant")
        assert problem(client.ask("/users", "nobody")) == (404, "Unknown tenant")
        assert problem(client.ask("/stream", "nobody")) == (404, "Unknown tenant")
        with plain.begin() as connection:
            connection.execute(text("UPDATE multitenant_tenants SET status = 'suspended' WHERE id = 'a'"))
        assert problem(client.ask("/users", "a")) == (403, "Tenant suspended")
        assert client.ask("/users", "b").status_code == 200

    def test_one_that_is_suspended_later(self, client: Client, plain: Engine) -> None:
        assert client.ask("/users", "a").status_code == 200
        with plain.begin() as connection:
            connection.execute(text("UPDATE multitenant_tenants SET status = 'suspended' WHERE id = 'a'"))
        # Known to be there: the database refuses it.
        assert problem(client.ask("/users", "a")) == (403, "Tenant suspended")
        assert problem(client.ask("/late", "a")) == (403, "Tenant suspended")

    def test_public_paths_need_none(self, client: Client, tenants: TenantManager) -> None:
        with tenants.get_shared_db().begin() as session:
            session.add(Plan(id=1, name="gold"))
        assert client.ask("/health").status_code == 200
        assert client.ask("/health", "nobody").status_code == 200  # not even looked at
        assert client.ask("/plans").json() == ["gold"]
        assert client.ask("/plans", "a").json() == ["gold"]
        assert problem(client.ask("/plans", "nobody")) == (404, "Unknown tenant")
        assert problem(client.ask("/shared-only")) == (400, "No tenant")
        assert client.ask("/nowhere").status_code in (400, 404)
        assert client.ask("/nowhere", "a").status_code == 404

    def test_what_a_browser_asks_before(self, client: Client) -> None:
        """A CORS preflight brings no header of the request that it is about; no framework here answers it."""
        asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "GET"}
        response = client.ask("/users", method="OPTIONS", headers=asked)
        assert response.headers.get("content-type") != "application/problem+json", response.text
        assert problem(client.ask("/users", method="OPTIONS"))[0] in (400, 405)

    def test_the_apis_description(self, client: Client) -> None:
        path = {"litestar": "/schema/openapi.json"}.get(client.name, "/openapi.json")
        if client.name.startswith("fastapi") or client.name == "litestar":
            assert client.ask(path).status_code == 200
        else:  # none is made there
            assert problem(client.ask(path))[0] == 400

    def test_where_none_is_required(self, make_client: MakeClient) -> None:
        client = make_client(required=False)
        assert client.ask("/plans").json() == []
        assert problem(client.ask("/users")) == (400, "No tenant")

    def test_two_headers_that_differ(self, client: Client) -> None:
        if client.name == "flask":  # WSGI joins them
            assert problem(client.ask("/users", "a,b"))[0] == 400
            return

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(client.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.get("/users", headers=[("X-Tenant-ID", "a"), ("X-Tenant-ID", "b")])

        assert problem(client.runner.run(ask())) == (403, "Conflicting tenants")


class TestTransactions:
    def test_a_success_is_committed_and_an_error_is_not(self, client: Client) -> None:
        for query, kept in (
            ("status=200", True),
            ("status=201", True),
            ("status=400", False),
            ("status=409&raised=true", False),
            ("status=500", False),
            ("status=503&raised=true", False),
        ):
            response = client.ask(f"/users?name={query[:10]}&{query}", "a", method="POST")
            assert query.startswith(f"status={response.status_code}")
            assert (query[:10] in client.names("a")) is kept, query

    def test_an_exception_rolls_back(self, client: Client) -> None:
        assert client.ask("/broken", "a").status_code == 500
        assert client.names("a") == []

    def test_a_commit_that_fails_is_no_success(self, client: Client) -> None:
        assert client.ask("/unique", "a").status_code == 500
        assert client.names("a") == []

    def test_connections_come_back(self, client: Client) -> None:
        for path in ("/users", "/broken", "/unique", "/stream", "/plans", "/shared-only", "/own-error"):
            for _ in range(3):
                client.ask(path, "a")
        assert client.tenancy.tenants.metrics()["multitenant_pool_connections_active"] == 0

    def test_while_all_connections_are_in_use(self, make_client: MakeClient) -> None:
        client = make_client(pool_timeout_s=0.3)
        assert client.ask("/users", "a").status_code == 200
        with client.holding("b"):
            for path in ("/users", "/late"):
                response = client.ask(path, "a")
                assert problem(response) == (503, "Busy")
                assert response.headers["retry-after"] == "1"
        assert client.ask("/users", "a").status_code == 200


class TestContext:
    def test_lasts_to_the_end_of_a_stream(self, client: Client) -> None:
        assert client.ask("/stream", "b").text.split() == ["b"] * 10

    def test_is_gone_after_each_request(self, client: Client) -> None:
        for path in ("/users", "/broken", "/stream", "/own-error"):
            client.ask(path, "a")
            assert client.tenancy.context.get_tenant_or_none() is None
            with pytest.raises(NoTenantError, match="no request"):
                UnitOfWork.current()
        assert problem(client.ask("/users")) == (400, "No tenant")

    def test_requests_at_one_time(self, make_client: MakeClient) -> None:
        client = make_client(pool_size=3)
        for tenant in "ab":
            client.ask(f"/users?name={tenant}", tenant, method="POST")
        wrong: list[Any] = []

        def check(tenant: str, response: httpx.Response) -> None:
            if response.status_code != 200 or response.json() != [tenant, None, [tenant]]:
                wrong.append((tenant, response.status_code, response.text))

        if client.name == "flask":

            def work(tenant: str) -> None:
                for _ in range(15):
                    check(tenant, client.ask("/users", tenant))

            threads = [threading.Thread(target=work, args=(tenant,)) for tenant in "abababab"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:

            async def all_at_once() -> None:
                transport = httpx.ASGITransport(client.app)
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:

                    async def one(tenant: str) -> None:
                        for _ in range(15):
                            check(tenant, await http.get("/users", headers={"X-Tenant-ID": tenant}))

                    await asyncio.gather(*(one(tenant) for tenant in "abababab"))

            client.runner.run(all_at_once())
        assert wrong == []


class TestOptions:
    def test_enrich(self, make_client: MakeClient) -> None:
        def enrich(tenant: str, request: TenantRequest) -> dict[str, str | None]:
            return {"tenant": tenant, "agent": request.headers.get("User-Agent"), "q": request.query.get("q")}

        client = make_client(enrich_context=enrich)
        data = client.ask("/users?q=1", "a", headers={"User-Agent": "me"}).json()[1]
        assert data == {"tenant": "a", "agent": "me", "q": "1"}

    def test_validate(self, make_client: MakeClient) -> None:
        client = make_client(validate_tenant=lambda tenant: tenant != "b")
        assert client.ask("/users", "a").status_code == 200
        assert problem(client.ask("/users", "b")) == (404, "Unknown tenant")

    def test_validate_with_the_request(self, make_client: MakeClient) -> None:
        asked: list[tuple[str, str]] = []

        def validate(tenant: str, request: TenantRequest) -> bool:
            asked.append((tenant, request.path))
            return request.headers.get("x-user") == "ann"

        client = make_client(validate_tenant=validate)
        assert client.ask("/users", "a", headers={"X-User": "ann"}).status_code == 200
        assert client.ask("/users", "a").status_code == 404
        assert asked == [("a", "/users")] * 2

    def test_what_a_validator_raises_is_the_applications(self, make_client: MakeClient) -> None:
        def validate(_tenant: str) -> bool:
            raise ZeroDivisionError

        client = make_client(validate_tenant=validate)
        assert client.ask("/users", "a").status_code == 500

    def test_async_callables(self, make_client: MakeClient) -> None:
        async def validate(tenant: str) -> bool:
            await asyncio.sleep(0)
            return tenant == "a"

        async def enrich(tenant: str, _request: TenantRequest) -> str:
            await asyncio.sleep(0)
            return tenant.upper()

        client = make_client(validate_tenant=validate, enrich_context=enrich)
        if client.name == "flask":
            assert client.ask("/users", "a").status_code == 500  # WSGI awaits nothing, and says so
            return
        assert client.ask("/users", "a").json()[:2] == ["a", "A"]
        assert client.ask("/users", "b").status_code == 404

    def test_a_token_that_has_to_be_there(self, make_client: MakeClient) -> None:
        """What the client says of itself does not stand in for it."""
        key = "a key of at least thirty-two characters"
        client = make_client(extract_tenant_id=chain(from_jwt(key, algorithm="HS256"), from_header()))

        def ask(path: str, named: str | None, /, **claims: str) -> httpx.Response:
            token = jwt.encode(claims, key, algorithm="HS256")
            return client.ask(path, named, headers={"Authorization": f"Bearer {token}"} if claims else {})

        assert ask("/users", None, tenant="a").status_code == 200
        assert ask("/users", "a", tenant="a").status_code == 200
        assert problem(ask("/users", "b", tenant="a")) == (403, "Conflicting tenants")
        for refused in (ask("/users", "a"), ask("/users", None), ask("/users", "a", sub="ada")):
            assert problem(refused) == (401, "Invalid token")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert ask("/plans", None).status_code == 200  # marked with no_tenant
        assert ask("/plans", None, sub="ada").status_code == 200
        assert problem(ask("/shared-only", "a")) == (400, "No tenant")

    def test_a_token_that_need_not_be_there(self, make_client: MakeClient) -> None:
        key = "a key of at least thirty-two characters"
        token = from_jwt(key, algorithm="HS256", required=False)
        client = make_client(extract_tenant_id=chain(token, from_header()))
        assert client.ask("/users", "a").status_code == 200
        assert problem(client.ask("/users")) == (400, "No tenant")

    def test_a_chain(self, make_client: MakeClient) -> None:
        client = make_client(extract_tenant_id=chain(from_path("/{tenant}/x"), from_header("X-Org")))
        assert client.ask("/users", headers={"X-Org": "a"}).json()[0] == "a"
        assert client.ask("/a/x", headers={"X-Org": "a"}).status_code == 404
        response = client.ask("/a/x", headers={"X-Org": "b"})
        # Litestar looks for a handler first, and there is none.
        assert response.status_code == 404 if client.name == "litestar" else problem(response)[0] == 403

    def test_errors_of_the_applications_own_are_not_answered(self, client: Client) -> None:
        response = client.ask("/own-error", "a")
        assert response.status_code == 500
        assert "mine" not in response.text
