"""The current tenant: nested, restored, and never seen by code that works for somebody else."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import inspect
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from sqlalchemy_multitenant import (
    AsyncTenantDb,
    AsyncTenantManager,
    Connection,
    CurrentTenant,
    InvalidTenantIdError,
    NoTenantError,
    Schemas,
    TenantConfig,
    TenantContext,
    TenantDb,
    TenantManager,
)
from sqlalchemy_multitenant.naming import parse_tenant_id
from tests.conftest import MakeConfig
from tests.models import TenantBase


@dataclass(frozen=True)
class Info:
    user: str


class Mine(Exception):
    pass


@pytest.fixture
def make_offline_manager() -> Iterator[Callable[[], TenantManager]]:
    """Managers of a database that is never asked for: making a handle connects to nothing."""
    made: list[TenantManager] = []

    def make() -> TenantManager:
        url = "postgresql://nobody@localhost:1/nothing"
        made.append(
            TenantManager(TenantConfig(connection=Connection(url=url), schemas=Schemas(tenant=TenantBase)))
        )
        return made[-1]

    yield make
    for manager in made:
        manager.close()


@pytest.fixture
def context(make_offline_manager: Callable[[], TenantManager]) -> TenantContext[Info]:
    return TenantContext[Info](make_offline_manager())


def now(context: TenantContext[Any]) -> str | None:
    return context.get_tenant_or_none()


# -- blocks --------------------------------------------------------------------------------------------


def test_blocks_nest_and_restore(context: TenantContext[Info]) -> None:
    seen = [now(context)]
    with context.use_tenant("a"):
        seen.append(now(context))
        with context.use_tenant("b"):
            seen.append(now(context))
            with context.use_tenant("a"):
                seen.append(now(context))
            seen.append(now(context))
        seen.append(now(context))
    seen.append(now(context))
    assert seen == [None, "a", "b", "a", "b", "a", None]


def test_an_error_passes_and_the_tenant_before_is_back(context: TenantContext[Info]) -> None:
    with context.use_tenant("a"):
        with pytest.raises(Mine), context.use_tenant("b"):
            raise Mine
        assert now(context) == "a"
    with pytest.raises(Mine), context.use_tenant("a"):
        raise Mine
    assert now(context) is None


def test_without_a_tenant_everything_that_needs_one_raises(context: TenantContext[Info]) -> None:
    assert context.get_tenant_or_none() is None
    with pytest.raises(NoTenantError, match="use_tenant"):
        context.get_tenant()
    with pytest.raises(NoTenantError):
        context.get_tenant_db()
    assert isinstance(context.get_shared_db(), TenantDb)


@pytest.mark.parametrize("bad", ["", "a b", "abc\n", "ghost,tenant_victim", None, 7])
def test_a_bad_id_is_refused_before_anything_is_set(context: TenantContext[Info], bad: Any) -> None:
    with context.use_tenant("a"):
        with pytest.raises(InvalidTenantIdError):
            context.use_tenant(bad)
        with pytest.raises(InvalidTenantIdError):
            context.run_with_tenant(bad, pytest.fail, "must not be called")
        assert now(context) == "a"


def test_two_contexts_do_not_share_a_tenant(
    context: TenantContext[Info], make_offline_manager: Callable[[], TenantManager]
) -> None:
    other = TenantContext(make_offline_manager())
    with context.use_tenant("a"), other.use_tenant("b"):
        assert (now(context), now(other)) == ("a", "b")


def test_one_object_may_be_used_twice_and_inside_itself(context: TenantContext[Info]) -> None:
    use = context.use_tenant("a")
    for _ in range(2):
        with use:
            with use, context.use_tenant("b"), use:
                assert now(context) == "a"
            assert now(context) == "a"
        assert now(context) is None


def test_one_object_may_be_used_by_several_tasks_at_once(context: TenantContext[Info]) -> None:
    use = context.use_tenant("a")

    async def work(rounds: int) -> None:
        for _ in range(rounds):
            async with use:
                await asyncio.sleep(0)
                assert now(context) == "a"
                async with context.use_tenant("b"), use:
                    await asyncio.sleep(0)
                    assert now(context) == "a"
            assert now(context) is None
            await asyncio.sleep(0)

    async def inherited() -> None:
        async with use:
            await asyncio.sleep(0)
        assert now(context) == "a"

    async def main() -> None:
        await asyncio.gather(*(work(n) for n in range(1, 9)))
        async with use:
            await asyncio.gather(*(inherited() for _ in range(8)))
            assert now(context) == "a"
        assert now(context) is None

    asyncio.run(main())


def test_a_block_left_in_a_copy_of_its_context_restores_there(context: TenantContext[Info]) -> None:
    use = context.use_tenant("a")
    with context.use_tenant("before"):
        use.__enter__()
        elsewhere = contextvars.copy_context()
        elsewhere.run(use.__exit__, None, None, None)
        assert elsewhere.run(now, context) == "before"
        assert now(context) == "a"
        use.__exit__(None, None, None)
        assert now(context) == "before"


def test_a_block_left_in_a_foreign_context_changes_nothing_there(context: TenantContext[Info]) -> None:
    use, foreign = context.use_tenant("a"), contextvars.Context()
    use.__enter__()
    foreign.run(use.__exit__, None, None, None)
    assert (foreign.run(now, context), now(context)) == (None, "a")
    use.__exit__(None, None, None)
    assert now(context) is None


def test_blocks_left_out_of_order_leave_no_tenant_behind(context: TenantContext[Info]) -> None:
    """Two generators with a block each, closed in the order in which they were begun."""

    def read(tenant: str) -> Iterator[None]:
        with context.use_tenant(tenant):
            yield

    first, second = read("a"), read("b")
    next(first)
    next(second)
    first.close()  # type: ignore[attr-defined]
    assert now(context) == "b"
    second.close()  # type: ignore[attr-defined]
    assert now(context) is None


def test_using_a_tenant_leaves_nothing_in_the_context(context: TenantContext[Info]) -> None:
    """A worker's thread lives as long as the process; what each job left in its context would add up."""
    call = context.use_tenant("a")(lambda: None)
    call()
    before = len(contextvars.copy_context())
    for _ in range(50):
        call()
        with context.use_tenant("a"):
            pass
        context.run_with_tenant("b", lambda: None)
    assert len(contextvars.copy_context()) == before


