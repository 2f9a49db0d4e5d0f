"""The examples that are web applications, on their real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from tests.examples.example import Example, by_header, crowd, fill

MakeExample = Callable[[str], Example]


@pytest.mark.parametrize("name", ["fastapi-basic", "flask-basic", "litestar-basic"])
def test_a_crowd_of_clients(example: MakeExample, name: str) -> None:
    """No crossing, no connection that stays in use, no tenant that is left; also where clients hang up."""
    shop = example(name)
    shop.start()
    shop.create_tenants()
    fill(shop)
    asyncio.run(crowd(shop.address))
    shop.check_connections()
    assert httpx.get(f"{shop.address}/health").json()["tenant"] is None
    shop.stop()
    assert "Traceback" not in shop.log, shop.log[-3000:]
    assert shop.connections() == {}


@pytest.mark.parametrize("name", ["fastapi-basic", "flask-basic", "litestar-basic"])
def test_the_readme(example: MakeExample, name: str) -> None:
    """What its README shows."""
    shop = example(name)
    shop.start()
    with httpx.Client(base_url=shop.address) as client:
        acme, globex = by_header("acme"), by_header("globex")
        assert client.post("/users", json={"name": "Ada"}, headers=acme).status_code == 201
        assert client.get("/users", headers=acme).json() == ["Ada"]
        assert client.get("/users", headers=globex).json() == []
        assert client.get("/users/1", headers=acme).json() == {"id": 1, "name": "Ada"}
        assert client.get("/users/1", headers=globex).status_code == 404
        for empty in ("", "\0"):
            assert client.post("/users", json={"name": empty}, headers=acme).status_code in (400, 422)
        assert client.get("/users/99999999999", headers=acme).status_code in (400, 404, 422)
        assert client.get("/plans").json() == []
        missing, unknown = client.get("/users"), client.get("/users", headers=by_header("nobody"))
        assert [missing.status_code, unknown.status_code] == [400, 404]
        assert {missing.headers["content-type"], unknown.headers["content-type"]} == {
            "application/problem+json"
        }
    shop.run("tenant", "create", "--id", "initech")
    assert "initech" in shop.run("status")
    assert httpx.get(f"{shop.address}/users", headers=by_header("initech")).json() == []
