"""The ASGI middleware by itself: websockets, disconnects, background work, the server's start and stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import AsyncTenantManager, NoTenantError, TenantManager
from sqlalchemy_multitenant.integrations.asgi import Message, Receive, Scope, Send, TenancyMiddleware
from sqlalchemy_multitenant.integrations.extractors import from_header
from sqlalchemy_multitenant.integrations.tenancy import Tenancy
from sqlalchemy_multitenant.integrations.unit import UnitOfWork, tenant_session
from sqlalchemy_multitenant.integrations.wsgi import TenancyMiddleware as WsgiMiddleware
from tests.conftest import MakeConfig
from tests.models import User

NAMES = select(User.name).order_by(User.id)


class Server:
    """What an ASGI server does with an application."""

    def __init__(self, app: Any, **options: Any) -> None:
        self.tenants: AsyncTenantManager = options.pop("tenants")
        self.tenancy = Tenancy(self.tenants, **{"extract_tenant_id": from_header(), **options})
        self.app = TenancyMiddleware(app, self.tenancy)
        self.sent: list[Message] = []

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def receive(self) -> Message:
        return {"type": "http.disconnect"}

    async def call(self, kind: str = "http", tenant: str | None = "a", **scope: Any) -> list[Message]:
        headers = [] if tenant is None else [(b"x-tenant-id", tenant.encode())]
        self.sent = []
        given = {"type": kind, "path": "/", "headers": headers, "client": ("127.0.0.1", 1), **scope}
        await self.app(given, self.receive, self.send)
        return self.sent


@pytest.fixture
def tenants(make_config: MakeConfig) -> AsyncTenantManager:
    return AsyncTenantManager(make_config(pool_size=1, pool_timeout_s=1))


def active(tenants: AsyncTenantManager) -> float:
    return tenants.metrics()["multitenant_pool_connections_active"]


async def answer(send: Send, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


class TestWebsockets:
    def test_one_that_is_opened(self, tenants: AsyncTenantManager) -> None:
        seen: list[Any] = []

        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "websocket.accept"})
            tenant_session().add(User(name="ws"))
            await tenant_session().flush()
            seen.append(await tenant_session().scalar(NAMES))
            await send({"type": "websocket.close", "code": 1000})

        async def run() -> None:
            async with tenants:
                await Server(app, tenants=tenants).call("websocket")
                assert seen == ["ws"]
                assert active(tenants) == 0
                assert (await tenants.get_db("a").scalars(NAMES)).all() == ["ws"]

        asyncio.run(run())

    def test_one_that_is_refused(self, tenants: AsyncTenantManager) -> None:
        async def app(*_: Any) -> None:
            raise AssertionError("it was let in")

        async def run() -> None:
            async with tenants:
                server = Server(app, tenants=tenants)
                (closed,) = await server.call("websocket", None)
                assert closed == {"type": "websocket.close", "code": 1008, "reason": "No tenant"}
                extensions: dict[str, Any] = {"websocket.http.response": {}}
                start, body = await server.call("websocket", "nobody", extensions=extensions)
                assert (start["type"], start["status"]) == ("websocket.http.response.start", 404)
                assert json.loads(body["body"])["title"] == "Unknown tenant"

        asyncio.run(run())


class TestEnds:
    def test_a_client_that_goes_away(self, tenants: AsyncTenantManager) -> None:
        begun = asyncio.Event()

        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            tenant_session().add(User(name="half"))
            await tenant_session().flush()
            begun.set()
            await asyncio.sleep(60)
            await answer(send)

        async def run() -> None:
            async with tenants:
                task = asyncio.create_task(Server(app, tenants=tenants).call())
                await begun.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert active(tenants) == 0
                assert (await tenants.get_db("a").scalars(NAMES)).all() == []

        asyncio.run(run())

    def test_one_that_goes_away_in_the_midst_of_a_stream(self, tenants: AsyncTenantManager) -> None:
        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await tenant_session().scalar(NAMES)
            for _ in range(3):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})

        async def run() -> None:
            async with tenants:
                server = Server(app, tenants=tenants)

                async def broken(message: Message) -> None:
                    if message["type"] == "http.response.body":
                        raise OSError("the client is gone")

                server.send = broken  # type: ignore[method-assign]
                with pytest.raises(OSError, match="gone"):
                    await server.call()
                assert active(tenants) == 0
                assert server.tenancy.context.get_tenant_or_none() is None

        asyncio.run(run())

    def test_work_behind_the_answer(self, tenants: AsyncTenantManager) -> None:
        """Background tasks run in the tenant, and what they write is committed."""

        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            tenant_session().add(User(name="first"))
            await answer(send)
            tenant_session().add(User(name=f"later {server.tenancy.context.get_tenant()}"))

        async def run() -> None:
            async with tenants:
                await server.call()
                assert (await tenants.get_db("a").scalars(NAMES)).all() == ["first", "later a"]

        server = Server(app, tenants=tenants)
        asyncio.run(run())

    def test_it_is_committed_before_the_answer_begins(self, tenants: AsyncTenantManager) -> None:
        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            tenant_session().add(User(name="x"))
            await answer(send)

        async def run() -> None:
            async with tenants:
                server = Server(app, tenants=tenants)
                visible: list[int] = []

                async def look(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        visible.append(len((await tenants.get_db("a").scalars(NAMES)).all()))

                server.send = look  # type: ignore[method-assign]
                await server.call()
                assert visible == [1]

        asyncio.run(run())


def test_a_request_without_a_session_takes_no_connection(tenants: AsyncTenantManager) -> None:
    seen: list[float] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        seen.append(active(tenants))
        await answer(send)

    async def run() -> None:
        async with tenants:
            server = Server(app, tenants=tenants)
            for _ in range(3):
                await server.call()
            assert seen == [0, 0, 0]
            # A tenant that is known is not looked up again.
            async with tenants.get_db("b").connect() as connection:
                await connection.execute(text("SELECT 1"))
                await server.call()

    asyncio.run(run())


@pytest.mark.parametrize("closes", [True, False])
def test_the_server_stops(make_config: MakeConfig, closes: bool) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    async def run() -> None:
        tenants = AsyncTenantManager(make_config())
        async with tenants.get_db("a").connect() as connection:
            await connection.execute(text("SELECT 1"))
        server = Server(app, tenants=tenants, close_on_shutdown=closes)
        sent = await server.call("lifespan")
        assert [message["type"] for message in sent] == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
        ]
        assert (tenants.metrics()["multitenant_pool_connections_idle"] == 0) is closes
        await tenants.close()

    asyncio.run(run())


def test_the_pools_log_where_those_of_sqlalchemy_do(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Not among the messages of a server that logs at INFO."""

    async def run() -> None:
        async with AsyncTenantManager(make_config()) as tenants:
            await tenants.warm_up(["a"])

    caplog.set_level("INFO")
    asyncio.run(run())
    assert caplog.record_tuples == []
    caplog.set_level("INFO", logger="sqlalchemy.pool")
    asyncio.run(run())
    assert {record.name for record in caplog.records} == {"sqlalchemy.pool"}