# -- decorated functions -------------------------------------------------------------------------------


def test_a_decorated_function_runs_with_the_tenant_each_time(context: TenantContext[Info]) -> None:
    @context.use_tenant("a")
    def work(x: int, *, fail: bool = False) -> tuple[int, str | None]:
        """Documented."""
        if fail:
            raise Mine
        return x, now(context)

    assert (work.__name__, work.__doc__) == ("work", "Documented.")
    assert work(1) == work(x=1) == (1, "a")
    with context.use_tenant("b"):
        assert work(2) == (2, "a")
        with pytest.raises(Mine):
            work(3, fail=True)
        assert now(context) == "b"
    assert now(context) is None


def test_a_decorated_function_may_call_itself_and_run_in_threads(context: TenantContext[Info]) -> None:
    @context.use_tenant("a")
    def count(n: int) -> int:
        assert now(context) == "a"
        return 0 if n == 0 else 1 + count(n - 1)

    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(count(20))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [20] * 8


def test_a_decorated_method_is_bound(context: TenantContext[Info]) -> None:
    class Service:
        name = "service"

        @context.use_tenant("a")
        def work(self) -> tuple[str, str | None]:
            return self.name, now(context)

    assert Service().work() == ("service", "a")


def test_a_decorated_coroutine_function_stays_one(context: TenantContext[Info]) -> None:
    @context.use_tenant("a")
    async def work() -> str | None:
        await asyncio.sleep(0)
        return now(context)

    async def main() -> None:
        assert inspect.iscoroutinefunction(work)
        waiting = work()
        assert now(context) is None
        seen = await asyncio.gather(waiting, work(), context.run_with_tenant("b", later))
        assert list(seen) == ["a", "a", "b"]
        assert now(context) is None

    async def later() -> str | None:
        await asyncio.sleep(0)
        return now(context)

    asyncio.run(main())


