"""Celery, with a real broker and real worker processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group
from celery.exceptions import ChordError
from sqlalchemy import URL
from sqlalchemy.exc import OperationalError

from sqlalchemy_multitenant import (
    AsyncTenantManager,
    ConfigurationError,
    InvalidTenantIdError,
    NoTenantError,
    TenantConflictError,
    TenantNotFoundError,
    TenantSuspendedError,
)
from sqlalchemy_multitenant.integrations.celery import CeleryTenancy, install_tenancy
from tests.conftest import MakeConfig
from tests.jobs.celery_app import make_app
from tests.jobs.conftest import celery, stop, wait_for


def get(result: Any) -> Any:
    """What a task has returned, or raises what it has raised."""
    return result.get(timeout=20)


@dataclass
class Shop:
    """The application, as a process that enqueues has it."""

    app: Celery
    tenancy: CeleryTenancy

    def task(self, name: str) -> Any:
        return self.app.tasks[name]

    def use(self, tenant: str) -> Any:
        return self.tenancy.context.use_tenant(tenant)

    def settle(self) -> None:
        """Wait until the worker, which does one thing at a time, has done all that was enqueued so far."""
        get(self.task("shared").delay())

    def told(self, task_id: str) -> list[str]:
        return [line.decode() for line in self.app.backend.client.lrange(f"told:{task_id}", 0, -1)]


@pytest.fixture(scope="module")
def shop(shop_url: URL, redis: str) -> Iterator[Shop]:
    app, tenancy = make_app(shop_url.render_as_string(hide_password=False), redis)
    yield Shop(app, tenancy)
    tenancy.tenants.close()
    app.close()


@pytest.fixture(scope="module", params=["prefork", "threads"])
def worker(
    request: pytest.FixtureRequest, shop_url: URL, redis: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """A worker with one process or thread, so that tenants meet in it."""
    log = tmp_path_factory.mktemp("worker") / "log"
    process = celery(
        *("worker", "--pool", request.param, "--concurrency", "1", "--without-gossip", "--without-mingle"),
        *("--loglevel", "info"),
        url=shop_url,
        redis=redis,
        log=log,
    )
    try:
        wait_for(lambda: b"ready." in log.read_bytes(), f"no worker: {log}", process)
        yield
    finally:
        stop(process)
    assert b"Signal handler" not in log.read_bytes()  # one of ours has raised, and was not heard


@pytest.fixture
def running(shop: Shop, worker: None) -> Iterator[Shop]:
    """The application with a worker, whose tasks leave nothing behind."""
    yield shop
    assert shop.app.backend.client.lrange("left over", 0, -1) == []


def test_a_task_runs_for_the_tenant_that_enqueued_it(running: Shop) -> None:
    results = []
    for tenant in "abab":
        with running.use(tenant):
            results.append(running.task("names").delay())
    assert [get(result) for result in results] == [["ada"], ["bob"], ["ada"], ["bob"]]


def test_handlers_and_hooks_of_a_task_have_its_tenant(running: Shop) -> None:
    with running.use("a"):
        good, bad = running.task("telling").delay(False), running.task("telling").delay(True)
    get(good)
    with pytest.raises(ValueError, match="wanted"):
        get(bad)
    running.settle()
    assert running.told(good.id) == ["before_start a", "call a", "on_success a", "after_return a"]
    assert running.told(bad.id) == ["before_start a", "call a", "on_failure a", "after_return a"]


def test_after_a_task_no_tenant_is_left(running: Shop) -> None:
    with running.use("a"):
        get(running.task("who").delay())
    assert get(running.task("shared").delay()) is None


def test_a_task_without_a_tenant_is_not_enqueued(shop: Shop) -> None:
    with pytest.raises(NoTenantError, match=r"task who has no tenant.*use_tenant.*no_tenant"):
        shop.task("who").delay()


def test_a_message_without_a_tenant_is_not_run(running: Shop) -> None:
    # As another program would enqueue it, or beat by name.
    sender = Celery("other", broker=running.app.conf.broker_url, backend=running.app.conf.result_backend)
    for name in ("who", "telling", "auto"):
        result = sender.send_task(name, [False] if name == "telling" else [])
        with pytest.raises(NoTenantError, match=f"task {name} has no tenant"):
            get(result)
        running.settle()
        assert running.told(result.id) == (
            ["on_failure None", "after_return None"] if name == "telling" else []
        )
    assert get(sender.send_task("shared")) is None
    sender.close()


@pytest.mark.parametrize(
    ("stamp", "error"),
    [("nobody", TenantNotFoundError), ("a;b", InvalidTenantIdError), ("b" * 200, InvalidTenantIdError)],
)
def test_a_message_for_a_tenant_that_is_none_is_not_run(
    running: Shop, stamp: str, error: type[Exception]
) -> None:
    sender = Celery("other", broker=running.app.conf.broker_url, backend=running.app.conf.result_backend)
    with pytest.raises(error):
        get(sender.send_task("who", headers={"tenant": stamp}))
    sender.close()


def test_a_suspended_tenants_task_is_not_run(running: Shop) -> None:
    tenants = running.tenancy.tenants
    if not tenants.tenant_exists("late"):  # from the other pool's turn
        tenants.create_tenant("late")
    tenants.set_tenant_status("late", "suspended")
    with running.use("late"), pytest.raises(TenantSuspendedError):
        get(running.task("who").delay())


def test_what_a_task_enqueues_is_for_its_tenant(running: Shop) -> None:
    with running.use("b"):
        inner = get(running.task("nested").delay())
    assert get(running.app.AsyncResult(inner)) == ["b", None]


def test_retries_keep_the_tenant(running: Shop) -> None:
    with running.use("a"):
        first, second = running.task("flaky").delay([]), running.task("auto").delay()
    assert (get(first), get(second)) == (["a", "a", "a"], 1)


def test_chains_groups_and_chords_keep_the_tenant(running: Shop) -> None:
    who, total = running.task("who"), running.task("total")
    with running.use("a"):
        results = [
            chain(who.s(), who.s(), total.s()).delay(),
            group(who.s(), who.s()).delay(),
            chord([who.s(), who.s()], total.s()).delay(),
            chain(who.s(), group(who.s(), chain(who.s(), who.s())), total.s()).delay(),
        ]
    found = ["a", None]
    assert [get(result) for result in results] == [
        ["a", found],
        [found, found],
        ["a", [found, found]],
        ["a", [found, found]],
    ]


def test_maps_and_chunks_keep_the_tenant(running: Shop) -> None:
    who = running.task("who")
    with running.use("b"):
        results = [who.map([1, 2]).delay(), who.chunks([(1,), (2,)], 1).group().delay()]
    found = ["b", None]
    assert [get(result) for result in results] == [[found, found], [[found], [found]]]
    with pytest.raises(NoTenantError, match=r"task celery\.map"):
        who.map([1]).delay()
    assert get(running.task("shared").map([1]).delay()) == [None]


def test_callbacks_keep_the_tenant(running: Shop) -> None:
    remember, telling = running.task("remember"), running.task("telling")
    with running.use("b"):
        get(telling.apply_async([False], link=remember.si("linked")))
        with pytest.raises(ValueError, match="wanted"):
            get(telling.apply_async([True], link_error=remember.si("errors")))
    running.settle()
    running.settle()  # the callbacks were enqueued meanwhile
    client = running.app.backend.client
    assert [client.lpop("linked"), client.lpop("errors")] == [b"b", b"b"]


def test_a_group_over_tenants(running: Shop) -> None:
    """And what hangs on it is for whoever made it, never for the tenant whose task ends last."""
    who, total = running.task("who"), running.task("total")
    each = group(running.tenancy.for_tenant(who.s(), tenant) for tenant in "ab")
    assert get(each.delay()) == [["a", None], ["b", None]]
    with running.use("a"):
        assert get(chord(each, total.s()).delay()) == ["a", [["a", None], ["b", None]]]
    with pytest.raises((NoTenantError, ChordError), match="total has no tenant"):
        get(chord(each, total.s()).delay())
    assert get(chord(each, running.task("shared").s()).delay()) is None


def test_tenants_of_parts_that_come_later(running: Shop) -> None:
    """A group, a chain or a chord that follows on something leaves its parts their own."""
    who, total = running.task("who"), running.task("total")
    a, b = (running.tenancy.for_tenant(who.s(), tenant) for tenant in "ab")
    found_a, found_b, found_c = (["a", None], ["b", None], ["c", None])
    if not running.tenancy.tenants.tenant_exists("c"):  # from the other pool's turn
        running.tenancy.tenants.create_tenant("c")
    with running.use("c"):
        assert get(chain(who.s(), group(a, who.s())).delay()) == [found_a, found_c]
        assert get(chain(who.s(), group(a, b, who.s()), total.s()).delay()) == [
            "c",
            [found_a, found_b, found_c],
        ]
        assert get(chain(who.s(), chord([a, b], total.s())).delay()) == ["c", [found_a, found_b]]
        assert get(group(a, b, who.s()).apply_async(headers={"k": "v"})) == [found_a, found_b, found_c]
        assert get(a.clone().set(headers={"k": "v"}).delay()) == found_a
        assert get(chord([chain(a, a), chain(b, b)], total.s()).delay()) == ["c", [found_a, found_b]]
    with pytest.raises((NoTenantError, ChordError), match="total has no tenant"):
        get(chord([chain(a, a), chain(b, b)], total.s()).delay())


def test_headers_of_a_tracer(running: Shop) -> None:
    """Some put a header `headers` in, which Celery then takes for all that there are."""
    with running.use("a"):
        assert get(running.task("who").apply_async(headers={"headers": {"x": "1"}})) == ["a", None]
        assert get(running.task("flaky").apply_async([[]], headers={"headers": {"x": "1"}})) == ["a"] * 3


def test_errbacks_that_are_called_without_a_message(running: Shop) -> None:
    fails, errback = running.task("fails"), running.task("errback")
    named = running.tenancy.for_tenant(errback.s(), "b")
    client = running.app.backend.client
    client.delete("errbacks")
    with running.use("a"):
        results = [
            fails.apply_async(link_error=errback.s()),
            fails.apply_async(link_error=[named, errback.s()]),
            running.tenancy.for_tenant(fails.s(), "b").on_error(errback.s()).delay(),
        ]
    # The other program says nothing of a tenant: neither its task is run, nor the errback.
    results.append(running.app.send_task("who", link_error=errback.s()))
    for result in results:
        with pytest.raises((ValueError, NoTenantError)):
            get(result)
    running.settle()
    assert client.lrange("errbacks", 0, -1) == [b"a", b"b", b"a", b"b"]


def test_what_a_task_leaves_open_is_gone_with_it(running: Shop) -> None:
    get(running.task("careless").delay())
    assert get(running.task("shared").delay()) is None


def test_a_signature_is_not_changed_by_its_use(running: Shop) -> None:
    signature = chain(running.task("who").s(), running.task("who").s())
    for tenant in "ab":
        with running.use(tenant):
            assert get(signature.clone().delay()) == [tenant, None]
    with running.use("a"):
        used = signature.delay()  # a chain keeps the ids of its first use
        named = [running.tenancy.for_tenant(signature, tenant).delay() for tenant in "bab"]
        assert [get(result) for result in named] == [["b", None], ["a", None], ["b", None]]
    assert len({used.id, *(result.id for result in named)}) == 4


def test_for_each_tenant(running: Shop) -> None:
    active = [t.id for t in running.tenancy.tenants.list_tenants() if t.status == "active"]
    assert running.tenancy.for_each_tenant(running.task("remember").s("each")) == len(active)
    running.settle()
    client = running.app.backend.client
    assert sorted(client.lrange("each", 0, -1)) == sorted(tenant.encode() for tenant in active)
    client.delete("each")


def test_beat_enqueues_for_each_tenant(running: Shop, shop_url: URL, redis: str, tmp_path: Path) -> None:
    client = running.app.backend.client
    beat = celery(
        *("beat", "--schedule", str(tmp_path / "schedule"), "--max-interval", "1"),
        url=shop_url,
        redis=redis,
        log=tmp_path / "log",
        SHOP_BEAT="1",
    )
    try:
        wait_for(lambda: {b"a", b"b"} <= set(client.lrange("beaten", 0, -1)), "beat", beat)
    finally:
        stop(beat)


# -- eagerly, without a broker ------------------------------------------------------------------------


@pytest.fixture
def eager(shop_url: URL) -> Iterator[Any]:
    """Makes applications whose tasks run where they are called."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Shop:
            app, tenancy = make_app(shop_url.render_as_string(hide_password=False), "memory://", **options)
            app.conf.update(
                task_always_eager=True, task_eager_propagates=True, result_backend="cache+memory://"
            )
            stack.callback(tenancy.tenants.close)
            return Shop(app, tenancy)

        yield make


