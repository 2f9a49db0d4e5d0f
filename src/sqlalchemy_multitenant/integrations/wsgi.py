"""The WSGI middleware, for Flask and whatever else speaks WSGI (https://peps.python.org/pep-3333/)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from http import HTTPStatus
from types import TracebackType
from typing import Any, TypeAlias

from ..errors import ConfigurationError, MultitenantError
from .problem import problem_of
from .request import Headers, TenantRequest
from .tenancy import Tenancy
from .unit import UnitOfWork

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Callable[[bytes], object]]
WSGIApp: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

_ERROR = 400
_BARE = ("CONTENT_TYPE", "CONTENT_LENGTH")
"""Headers whose variables do not begin with HTTP_."""


class TenancyMiddleware:
    """Makes the tenant of each request the current one until the answer is done, to the last byte of a
    stream.

    Sessions that the request has asked for are committed just before the answer begins: who reads a success
    may rely on it. A status of 400 or more, or an error, rolls back.
    """

    def __init__(self, app: WSGIApp, tenancy: Tenancy) -> None:
        """
        Raises:
            ConfigurationError: the manager is an `AsyncTenantManager`.
        """
        if tenancy.is_async:
            raise ConfigurationError("tenants", tenancy.tenants, "WSGI awaits nothing: use a TenantManager")
        self.app, self.tenancy = app, tenancy

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request = make_request(environ, self.tenancy)
        try:
            tenant = None if self.tenancy.is_public(request) else self.tenancy.resolve(request)
        except Exception as error:
            if (answer := self._answer(error, request, start_response)) is None:
                raise
            return answer
        unit, stack = UnitOfWork(self.tenancy), ExitStack()
        stack.callback(unit.close)
        stack.enter_context(unit)
        stack.enter_context(tenant or nullcontext())
        begun = _Begun(unit, start_response)
        try:
            body = self.app(environ, begun.start_response)
        except Exception as error:
            with stack:
                unit.fail()
                answer = None if begun.status else self._answer(error, request, start_response)
            if answer is None:
                raise
            return answer
        except BaseException:
            stack.close()
            raise
        return _Body(body, unit, stack)

    def _answer(
        self, error: Exception, request: TenantRequest, start_response: StartResponse
    ) -> Iterable[bytes] | None:
        """Answer with what an error means; None if it means nothing to us."""
        problem = problem_of(error)
        if self.tenancy.on_error is not None and (problem or isinstance(error, MultitenantError)):
            response = self.tenancy.on_error(error, request)
            if response is not None:
                answer: Iterable[bytes] = response(request.raw, start_response)
                return answer
        if problem is None:
            return None
        start_response(f"{problem.status} {HTTPStatus(problem.status).phrase}", problem.all_headers)
        return [problem.body]


class _Begun:
    """Watches an answer begin."""

    def __init__(self, unit: UnitOfWork, start_response: StartResponse) -> None:
        self._unit, self._start_response = unit, start_response
        self.status: str | None = None

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: tuple[type[BaseException], BaseException, TracebackType] | None = None,
    ) -> Callable[[bytes], object]:
        if int(status.split(" ", 1)[0]) >= _ERROR or exc_info is not None:
            self._unit.fail()
        self._unit.end_transactions()
        self.status = status
        if exc_info is not None:
            return self._start_response(status, headers, exc_info)
        return self._start_response(status, headers)


class _Body:
    """The body of an answer, in whose context its generator runs; the server closes it when it is done."""

    def __init__(self, body: Iterable[bytes], unit: UnitOfWork, stack: ExitStack) -> None:
        self._body, self._unit, self._stack = body, unit, stack
        self._is_complete = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self._body
        self._is_complete = True

    def close(self) -> None:
        """The answer is done, or the client gone."""
        with self._stack:
            try:
                if (close := getattr(self._body, "close", None)) is not None:
                    close()
            finally:
                if not self._is_complete:
                    self._unit.fail()
                self._unit.end_transactions()


def make_request(environ: Environ, tenancy: Tenancy) -> TenantRequest:
    """What extractors see of an environment."""
    return TenantRequest(
        method=environ["REQUEST_METHOD"],
        path=environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace") or "/",
        headers=_EnvironHeaders(environ),
        query_string=environ.get("QUERY_STRING", ""),
        client=environ.get("REMOTE_ADDR"),
        raw=environ,
        trusted_proxies=tenancy.trusted_proxies,
    )


class _EnvironHeaders(Headers):
    """Those of an environment, each of which is there once: servers join the values with commas."""

    def __init__(self, environ: Environ) -> None:
        self._environ = environ
        super().__init__(self._read())

    def _read(self) -> Iterator[tuple[str, str]]:
        for key, value in self._environ.items():
            if key.startswith("HTTP_") or key in _BARE:
                yield key.removeprefix("HTTP_").replace("_", "-"), value

    def get_all(self, name: str) -> Sequence[str]:
        key = name.upper().replace("-", "_")
        value = self._environ.get(key if key in _BARE else f"HTTP_{key}")
        return [] if value is None else [value]