# -- decorated generators ------------------------------------------------------------------------------


def test_the_consumer_of_a_generator_never_sees_its_tenant(context: TenantContext[Info]) -> None:
    @context.use_tenant("a")
    def rows() -> Iterator[str | None]:
        for _ in range(3):
            yield now(context)

    assert [(row, now(context)) for row in rows()] == [("a", None)] * 3
    with context.use_tenant("b"):
        assert [(row, now(context)) for row in rows()] == [("a", "b")] * 3


def test_generators_of_two_tenants_run_in_step(context: TenantContext[Info]) -> None:
    def rows() -> Iterator[str | None]:
        for _ in range(3):
            yield now(context)

    pairs = zip(context.use_tenant("a")(rows)(), context.use_tenant("b")(rows)(), strict=True)
    assert [(one, other, now(context)) for one, other in pairs] == [("a", "b", None)] * 3


def test_a_generator_is_driven_whole(context: TenantContext[Info]) -> None:
    """What is sent, thrown and returned goes through, and each step has the tenant."""
    seen: list[object] = []

    @context.use_tenant("a")
    def echo() -> Generator[object, object, str]:
        value: object = None
        while value != "stop":
            try:
                value = yield value
            except Mine as error:
                value = error
            seen.append(now(context))
        return "done"

    def outer() -> Generator[object, object, str]:
        return (yield from echo())

    generator, error = outer(), Mine()
    assert (next(generator), generator.send(1), generator.throw(error), generator.send(2)) == (
        None,
        1,
        error,
        2,
    )
    with pytest.raises(StopIteration) as stopped:
        generator.send("stop")
    assert stopped.value.value == "done"
    assert set(seen) == {"a"}
    assert now(context) is None


def test_a_generator_closed_early_cleans_up_with_its_tenant(context: TenantContext[Info]) -> None:
    seen: list[str | None] = []

    @context.use_tenant("a")
    def rows() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            seen.append(now(context))

    with context.use_tenant("b"):
        generator = rows()
        next(generator)
        generator.close()  # type: ignore[attr-defined]
        assert now(context) == "b"
    with pytest.raises(Mine):
        for _ in rows():
            raise Mine
    assert (seen, now(context)) == (["a", "a"], None)


def test_a_generators_error_reaches_the_consumer(context: TenantContext[Info]) -> None:
    @context.use_tenant("a")
    def rows() -> Iterator[int]:
        yield 1
        raise Mine

    with context.use_tenant("b"), pytest.raises(Mine):
        list(rows())
    assert now(context) is None


def test_the_consumer_of_an_async_generator_never_sees_its_tenant(context: TenantContext[Info]) -> None:
    @context.use_tenant("a")
    async def rows() -> AsyncIterator[str | None]:
        for _ in range(3):
            await asyncio.sleep(0)
            yield now(context)

    async def read() -> list[tuple[str | None, str | None]]:
        return [(row, now(context)) async for row in rows()]

    async def main() -> None:
        assert list(await asyncio.gather(read(), read())) == [[("a", None)] * 3] * 2
        async with context.use_tenant("b"):
            assert await read() == [("a", "b")] * 3

    asyncio.run(main())


def test_an_async_generator_is_driven_whole_and_cleans_up(context: TenantContext[Info]) -> None:
    seen: list[str | None] = []

    @context.use_tenant("a")
    async def echo() -> Any:
        value: object = None
        try:
            while True:
                try:
                    value = yield value
                except Mine as error:
                    value = error
                seen.append(now(context))
        finally:
            await asyncio.sleep(0)
            seen.append(now(context))

    async def main() -> None:
        async with context.use_tenant("b"):
            generator, error = echo(), Mine()
            got = [await anext(generator), await generator.asend(1), await generator.athrow(error)]
            assert got == [None, 1, error]
            await generator.aclose()
            assert now(context) == "b"
        assert seen == ["a"] * 3

    asyncio.run(main())