def test_eager_tasks(eager: Any) -> None:
    shop = eager()
    who = shop.task("who")
    with shop.use("a"):
        assert who.delay().get() == ["a", None]
        assert who.apply().get() == ["a", None]
        assert shop.tenancy.for_tenant(who.s(), "b").delay().get() == ["b", None]
        assert chain(shop.tenancy.for_tenant(who.s(), "b"), who.s()).apply().get() in (
            ["a", None],
            ["b", None],
        )
        assert shop.tenancy.context.get_tenant() == "a"
    with pytest.raises(NoTenantError, match="task who"):
        who.delay()
    assert shop.task("shared").delay().get() is None


def test_options(eager: Any) -> None:
    shop = eager(
        extract_tenant_id=lambda job: job.kwargs.get("tenant_id"),
        validate_tenant=lambda tenant, job: job.name != "names",
        enrich_context=lambda tenant, job: f"{job.name} for {tenant}",
    )
    who = shop.task("who")
    who.typing = False
    with shop.use("a"):
        assert who.delay().get() == ["a", "who for a"]
        with pytest.raises(TenantNotFoundError):
            shop.task("names").delay()


def test_a_tenant_in_the_arguments(eager: Any) -> None:
    shop = eager(extract_tenant_id=lambda job: job.args[0] if job.args else None)
    who = shop.task("who")
    assert who.delay("b").get() == ["b", None]
    with shop.use("a"), pytest.raises(TenantConflictError, match="stamped with 'a', and says 'b'"):
        who.delay("b")


