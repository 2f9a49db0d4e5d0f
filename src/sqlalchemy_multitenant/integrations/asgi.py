"""The ASGI middleware, for Starlette, FastAPI, Litestar, Quart and whatever else speaks ASGI
(https://asgi.readthedocs.io/en/latest/specs/www.html)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import nullcontext
from typing import Any, TypeAlias

from ..errors import MultitenantError
from .problem import Problem, problem_of
from .request import Headers, TenantRequest
from .tenancy import Tenancy
from .unit import UnitOfWork

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_ERROR = 400


class TenancyMiddleware:
    """Makes the tenant of each request, and of each websocket, the current one until the answer is done, to
    the last byte of a stream and the last background task.

    Sessions that the request has asked for are committed just before the answer begins: who reads a success
    may rely on it. A status of 400 or more, or an error, rolls back.
    """

    def __init__(self, app: ASGIApp, tenancy: Tenancy) -> None:
        self.app, self.tenancy = app, tenancy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._closing(send))
            return
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        request = make_request(scope, self.tenancy)
        try:
            tenant = None if self.tenancy.is_public(request) else await self.tenancy.resolve_async(request)
        except Exception as error:
            if not await self._answer(error, request, receive, send):
                raise
            return
        unit, answer = UnitOfWork(self.tenancy), _Answer(send)
        try:
            with unit, tenant or nullcontext():
                try:
                    await self.app(scope, receive, answer.sender(unit))
                    await unit.end_transactions_async()
                except Exception as error:
                    unit.fail()
                    await unit.end_transactions_async()
                    cause = answer.error or error
                    if answer.has_begun or not await self._answer(cause, request, receive, send):
                        raise
        finally:
            await unit.close_async()

    async def _answer(self, error: Exception, request: TenantRequest, receive: Receive, send: Send) -> bool:
        """Answer with what an error means; False if it means nothing to us."""
        problem = problem_of(error)
        if self.tenancy.on_error is not None and (problem or isinstance(error, MultitenantError)):
            response = self.tenancy.on_error(error, request)
            if isinstance(response, Awaitable):
                response = await response
            if response is not None:
                await response(request.raw, receive, send)
                return True
        if problem is None:
            return False
        await _send_problem(problem, request.raw, send)
        return True

    def _closing(self, send: Send) -> Send:
        """Before the server hears that all is over, close the pools."""

        async def sender(message: Message) -> None:
            is_over = message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed")
            if is_over and self.tenancy.close_on_shutdown:
                await self.tenancy.close()
            await send(message)

        return sender


class _Answer:
    """Watches an answer begin.

    Attributes:
        has_begun: whether it has.
        error: of the commit before it, which may come back wrapped in an error of the framework's.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self.error: Exception | None = None

    def sender(self, unit: UnitOfWork) -> Send:
        async def sender(message: Message) -> None:
            if not self.has_begun:
                if message["type"] == "http.response.start":
                    if message["status"] >= _ERROR:
                        unit.fail()
                    try:
                        await unit.end_transactions_async()
                    except Exception as error:
                        self.error = error
                        raise
                self.has_begun = True
            await self._send(message)

        return sender


def make_request(scope: Scope, tenancy: Tenancy) -> TenantRequest:
    """What extractors see of a scope."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :] or "/"
    client = scope.get("client")
    return TenantRequest(
        method=scope.get("method", "WEBSOCKET"),
        path=path,
        headers=Headers(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ),
        query_string=scope.get("query_string", b"").decode("latin-1"),
        client=client[0] if client else None,
        raw=scope,
        trusted_proxies=tenancy.trusted_proxies,
    )


async def _send_problem(problem: Problem, scope: Scope, send: Send) -> None:
    kind = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": problem.title})
            return
        kind = "websocket.http.response"
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in problem.all_headers]
    await send({"type": f"{kind}.start", "status": problem.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": problem.body})
