"""`Resolver`: finds, checks and enriches the tenant that a piece of work is for: a request, or a job.

What is to be done is decided once, in `Resolver.steps`, which neither awaits nor blocks: it yields the calls
that may, to be made as the caller can.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from sqlalchemy import text

from ..checks import check, is_number
from ..context import TenantContext, UseTenant
from ..errors import ConfigurationError, TenantNotFoundError
from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from ..naming import TenantId, parse_tenant_id
from .request import NO_TOKEN

F = TypeVar("F", bound=Callable[..., Any])
WorkT = TypeVar("WorkT")

_NEEDS_NONE = "__multitenant_needs_none__"
_MAX_KNOWN = 50_000
"""How many tenants are remembered to be there; then all are forgotten, and looked for again."""


def no_tenant(fn: F) -> F:
    """Mark an endpoint, or a task, that needs no tenant: where work for it names none, that is right."""
    setattr(fn, _NEEDS_NONE, True)
    return fn


def is_marked(fn: object) -> bool:
    """Whether it was marked with `no_tenant`."""
    return bool(getattr(fn, _NEEDS_NONE, False))


@dataclass(frozen=True, slots=True)
class Step:
    """A call that may block, or whose result is to be awaited.

    Attributes:
        call: without arguments.
        may_block: not to be made in the thread of an event loop, unless it returns an awaitable.
    """

    call: Callable[[], Any]
    may_block: bool


class Resolver(Generic[WorkT]):
    """Extracts and checks the tenant of each piece of work.

    Attributes:
        tenants: the manager.
        context: which tells the tenant; `context.get_tenant_db()` works wherever one is current.
    """

    def __init__(
        self,
        tenants: TenantManager | AsyncTenantManager,
        *,
        extract_tenant_id: Callable[[WorkT], Any],
        context: TenantContext[Any, Any] | None,
        validate_tenant: Callable[..., Any] | None,
        enrich_context: Callable[..., Any] | None,
        check_every_s: float,
    ) -> None:
        check(
            isinstance(tenants, TenantManager | AsyncTenantManager),
            "tenants",
            tenants,
            "a TenantManager or an AsyncTenantManager",
        )
        check(callable(extract_tenant_id), "extract_tenant_id", extract_tenant_id, "a callable")
        for name, value in (("validate_tenant", validate_tenant), ("enrich_context", enrich_context)):
            check(value is None or callable(value), name, value, "a callable")
        check(is_number(check_every_s) and check_every_s >= 0, "check_every_s", check_every_s, "seconds")
        self.tenants = tenants
        self.context: TenantContext[Any, Any] = TenantContext(tenants) if context is None else context
        self._extract = extract_tenant_id
        self._validate = validate_tenant
        self._validate_takes_work = validate_tenant is not None and _takes_two(validate_tenant)
        self._enrich = enrich_context
        self._check_every_s = check_every_s
        self._known: dict[TenantId, float] = {}

    @property
    def is_async(self) -> bool:
        """Whether sessions are `AsyncSession`s."""
        return isinstance(self.tenants, AsyncTenantManager)

    def _allow_none(self, work: WorkT, found: object) -> None:
        """Called where `work` names no tenant; `found` is what its extractor returned.

        Raises:
            NoTenantError, InvalidTokenError: it ought to.
        """
        raise NotImplementedError

    def steps(self, work: WorkT) -> Generator[Step, Any, UseTenant[Any] | None]:
        """The calls that lead to the tenant of `work`; returns it, ready to be entered, or None.

        Raises:
            NoTenantError: there ought to be one.
            InvalidTenantIdError, TenantNotFoundError, TenantSuspendedError: it cannot be used.
            Exception: what the application's callables raise.
        """
        found = yield Step(partial(self._extract, work), may_block=False)
        if found is None or found == "" or found is NO_TOKEN:
            self._allow_none(work, found)
            return None
        tenant = parse_tenant_id(found)
        if self._validate is not None:
            arguments = (tenant, work) if self._validate_takes_work else (tenant,)
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
            data = yield Step(partial(self._enrich, tenant, work), may_block=True)
        return self.context.use_tenant(tenant, data)

    def resolve(self, work: WorkT) -> UseTenant[Any] | None:
        """`steps`, in this thread.

        Raises:
            ConfigurationError: one of the application's callables is a coroutine function.
        """
        steps = self.steps(work)
        try:
            step = next(steps)
            while True:
                result = step.call()
                if inspect.isawaitable(result):
                    if inspect.iscoroutine(result):
                        result.close()
                    raise ConfigurationError(
                        "tenancy", step.call, "nothing is awaited here: use a plain function"
                    )
                step = steps.send(result)
        except StopIteration as stop:
            found: UseTenant[Any] | None = stop.value
            return found

    async def resolve_async(self, work: WorkT) -> UseTenant[Any] | None:
        """`steps`, in an event loop; what may block, in a thread."""
        steps = self.steps(work)
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