def test_a_server_that_cannot_be_reached_is_the_tasks_own_matter() -> None:
    app, tenancy = make_app("postgresql://nobody@127.0.0.1:1/nothing", "memory://")
    app.conf.update(task_always_eager=True, task_eager_propagates=True, result_backend="cache+memory://")
    with tenancy.context.use_tenant("a"):
        assert app.tasks["who"].delay().get() == ["a", None]
        with pytest.raises(OperationalError):
            app.tasks["names"].delay()
    tenancy.tenants.close()


def ran() -> str:
    return "ran"


def test_tasks_that_are_registered_late_are_guarded(eager: Any) -> None:
    shop = eager()
    shop.app.finalize()
    late = shop.app.task(name="late", shared=False)(ran)
    with pytest.raises(NoTenantError, match="task late"):
        late.delay()


def test_tasks_that_were_registered_before_are_guarded(eager: Any, tenants: Any) -> None:
    app = Celery("early", broker="memory://", set_as_current=False)
    app.conf.update(
        task_always_eager=True, task_eager_propagates=True, task_annotations={"*": {"rate_limit": "1/s"}}
    )
    early = app.task(name="early", shared=False)(ran)
    assert early.delay().get() == "ran"
    install_tenancy(app, tenants)
    with pytest.raises(NoTenantError, match="task early"):
        early.delay()
    assert app.task(name="later", shared=False)(ran).rate_limit == "1/s"  # the configuration's own, still


