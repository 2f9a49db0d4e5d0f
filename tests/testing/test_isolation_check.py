"""`assert_isolated`, on applications that are sound and on ones that are not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from sqlalchemy_multitenant import ConfigurationError, TenantDb, TenantManager
from sqlalchemy_multitenant.testing import assert_isolated, assert_isolated_async
from tests.models import User


@dataclass
class Shop:
    """An application that keeps words, in whichever way `where` says."""

    where: Callable[[str], str]
    words: dict[str, list[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, tenant: str, method: str, word: str) -> dict[str, Any]:
        with self.lock:
            mine = self.words.setdefault(self.where(tenant), [])
            if method == "POST":
                mine.append(word)
            return {"words": list(mine)}


@dataclass
class Client:
    shop: Shop
    tenant: str

    def post(self, word: str) -> Any:
        return self.shop.answer(self.tenant, "POST", word)

    def get(self) -> Any:
        return self.shop.answer(self.tenant, "GET", "")


def check(shop: Shop, **options: Any) -> None:
    assert_isolated(
        Client(shop, "a"),
        Client(shop, "b"),
        write=lambda client, word: client.post(word),
        read=lambda client: client.get(),
        **options,
    )


def test_a_sound_application() -> None:
    shop = Shop(where=lambda tenant: tenant)
    check(shop, rounds=7)
    assert {tenant: len(words) for tenant, words in shop.words.items()} == {"a": 7, "b": 7}


def test_one_store_for_all() -> None:
    with pytest.raises(AssertionError, match=r"client_(a|b) finds \w+, which client_(a|b) has written"):
        check(Shop(where=lambda tenant: "all"))


def test_the_tenant_of_the_request_before() -> None:
    """The commonest fault: it shows where tenants take turns, and not in one request."""
    last = ["a"]

    def where(tenant: str) -> str:
        before, last[0] = last[0], tenant
        return before

    with pytest.raises(AssertionError, match="client_"):
        check(Shop(where))


def test_a_check_that_shows_nothing() -> None:
    shop = Shop(where=lambda tenant: tenant)
    client_a, client_b = Client(shop, "a"), Client(shop, "b")
    with pytest.raises(AssertionError, match="client_a does not find 20 of the 20 words that it has written"):
        assert_isolated(
            client_a, client_b, write=lambda client, word: client.post(word), read=lambda _: "nothing"
        )


def test_answers_that_are_errors() -> None:
    def refuse(client: object, word: str = "") -> httpx.Response:
        return httpx.Response(422, text="no such field")

    with pytest.raises(AssertionError, match="client_a: what it wrote was answered with 422: no such field"):
        assert_isolated(1, 2, write=refuse, read=refuse, concurrency=1)
    with pytest.raises(AssertionError, match="client_a: what it read was answered with 422"):
        assert_isolated(1, 2, write=lambda client, word: "ok", read=refuse, concurrency=1)


@pytest.mark.parametrize("name", ["rounds", "concurrency"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_wrong_numbers(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} = "):
        check(Shop(where=str), **{name: value})


def test_awaited() -> None:
    def run(where: Callable[[str], str]) -> None:
        shop = Shop(where)

        async def write(tenant: str, word: str) -> bytes:
            await asyncio.sleep(0)
            return str(shop.answer(tenant, "POST", word)).encode()

        async def read(tenant: str) -> bytes:
            await asyncio.sleep(0)
            return str(shop.answer(tenant, "GET", "")).encode()

        asyncio.run(assert_isolated_async("a", "b", write=write, read=read))

    run(str)
    with pytest.raises(AssertionError, match="has written"):
        run(lambda tenant: "all")


def test_what_shows_in_other_places_than_the_read() -> None:
    everybodys: list[str] = []

    def write(tenant: str, word: str) -> list[str]:
        everybodys.append(word)
        return everybodys

    def read(tenant: str) -> httpx.Response:
        mine = [word for word in everybodys if word.startswith(tenant)]
        return httpx.Response(200, json=mine)

    with pytest.raises(AssertionError, match="has written"):
        assert_isolated("a", "b", write=write, read=read)

    def read_with_header(tenant: str) -> httpx.Response:
        return httpx.Response(200, headers={"X-Last": everybodys[-1]}, json=read(tenant).json())

    everybodys.clear()
    with pytest.raises(AssertionError, match="has written"):
        assert_isolated(
            "a", "b", write=lambda t, w: everybodys.append(w), read=read_with_header, concurrency=1
        )


def test_databases_of_tenants(tenants: TenantManager) -> None:
    def write(db: TenantDb, word: str) -> None:
        with db.begin() as session:
            session.add(User(name=word))

    def read(db: TenantDb) -> list[str]:
        return list(db.scalars(select(User.name)))

    assert_isolated(tenants.get_db("a"), tenants.get_db("b"), write=write, read=read)
    with pytest.raises(AssertionError, match="has written"):
        assert_isolated(tenants.get_db("a"), tenants.get_db("a"), write=write, read=read)