def test_a_decorated_function_is_still_of_its_kind(context: TenantContext[Info]) -> None:
    """Frameworks ask: a dependency of FastAPI's and a fixture of pytest's may be generators."""

    def rows() -> Iterator[int]:
        yield 1

    async def rows_async() -> AsyncIterator[int]:
        yield 1

    use = context.use_tenant("a")
    assert inspect.isgeneratorfunction(use(rows))
    assert inspect.isasyncgenfunction(use(rows_async))


# -- run_with_tenant -----------------------------------------------------------------------------------


def test_a_call_runs_with_the_tenant_and_its_data(context: TenantContext[Info]) -> None:
    def work(x: int, *, y: int) -> tuple[int, str, Info | None]:
        tenant = context.get_tenant()
        return x + y, tenant, tenant.data

    assert context.run_with_tenant("a", work, 1, y=2) == (3, "a", None)
    assert context.run_with_tenant("a", functools.partial(work, y=2), 1) == (3, "a", None)
    with pytest.raises(Mine):
        context.run_with_tenant("a", lambda: (_ for _ in ()).throw(Mine))
    assert now(context) is None


def test_a_coroutine_function_is_awaited_with_the_tenant(context: TenantContext[Info]) -> None:
    async def work(x: int) -> tuple[int, str]:
        await asyncio.sleep(0)
        return x, context.get_tenant()

    async def main() -> None:
        assert await context.run_with_tenant("a", work, 1) == (1, "a")
        assert await context.run_with_tenant("a", functools.partial(work, 2)) == (2, "a")
        assert now(context) is None

    asyncio.run(main())


def test_a_plain_function_that_returns_a_coroutine_is_awaited_with_the_tenant(
    context: TenantContext[Info],
) -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return context.get_tenant()

    class Callable_:  # noqa: N801
        async def __call__(self) -> str:
            return await work()

    def make() -> Coroutine[Any, Any, str]:
        return work()

    async def main() -> None:
        async with context.use_tenant("b"):
            for fn in (Callable_(), make, functools.partial(make)):
                assert await context.run_with_tenant("a", fn) == "a"

    asyncio.run(main())


def test_what_a_decorated_function_hands_out_runs_with_the_tenant(context: TenantContext[Info]) -> None:
    """Not a generator function, but something that returns what one makes."""

    def numbers() -> Iterator[str]:
        yield context.get_tenant()

    async def later() -> AsyncIterator[str]:
        yield context.get_tenant()

    async def soon() -> str:
        return context.get_tenant()

    @contextmanager
    def block() -> Iterator[str]:
        yield context.get_tenant()

    @asynccontextmanager
    async def async_block() -> AsyncIterator[str]:
        yield context.get_tenant()

    def handing_out(fn: Callable[[], Any]) -> Callable[[], Any]:
        return context.use_tenant("a")(lambda: fn())  # noqa: PLW0108 - a partial would be seen through

    async def main() -> None:
        assert await handing_out(soon)() == "a"
        assert [tenant async for tenant in handing_out(later)()] == ["a"]
        async with handing_out(async_block)() as tenant:
            assert tenant == "a"

    with context.use_tenant("b"):
        assert list(handing_out(numbers)()) == ["a"]
        with handing_out(block)() as tenant:
            assert (tenant, context.get_tenant()) == ("a", "b")
        asyncio.run(main())
        assert context.get_tenant() == "b"


# -- threads and tasks ---------------------------------------------------------------------------------


def test_a_thread_has_the_tenant_only_with_a_copy_of_the_context(context: TenantContext[Info]) -> None:
    seen: list[str | None] = []

    def look() -> None:
        seen.append(now(context))

    with context.use_tenant("a"):
        copied = functools.partial(contextvars.copy_context().run, look)
        for target in (look, copied):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert seen == [None, "a"]


def test_to_thread_and_tasks_carry_the_tenant_and_do_not_bring_one_back(context: TenantContext[Info]) -> None:
    async def switch() -> str | None:
        context.use_tenant("c").__enter__()  # and forgets to leave
        return now(context)

    async def main() -> None:
        async with context.use_tenant("a"):
            task = asyncio.create_task(switch())
            assert await asyncio.to_thread(now, context) == "a"
        assert await task == "c"
        assert now(context) is None
        assert await asyncio.to_thread(now, context) is None

    asyncio.run(main())


