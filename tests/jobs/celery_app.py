"""An application with Celery tasks, for the tests' process and for real workers."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from celery import Celery, Task, signals
from sqlalchemy import make_url, select

from sqlalchemy_multitenant import Connection, Schemas, TenantConfig, TenantManager
from sqlalchemy_multitenant.integrations.celery import CeleryTenancy, install_tenancy, no_tenant
from tests.models import SharedBase, TenantBase, User


def make_app(url: str, redis: str, **options: Any) -> tuple[Celery, CeleryTenancy]:
    """The application; options go to its tenancy."""
    app = Celery("shop", broker=redis, backend=redis, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        result_expires=60,
        worker_hijack_root_logger=False,
        task_track_started=False,
        beat_max_loop_interval=1,
    )
    config = TenantConfig(
        connection=Connection(url=make_url(url), pool_size=1),
        schemas=Schemas(tenant=TenantBase, shared=SharedBase),
    )
    tenancy = install_tenancy(app, TenantManager(config), **options)
    context = tenancy.context
    task: Any = partial(app.task, shared=False)  # with no other application of this process

    def current() -> str | None:
        tenant = context.get_tenant_or_none()
        return None if tenant is None else str(tenant)

    class Telling(Task):  # type: ignore[misc]
        """Tells what its handlers see."""

        def tell(self, event: str) -> None:
            app.backend.client.rpush(f"told:{self.request.id}", f"{event} {current()}")

        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            self.tell("before_start")

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.tell("call")
            return self.run(*args, **kwargs)

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            self.tell("on_success")

        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            self.tell("on_failure")

        def after_return(self, *args: Any) -> None:
            self.tell("after_return")

    @task(name="who")
    def who(*_: Any) -> list[Any]:
        tenant = context.get_tenant()
        return [str(tenant), tenant.data]

    @task(name="names")
    def names() -> list[str]:
        return list(context.get_tenant_db().scalars(select(User.name).order_by(User.id)))

    @task(name="shared")
    @no_tenant
    def shared(*_: Any) -> str | None:
        return current()

    @task(name="flaky", bind=True)
    def flaky(self: Any, seen: list[str | None]) -> list[str | None]:
        seen = [*seen, current()]
        if self.request.retries < 2:
            raise self.retry(args=[seen], countdown=0)
        return seen

    @task(name="auto", bind=True, autoretry_for=(Exception,), default_retry_delay=0)
    def auto(self: Any) -> int:
        if self.request.retries < 1:
            raise ValueError
        return int(self.request.retries)

    @task(name="total")
    def total(values: list[Any]) -> list[Any]:
        return [current(), values]

    @task(name="telling", base=Telling)
    def telling(fail: bool) -> None:
        if fail:
            raise ValueError("wanted")

    @task(name="errback")
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        """One that Celery calls by itself, without a message."""
        app.backend.client.rpush("errbacks", str(current()))

    @task(name="fails")
    def fails(*_: Any) -> None:
        raise ValueError("wanted")

    @task(name="careless")
    @no_tenant
    def careless() -> None:
        """Sets a tenant, and leaves it set."""
        context.use_tenant("b").__enter__()

    @task(name="nested")
    def nested() -> str:
        """Enqueues another one, for its own tenant."""
        return str(who.delay().id)

    @task(name="remember")
    def remember(key: str) -> None:
        app.backend.client.rpush(key, str(current()))

    return app, tenancy


if "SHOP_REDIS" in os.environ:
    app, tenancy = make_app(os.environ["SHOP_DATABASE"], os.environ["SHOP_REDIS"])
    if "SHOP_BEAT" in os.environ:
        app.conf.beat_schedule = {
            "each": {
                "task": "multitenant.for_each_tenant",
                "schedule": 0.5,
                "args": [app.signature("remember", args=["beaten"])],
            }
        }

    @signals.task_postrun.connect
    def tell_what_is_left(task: Any, **_: Any) -> None:
        """Connected after ours: here the tenant is gone already."""
        if tenancy.context.get_tenant_or_none() is not None:
            app.backend.client.rpush("left over", task.name)
