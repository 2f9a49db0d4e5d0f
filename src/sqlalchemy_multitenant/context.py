"""`TenantContext`: which tenant the running code works for, carried by contextvars.

A context variable goes where Python carries it: into tasks, into `asyncio.to_thread`, and into
threads started with `contextvars.copy_context().run`; not into a bare `Thread`, where `get_tenant()`
therefore raises instead of guessing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeAlias, cast

from typing_extensions import TypeVar

from .database import TenantDb
from .errors import NoTenantError
from .naming import TenantId, parse_tenant_id

DataT = TypeVar("DataT", default=Any)
DbT = TypeVar("DbT", default=TenantDb)
DbT_co = TypeVar("DbT_co", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


class _Manager(Protocol[DbT_co]):
    """What a context needs of a manager; `TenantManager` and `AsyncTenantManager` have it."""

    def get_db(self, tenant: str) -> DbT_co: ...
    def get_shared_db(self) -> DbT_co: ...


class CurrentTenant(str, Generic[DataT]):
    """The tenant that is set: its id, a plain `str` to compare, log and pass on.

    Attributes:
        id: the same, typed as a parsed id.
        data: what the application gave with it (a user, permissions), or None.
    """

    data: DataT | None

    def __new__(cls, tenant: TenantId, data: DataT | None = None) -> Self:
        self = super().__new__(cls, tenant)
        self.data = data
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (str(self), self.data)

    @property
    def id(self) -> TenantId:
        return TenantId(str(self))


_Stack: TypeAlias = "ContextVar[tuple[tuple[UseTenant[DataT], CurrentTenant[DataT]], ...]]"


class TenantContext(Generic[DataT, DbT]):
    """Sets and tells the current tenant.

    Args:
        manager: the manager whose databases `get_tenant_db()` returns.
        data_type: the type of the application's own data, for type checkers only:
            `TenantContext(tenants, data_type=Info)`; short for `TenantContext[Info](tenants)`, or
            `TenantContext[Info, AsyncTenantDb](tenants)` under asyncio.
    """

    def __init__(self, manager: _Manager[DbT], *, data_type: type[DataT] | None = None) -> None:
        del data_type
        self._manager = manager
        # One variable for good, with the open blocks, innermost last: variables are never freed.
        self._stack: _Stack[DataT] = ContextVar("tenants", default=())

    def use_tenant(self, tenant: str, data: DataT | None = None) -> UseTenant[DataT]:
        """Set the tenant for a `with` block, an `async with` block, or, as a decorator, for each call of a
        function, a coroutine function or a generator. Blocks nest; each restores what was before.

        Raises:
            InvalidTenantIdError: `tenant` is not a valid id.
        """
        return UseTenant(self._stack, CurrentTenant(parse_tenant_id(tenant), data))

    def without_tenant(self) -> WithoutTenant[DataT]:
        """A `with` block in which no tenant is set, whatever is set around it."""
        return WithoutTenant(self._stack)

    def run_with_tenant(self, tenant: str, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `fn` with the tenant set; for a coroutine function, return what is to be awaited."""
        return self.use_tenant(tenant)(fn)(*args, **kwargs)

    def get_tenant_or_none(self) -> CurrentTenant[DataT] | None:
        """The current tenant, or None."""
        entries = self._stack.get()
        return entries[-1][1] if entries else None

    def get_tenant(self) -> CurrentTenant[DataT]:
        """The current tenant.

        Raises:
            NoTenantError: none is set.
        """
        current = self.get_tenant_or_none()
        if current is None:
            raise NoTenantError
        return current

    def get_tenant_db(self) -> DbT:
        """The current tenant's database.

        Raises:
            NoTenantError: none is set.
        """
        return self._manager.get_db(self.get_tenant().id)

    def get_shared_db(self) -> DbT:
        """The shared data's database; needs no tenant."""
        return self._manager.get_shared_db()


class WithoutTenant(Generic[DataT]):
    """A block in which no tenant is set. At its end, what was set before it is set again, whatever was set
    within it and is still open. Not a generator, which would do that when it is collected, anywhere."""

    def __init__(self, stack: _Stack[DataT]) -> None:
        self._stack = stack
        self._before = stack.get()

    def __enter__(self) -> None:
        self._before = self._stack.get()
        self._stack.set(())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.set(self._before)