def test_a_task_keeps_the_tenant_that_it_was_begun_with(context: TenantContext[Info]) -> None:
    async def later() -> str | None:
        await asyncio.sleep(0.01)
        return now(context)

    async def main() -> None:
        tasks = []
        for tenant in ("a", "b"):
            async with context.use_tenant(tenant):
                tasks.append(asyncio.create_task(later()))
        assert await asyncio.gather(*tasks) == ["a", "b"]

    asyncio.run(main())


# -- values --------------------------------------------------------------------------------------------


def test_the_current_tenant_is_its_id_and_carries_data(context: TenantContext[Info]) -> None:
    with context.use_tenant("a", Info("ada")) as entered:
        tenant = context.get_tenant()
        assert tenant is entered
        assert (tenant, tenant.id, tenant.data, f"{tenant}") == ("a", "a", Info("ada"), "a")
        assert isinstance(tenant, str)
        assert type(tenant.id) is str
        with context.use_tenant("a"):
            assert context.get_tenant().data is None
        assert context.get_tenant().data == Info("ada")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_the_current_tenant_survives_pickling_and_copying(protocol: int) -> None:
    tenant = CurrentTenant(parse_tenant_id("a"), Info("ada"))
    copies = [pickle.loads(pickle.dumps(tenant, protocol)), copy.copy(tenant), copy.deepcopy(tenant)]
    for made in copies:
        assert type(made) is CurrentTenant
        assert (made, made.id, made.data) == ("a", "a", Info("ada"))


def test_a_handle_does_not_keep_the_data_of_the_tenant_that_asked(
    make_offline_manager: Callable[[], TenantManager],
) -> None:
    """`get_db(context.get_tenant())` is natural; the handle it leaves is kept for long."""
    manager = make_offline_manager()
    db = manager.get_db(CurrentTenant(parse_tenant_id("a"), Info("ada")))
    assert type(db.tenant) is str
    assert manager.get_db("a") is db


def test_the_class_takes_its_types_at_run_time(make_offline_manager: Callable[[], TenantManager]) -> None:
    manager = make_offline_manager()
    contexts: list[TenantContext[Any, TenantDb]] = [
        TenantContext(manager),
        TenantContext[Info](manager),
        TenantContext[Info, TenantDb](manager),
        TenantContext(manager, data_type=Info),
    ]
    for context in contexts:
        assert type(context) is TenantContext
        with context.use_tenant("a", Info("ada")):
            assert context.get_tenant().data == Info("ada")


def test_a_context_gives_the_databases_of_its_manager(make_config: MakeConfig) -> None:
    async def main() -> None:
        async with AsyncTenantManager(make_config()) as manager:
            context = TenantContext[Info, AsyncTenantDb](manager)
            async with context.use_tenant("a"):
                assert context.get_tenant_db() is manager.get_db("a")
            assert context.get_shared_db() is manager.get_shared_db()

    asyncio.run(main())
    with TenantManager(make_config()) as manager:
        context = TenantContext(manager)
        with context.use_tenant("a"):
            assert context.get_tenant_db() is manager.get_db("a")
        assert context.get_shared_db() is manager.get_shared_db()


def test_a_block_inside_a_decorated_generator_stays_open_across_its_steps(
    context: TenantContext[Info],
) -> None:
    @context.use_tenant("a")
    def steps() -> Iterator[str | None]:
        yield context.get_tenant()
        with context.use_tenant("b"):
            yield context.get_tenant()
            yield context.get_tenant()
        yield context.get_tenant()

    seen = []
    for tenant in steps():
        assert context.get_tenant_or_none() is None
        seen.append(str(tenant))
    assert seen == ["a", "b", "b", "a"]


def test_a_block_without_a_tenant(context: TenantContext[Info]) -> None:
    with context.use_tenant("a"):
        with pytest.raises(KeyError), context.without_tenant():
            with pytest.raises(NoTenantError):
                context.get_tenant()
            with context.use_tenant("b"):
                assert context.get_tenant() == "b"
            assert context.get_tenant_or_none() is None
            raise KeyError
        assert context.get_tenant() == "a"