def test_outside_a_request_there_is_no_session() -> None:
    with pytest.raises(NoTenantError, match="no request"):
        tenant_session()


def test_on_error_answers_in_the_applications_own_way(tenants: AsyncTenantManager) -> None:
    def on_error(error: Exception, request: Any) -> Any:
        if request.path == "/usual":
            return None

        async def response(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 418, "headers": []})
            await send({"type": "http.response.body", "body": type(error).__name__.encode()})

        return response

    async def run() -> None:
        async with tenants:
            server = Server(answer, tenants=tenants, on_error=on_error)
            start, body = await server.call(tenant=None)
            assert (start["status"], body["body"]) == (418, b"NoTenantError")
            start, _ = await server.call(tenant=None, path="/usual")
            assert start["status"] == 400

    asyncio.run(run())


class TestWsgiStreams:
    def environ(self, tenant: str) -> dict[str, Any]:
        return {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_X_TENANT_ID": tenant}

    def test_a_stream_that_is_left(self, make_config: MakeConfig) -> None:
        def app(_environ: Any, start: Any) -> Iterator[bytes]:
            start("200 OK", [])
            session: Session = tenant_session()
            for name in ("x", "y", "z"):
                session.add(User(name=name))
                session.flush()
                yield name.encode()

        with TenantManager(make_config(pool_size=1)) as tenants:
            middleware = WsgiMiddleware(app, Tenancy(tenants, extract_tenant_id=from_header()))
            body: Any = middleware(self.environ("a"), lambda *_: lambda _data: None)
            assert next(iter(body)) == b"x"
            assert middleware.tenancy.context.get_tenant() == "a"
            body.close()
            assert middleware.tenancy.context.get_tenant_or_none() is None
            with pytest.raises(NoTenantError):
                UnitOfWork.current()
            assert tenants.metrics()["multitenant_pool_connections_active"] == 0
            assert tenants.get_db("a").scalars(NAMES).all() == []

    def test_one_that_fails_rolls_back(self, make_config: MakeConfig) -> None:
        def app(_environ: Any, start: Any) -> Iterator[bytes]:
            start("200 OK", [])
            tenant_session().add(User(name="x"))
            tenant_session().flush()
            yield b"x"
            raise ZeroDivisionError

        with TenantManager(make_config(pool_size=1)) as tenants:
            middleware = WsgiMiddleware(app, Tenancy(tenants, extract_tenant_id=from_header()))
            body: Any = middleware(self.environ("a"), lambda *_: lambda _data: None)
            with pytest.raises(ZeroDivisionError):
                list(body)
            body.close()
            assert tenants.get_db("a").scalars(NAMES).all() == []
