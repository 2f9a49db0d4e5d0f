"""`Tenancy`: how an application tells the tenant of a request. Frameworks' modules are built on it.

What is to be done with a request is decided once, in `Tenancy.steps`, which neither awaits nor blocks: it
yields the calls that may, to be made as the caller can.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import text

from ..checks import check, is_number
from ..context import TenantContext, UseTenant
from ..errors import ConfigurationError, NoTenantError, TenantNotFoundError
from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from ..naming import TenantId, parse_tenant_id
from .extractors import Extractor
from .request import TenantRequest, parse_networks

F = TypeVar("F", bound=Callable[..., Any])

_PUBLIC = "__multitenant_public__"
_MAX_KNOWN = 50_000
"""How many tenants are remembered to be there; then all are forgotten, and looked for again."""


def no_tenant(endpoint: F) -> F:
    """Mark an endpoint that needs no tenant: where a request for it names none, that is right."""
    setattr(endpoint, _PUBLIC, True)
    return endpoint


def is_marked(endpoint: object) -> bool:
    """Whether it was marked with `no_tenant`."""
    return bool(getattr(endpoint, _PUBLIC, False))


@dataclass(frozen=True, slots=True)
class Step:
    """A call that may block, or whose result is to be awaited.

    Attributes:
        call: without arguments.
        may_block: not to be made in the thread of an event loop, unless it returns an awaitable.
    """

    call: Callable[[], Any]
    may_block: bool


class Tenancy:
    """Extracts and checks the tenant of each request, and makes it the current one.

    Attributes:
        tenants: the manager.
        context: which tells the tenant; `context.get_tenant_db()` works in a request.
    """

    def __init__(  # noqa: PLR0913 - one parameter an option
        self,
        tenants: TenantManager | AsyncTenantManager,
        *,
        extract_tenant_id: Extractor,
        context: TenantContext[Any, Any] | None = None,
        validate_tenant: Callable[..., Any] | None = None,
        enrich_context: Callable[..., Any] | None = None,
        on_error: Callable[[Exception, TenantRequest], Any] | None = None,
        public_paths: Iterable[str] = (),
        required: bool = True,
        trusted_proxies: Iterable[str] = (),
        check_every_s: float = 60.0,
        close_on_shutdown: bool = True,
    ) -> None:
        """
        Args:
            tenants: the manager.
            extract_tenant_id: finds the id in a request; see `extractors`.
            context: the application's own, where it has one already.
            validate_tenant: called with the id, and the request if it takes two arguments; False refuses
                the tenant as unknown, and what it raises is the answer. May be a coroutine function.
            enrich_context: called with the id and the request; returns `context.get_tenant().data`. May be a
                coroutine function.
            on_error: called with an error and the request; returns a response of the framework's, or None
                for the usual one (problem details).
            public_paths: paths for which no tenant is looked for: `"/health"`, or `"/docs*"` with all that
                begin so. Single endpoints are marked with `no_tenant`.
            required: whether other requests without a tenant are refused.
            trusted_proxies: addresses and networks whose X-Forwarded-Host is believed.
            check_every_s: seconds for which a tenant that was there is taken to be there still; the database
                checks it again with each transaction.
            close_on_shutdown: close the manager when the server stops.
        """
        check(
            isinstance(tenants, TenantManager | AsyncTenantManager),
            "tenants",
            tenants,
            "a TenantManager or an AsyncTenantManager",
        )
        for name, value in (
            ("extract_tenant_id", extract_tenant_id),
            ("validate_tenant", validate_tenant),
            ("enrich_context", enrich_context),
            ("on_error", on_error),
        ):
            check(value is None or callable(value), name, value, "a callable")
        check(extract_tenant_id is not None, "extract_tenant_id", None, "a callable, such as from_header()")
        check(is_number(check_every_s) and check_every_s >= 0, "check_every_s", check_every_s, "seconds")
        if isinstance(public_paths, str):
            raise ConfigurationError("public_paths", public_paths, f"a list: [{public_paths!r}]")
        self.tenants = tenants
        self.context: TenantContext[Any, Any] = TenantContext(tenants) if context is None else context
        self.trusted_proxies = parse_networks(trusted_proxies)
        self.on_error = on_error
        self.close_on_shutdown = close_on_shutdown
        self.is_marked_public: Callable[[Any], bool] = lambda _raw: False
        self._extract = extract_tenant_id
        self._validate = validate_tenant
        self._validate_takes_request = validate_tenant is not None and _takes_two(validate_tenant)
        self._enrich = enrich_context
        self._required = required
        paths = list(public_paths)
        for path in paths:
            check(path.startswith("/"), "public_paths", path, "it begins with /")
        self._exact = frozenset(path for path in paths if not path.endswith("*"))
        self._prefixes = tuple(path.removesuffix("*") for path in paths if path.endswith("*"))
        self._check_every_s = check_every_s
        self._known: dict[TenantId, float] = {}

    @property
    def is_async(self) -> bool:
        """Whether sessions are `AsyncSession`s."""
        return isinstance(self.tenants, AsyncTenantManager)

    def is_public_path(self, path: str) -> bool:
        """Whether no tenant is looked for."""
        return path in self._exact or (bool(self._prefixes) and path.startswith(self._prefixes))

    def steps(self, request: TenantRequest) -> Generator[Step, Any, UseTenant[Any] | None]:
        """The calls that lead to the tenant of `request`; returns it, ready to be entered, or None.

        Raises:
            NoTenantError: there ought to be one.
            InvalidTenantIdError, TenantNotFoundError, TenantSuspendedError: it cannot be used.
            Exception: what the application's callables raise.
        """
        found = yield Step(partial(self._extract, request), may_block=False)
        if found is None or found == "":
            if self._required and not self.is_marked_public(request.raw):
                raise NoTenantError("the request does not say which tenant it is for")
            return None
        tenant = parse_tenant_id(found)
        if self._validate is not None:
            arguments = (tenant, request) if self._validate_takes_request else (tenant,)
            if (yield Step(partial(self._validate, *arguments), may_block=True)) is False:
                raise TenantNotFoundError(tenant)
        now = time.monotonic()
        if self._known.get(tenant, 0.0) <= now:
            yield Step(partial(self._enter, tenant), may_block=True)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[tenant] = now + self._check_every_s
        data = None
        if self._enrich is not None:
            data = yield Step(partial(self._enrich, tenant, request), may_block=True)
        return self.context.use_tenant(tenant, data)

    def resolve(self, request: TenantRequest) -> UseTenant[Any] | None:
        """`steps`, in this thread.

        Raises:
            ConfigurationError: one of the application's callables is a coroutine function.
        """
        steps = self.steps(request)
        try:
            step = next(steps)
            while True:
                result = step.call()
                if inspect.isawaitable(result):
                    if inspect.iscoroutine(result):
                        result.close()
                    raise ConfigurationError(
                        "tenancy", step.call, "this framework awaits nothing: use a plain function"
                    )
                step = steps.send(result)
        except StopIteration as stop:
            found: UseTenant[Any] | None = stop.value
            return found

    async def resolve_async(self, request: TenantRequest) -> UseTenant[Any] | None:
        """`steps`, in an event loop; what may block, in a thread."""
        steps = self.steps(request)
        try:
            step = next(steps)
            while True:
                in_thread = step.may_block and not _is_coroutine_function(step.call)
                result = await asyncio.to_thread(step.call) if in_thread else step.call()
                if inspect.isawaitable(result):
                    result = await result
                step = steps.send(result)
        except StopIteration as stop:
            found: UseTenant[Any] | None = stop.value
            return found

    async def close(self) -> None:
        """Close the manager."""
        if isinstance(self.tenants, AsyncTenantManager):
            await self.tenants.close()
        else:
            await asyncio.to_thread(self.tenants.close)

    def _enter(self, tenant: TenantId) -> Any:
        if isinstance(self.tenants, AsyncTenantManager):
            return _enter_async(self.tenants, tenant)
        with self.tenants.get_db(tenant).connect() as connection:
            return connection.execute(text("SELECT 1")).scalar()


async def _enter_async(tenants: AsyncTenantManager, tenant: TenantId) -> None:
    async with tenants.get_db(tenant).connect() as connection:
        await connection.execute(text("SELECT 1"))


def _is_coroutine_function(call: Any) -> bool:
    inner = call.func if isinstance(call, partial) else call
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(inner, "__call__", None)  # noqa: B004 - of an object whose class defines an async one
    )


def _takes_two(fn: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
    ]
    required = [p for p in positional if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    return len(required) > 1 or any(p.kind is p.VAR_POSITIONAL for p in positional)