class Base(Task):  # type: ignore[misc]
    name = "base"

    def run(self) -> str:
        return "ran"


class Derived(Base):
    name = "derived"

    def before_start(self, *_: Any) -> None:
        """Instead of the one that guards."""


def test_a_guard_that_is_lost(tenants: Any, plain_celery: Any) -> None:
    """To annotations, and to a class that Celery takes for bound already."""
    app = plain_celery()
    app.conf.task_annotations = {"*": {"before_start": lambda self, *_: None}}
    tenancy = install_tenancy(app, tenants)
    annotated = app.task(name="annotated", shared=False)(ran)
    app.register_task(Base())
    app.register_task(Derived())
    for name in ("annotated", "base", "derived"):
        with pytest.raises(NoTenantError, match=f"task {name} has no tenant"):
            app.tasks[name].apply(throw=True)
    with tenancy.context.use_tenant("a"):
        assert annotated.apply(throw=True).get() == "ran"


def test_a_class_of_two_applications(tenants: Any, plain_celery: Any) -> None:
    one, two = plain_celery(), plain_celery()
    install_tenancy(two, tenants)
    two.register_task(Shared())
    one.register_task(Shared())
    assert one.tasks["shared-class"].apply(throw=True).get() == "ran"


class Shared(Task):  # type: ignore[misc]
    name = "shared-class"

    def run(self) -> str:
        return "ran"


def test_an_application_named_like_celerys_own(tenants: Any, plain_celery: Any) -> None:
    app = plain_celery()
    install_tenancy(app, tenants)
    with pytest.raises(NoTenantError, match=r"task celery\.mine"):
        app.task(name="celery.mine", shared=False)(ran).delay()


@pytest.fixture
def plain_celery() -> Any:
    def make() -> Celery:
        app = Celery("plain", broker="memory://", set_as_current=False)
        app.conf.update(task_always_eager=True, task_eager_propagates=True)
        return app

    return make


def test_wrong_installations(tenants: Any, make_config: MakeConfig) -> None:
    app = Celery("wrong", broker="memory://", set_as_current=False)
    with pytest.raises(ConfigurationError, match="use a TenantManager"):
        install_tenancy(app, AsyncTenantManager(make_config()))  # type: ignore[arg-type]
    install_tenancy(app, tenants)
    with pytest.raises(ConfigurationError, match="already"):
        install_tenancy(app, tenants)
    with pytest.raises(ConfigurationError, match="extract_tenant_id"):
        install_tenancy(Celery("other", set_as_current=False), tenants, extract_tenant_id="tenant")