class UseTenant(Generic[DataT]):
    """A tenant, to be set for a block or a function. Can be used again, and inside itself."""

    def __init__(self, stack: _Stack[DataT], current: CurrentTenant[DataT]) -> None:
        self._stack, self._current = stack, current

    def __enter__(self) -> CurrentTenant[DataT]:
        self._stack.set((*self._stack.get(), (self, self._current)))
        return self._current

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Its own entry, wherever it is: generators may be closed in any order. None of its own is there
        # where the block is left in another context than it was entered in.
        entries = self._stack.get()
        for at in reversed(range(len(entries))):
            if entries[at][0] is self:
                self._stack.set(entries[:at] + entries[at + 1 :])
                return

    async def __aenter__(self) -> CurrentTenant[DataT]:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _again(self) -> UseTenant[DataT]:
        return UseTenant(self._stack, self._current)

    async def _await(self, awaitable: Any) -> Any:
        with self._again():
            return await awaitable

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        for is_kind, wrap in (
            (inspect.iscoroutinefunction, _wrap_coroutine),
            (inspect.isgeneratorfunction, _wrap_generator),
            (inspect.isasyncgenfunction, _wrap_async_generator),
        ):
            if is_kind(fn):
                return cast("Callable[P, R]", functools.wraps(fn)(wrap(self, fn)))
        return cast("Callable[P, R]", functools.wraps(fn)(_wrap_plain(self, fn)))


def _wrap_plain(use: UseTenant[Any], fn: Callable[..., Any]) -> Callable[..., Any]:
    """A partial, a lambda, a callable object or another decorator's function may hand out what runs later."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with use._again():
            result = fn(*args, **kwargs)
        if inspect.iscoroutine(result):
            return use._await(result)
        if inspect.isgenerator(result):
            return _drive(use, result)
        if inspect.isasyncgen(result):
            return _drive_async(use, result)
        # What @contextmanager and @asynccontextmanager make: their body is a generator as well.
        generator = getattr(result, "gen", None)
        if isinstance(result, AbstractContextManager) and inspect.isgenerator(generator):
            result.gen = _drive(use, generator)  # type: ignore[attr-defined]
        elif isinstance(result, AbstractAsyncContextManager) and inspect.isasyncgen(generator):
            result.gen = _drive_async(use, generator)  # type: ignore[attr-defined]
        return result

    return wrapper


def _wrap_coroutine(use: UseTenant[Any], fn: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        with use._again():
            return await fn(*args, **kwargs)

    return wrapper


class _Steps:
    """The steps of one generator: inside them its own blocks are open, between them none is."""

    def __init__(self, use: UseTenant[Any]) -> None:
        self._stack = use._stack
        self._own: tuple[Any, ...] = ((use, use._current),)
        self._outer: tuple[Any, ...] = ()

    def __enter__(self) -> None:
        self._outer = self._stack.get()
        self._stack.set((*self._outer, *self._own))

    def __exit__(self, *_: object) -> None:
        # What the step has opened on top is the generator's, and is there again in its next step.
        self._own = self._stack.get()[len(self._outer) :]
        self._stack.set(self._outer)


def _wrap_generator(use: UseTenant[Any], fn: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return (yield from _drive(use, fn(*args, **kwargs)))

    return wrapper


def _drive(use: UseTenant[Any], generator: Any) -> Any:
    """The tenant is set inside the generator's own steps only: between them the code that iterates runs,
    in the same context, and must not see it."""
    steps = _Steps(use)
    step: Any = generator.send
    value: Any = None
    try:
        while True:
            try:
                with steps:
                    produced = step(value)
            except StopIteration as stop:
                return stop.value
            try:
                step, value = generator.send, (yield produced)
            except GeneratorExit:
                raise
            except BaseException as error:
                step, value = generator.throw, error
    finally:
        with steps:
            generator.close()


def _wrap_async_generator(use: UseTenant[Any], fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same, awaited. Not `async for` over another generator: what is sent and thrown must reach it."""

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        generator = fn(*args, **kwargs)
        steps = _Steps(use)
        step: Any = generator.asend
        value: Any = None
        try:
            while True:
                try:
                    with steps:
                        produced = await step(value)
                except StopAsyncIteration:
                    return
                try:
                    step, value = generator.asend, (yield produced)
                except GeneratorExit:
                    raise
                except BaseException as error:
                    step, value = generator.athrow, error
        finally:
            with steps:
                await generator.aclose()

    return wrapper


def _drive_async(use: UseTenant[Any], generator: Any) -> Any:
    return _wrap_async_generator(use, lambda: generator)()
