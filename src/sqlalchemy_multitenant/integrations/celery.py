"""Celery: `install_tenancy`. Needs the extra `celery`.

    tenancy = install_tenancy(app, tenants)

    @app.task
    def send_invoice(order_id: int) -> None:
        with tenancy.context.get_tenant_db().begin() as session:
            ...

    with tenancy.context.use_tenant("acme"):
        send_invoice.delay(7)

A message carries its tenant in a header, and so does all that follows from it: callbacks, chains, chords,
retries (https://docs.celeryq.dev/en/stable/userguide/canvas.html).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy.exc import SQLAlchemyError

from ..context import WithoutTenant
from ..errors import ConfigurationError
from ..manager import TenantManager
from ..naming import TenantId, parse_tenant_id
from .celery_canvas import NESTED, NOBODY, OPTION, stamp_of, stamped
from .extra import Extra
from .jobs import STAMP, Job, JobTenancy
from .resolver import is_marked, no_tenant

with Extra("celery"):
    from celery import Celery, signals
    from celery.app.annotations import prepare
    from celery.canvas import Signature

__all__ = ["CeleryTenancy", "install_tenancy", "no_tenant"]

logger = logging.getLogger(__name__)

FOR_EACH = "multitenant.for_each_tenant"
"""The task that enqueues another one for each tenant."""

AnyTask: TypeAlias = Any
"""A task, or its class. Celery's own hints are too few to check against."""

_ENTERED = "multitenant_entered"
_CALLERS = ("celery.map", "celery.starmap")


def install_tenancy(app: Celery, tenants: TenantManager, **options: Any) -> CeleryTenancy:
    """Stamp messages with their tenant, and make it the current one while their tasks run.

    Args:
        app: the application, where it enqueues as in the workers; its `tenancy` is what is returned.
        tenants: the manager. It is closed when a worker's process ends.
        options: see `JobTenancy`.

    Raises:
        ConfigurationError: the manager is an `AsyncTenantManager`, or the application has a tenancy already.
    """
    if "tenancy" in vars(app):
        raise ConfigurationError("app", app, "it has a tenancy already")
    tenancy = vars(app)["tenancy"] = CeleryTenancy(app, tenants, **options)
    return tenancy


class CeleryTenancy(JobTenancy):
    """Stamps messages, and makes their tenant the current one while their tasks run.

    Attributes:
        tenants: the manager.
        context: which tells the tenant; `context.get_tenant_db()` works in a task.
    """

    tenants: TenantManager

    def __init__(self, app: Any, tenants: TenantManager, **options: Any) -> None:
        """See `install_tenancy`."""
        if not isinstance(tenants, TenantManager):
            raise ConfigurationError("tenants", tenants, "Celery awaits nothing: use a TenantManager")
        super().__init__(tenants, **options)
        self._app = app
        self._publish: Callable[..., Any] = app.send_task
        app.send_task = self._send
        # No signal can refuse a task: what receivers raise is logged, and the task runs. Hence the guard.
        app.annotations = _Annotations(app, self._guard)
        app.on_after_finalize.connect(self._guard_all, weak=False)
        self._guard_all()
        self._init_task = app.loader.on_task_init
        app.loader.on_task_init = self._on_task_init
        self._make_own_backend = app._get_backend
        app._get_backend = self._make_backend
        signals.task_prerun.connect(self._before, weak=False)
        signals.task_postrun.connect(self._after, weak=False)
        signals.worker_process_shutdown.connect(self._close, weak=False)
        signals.worker_shutdown.connect(self._close, weak=False)
        app.task(name=FOR_EACH, shared=False)(no_tenant(_for_each(self)))

    # -- enqueuing ------------------------------------------------------------------------------------

    def for_tenant(self, signature: Signature, tenant: str) -> Signature:
        """A copy of a signature that runs for this tenant, whichever is current when it is enqueued.

        It has ids of its own: a chain that is sent twice has the same ones both times, and one result.

        group(tenancy.for_tenant(report.s(), tenant) for tenant in ("acme", "globex"))

        Raises:
            InvalidTenantIdError: `tenant` is not a valid id.
        """
        parsed = parse_tenant_id(tenant)
        return self._app.signature(stamped(signature, parsed, parsed, again=True))

    def for_each_tenant(self, signature: Signature) -> int:
        """Enqueue a signature once for each active tenant; returns for how many. For beat there is a task:

        app.conf.beat_schedule = {
            "reports": {
                "task": "multitenant.for_each_tenant",
                "schedule": crontab(hour=3),
                "args": [report.s()],
            }
        }
        """
        count = 0
        with self._app.producer_or_acquire() as producer:
            for record in self.tenants.list_tenants():
                if record.status == "active":
                    self.for_tenant(signature, record.id).apply_async(producer=producer)
                    count += 1
        return count

    def _send(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        *rest: Any,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """In place of the application's `send_task`, through which every message goes."""
        current = self.current()
        stamp = options.pop(OPTION, None)
        stamp = (headers or {}).get(STAMP) if stamp is None else stamp
        stamp = current if stamp is None else stamp and parse_tenant_id(stamp)
        task = options.get("task_type")
        if task is not None:  # others are not known here: the worker refuses them
            self.check_stamp(name, stamp, needs_none=self._needs_none(task, kwargs))
        own, chords = stamp or NOBODY, current or NOBODY
        for key in NESTED:
            if options.get(key):
                # The tasks of a chord may be for several tenants; its body is for that of whoever makes the
                # chord, and never for that of the task which happens to end last.
                options[key] = stamped(options[key], chords if key == "chord" else own, chords)
        if stamp is not None:
            headers = {**(headers or {}), STAMP: stamp}
            args = [stamped(value, stamp, chords) for value in args or ()]
            kwargs = {key: stamped(value, stamp, chords) for key, value in (kwargs or {}).items()}
        return self._publish(name, args, kwargs, *rest, headers=headers, **options)

    # -- running --------------------------------------------------------------------------------------

    def _before(self, task: AnyTask, args: Any, kwargs: Any, **_: Any) -> None:
        if task.app is not self._app:
            return
        request = task.request
        # The headers of a message are attributes; `headers` may be some that a tracer has put in.
        stamp = getattr(request, STAMP, None)
        stamp = (request.headers or {}).get(STAMP) if stamp is None else stamp
        if stamp is None and request.is_eager:
            stamp = self.current()
        job = Job(task.name, args or (), kwargs or {}, stamp, self._needs_none(task, kwargs), request)
        setattr(request, _ENTERED, self._enter_job(job))

    def _enter_job(self, job: Job) -> _Entered:
        """Make a job's tenant the current one; or none, where it has none or is refused."""
        error: Exception | None = None
        block = self.context.without_tenant()
        block.__enter__()  # whatever another job may have left open
        try:
            if (use := self.resolve(job)) is not None:
                use.__enter__()
        except Exception as refusal:
            error = refusal
        return _Entered(block, error)

    def _leave_job(self, entered: _Entered) -> None:
        entered.block.__exit__(None, None, None)

    def _guard(self, task_class: AnyTask) -> None:
        """Let no code of a task run before its tenant is known: neither the function, nor a `__call__`, nor
        handlers of a base class."""
        if "__multitenant_guarded__" in vars(task_class):
            return
        before_start = task_class.before_start

        def guarded(task: AnyTask, task_id: str, args: Any, kwargs: Any) -> Any:
            self._refuse(task)
            return before_start(task, task_id, args, kwargs)

        guarded.__multitenant_guards__ = self  # type: ignore[attr-defined]
        task_class.before_start = guarded
        task_class.__multitenant_guarded__ = True

    def _guard_all(self, *_: Any, **__: Any) -> None:
        # Not `app.tasks`, which reads the configuration: that may not be there yet.
        for task in self._app._tasks.values():
            self._guard(type(task))

    def _refuse(self, task: AnyTask) -> None:
        """Raise if the task is not to run."""
        if task.app is not self._app:
            return
        entered = getattr(task.request, _ENTERED, None)
        if entered is None:  # the signal's receiver was interrupted
            self._before(task, task.request.args, task.request.kwargs)
            entered = getattr(task.request, _ENTERED)
        if entered.error is not None:
            raise entered.error

    def _on_task_init(self, task_id: str, task: AnyTask) -> Any:
        """Called by Celery for each task, just before it starts. An error here is one of Celery's own; hence
        only where the guard was lost, to annotations or to a class that was bound before."""
        if getattr(type(task).before_start, "__multitenant_guards__", None) is not self:
            self._refuse(task)
        return self._init_task(task_id, task)

    def _after(self, task: AnyTask, **_: Any) -> None:
        if task.app is self._app and (entered := getattr(task.request, _ENTERED, None)) is not None:
            self._leave_job(entered)

    def _make_backend(self) -> Any:
        """Celery calls errbacks that take more than an id by itself, and sends no message."""
        backend = self._make_own_backend()
        call = backend._call_task_errbacks

        def call_each(request: Any, error: Any, traceback: Any) -> None:
            for one in request.errbacks:
                signature = self._app.signature(one)
                alone = copy(request)
                alone.errbacks = [signature]
                task = self._app.tasks.get(signature.task)
                if task is None:  # a message for another worker
                    call(alone, error, traceback)
                    continue
                stamp = stamp_of(signature.options)
                if stamp is None and getattr(request, "is_eager", False):
                    stamp = self.current()
                needs_none = self._needs_none(task, signature.kwargs)
                entered = self._enter_job(Job(task.name, (), signature.kwargs, stamp, needs_none, request))
                try:
                    if entered.error is None:
                        call(alone, error, traceback)
                    else:
                        logger.error("errback %s was not called: %s", task.name, entered.error)
                finally:
                    self._leave_job(entered)

        backend._call_task_errbacks = call_each
        return backend

    def _needs_none(self, task: AnyTask, kwargs: Mapping[str, Any] | None) -> bool:
        """Celery's own tasks are its housekeeping; but for those that call others."""
        if task.name in _CALLERS:
            called = self._app.tasks.get((kwargs or {})["task"]["task"])
            return called is None or is_marked(called.run)
        return getattr(task.run, "__module__", "") == "celery.app.builtins" or is_marked(task.run)

    def _enter(self, tenant: TenantId) -> Any:
        # A server that cannot be reached is the task's own matter, which may be one that is tried again.
        with suppress(SQLAlchemyError):
            return super()._enter(tenant)

    def _close(self, **_: Any) -> None:
        self.tenants.close()


class _Entered(NamedTuple):
    """What was done before a task.

    Attributes:
        block: in which it runs.
        error: why it is refused, or None.
    """

    block: WithoutTenant[Any]
    error: Exception | None


class _Annotations:
    """The application's own `task_annotations`, and the guard: applied to each task that is bound to it. Its
    configuration is not read before it is asked for."""

    def __init__(self, app: Celery, guard: Callable[[AnyTask], None]) -> None:
        self._app, self._guard = app, guard

    def __iter__(self) -> Iterator[Any]:
        yield self
        yield from prepare(self._app.conf.task_annotations)

    def annotate(self, task_class: AnyTask) -> None:
        """Called by Celery."""
        self._guard(task_class)

    def annotate_any(self) -> None:
        """Called by Celery."""


def _for_each(tenancy: CeleryTenancy) -> Callable[[Mapping[str, Any]], int]:
    """The function of that task: Celery reads its name and its parameters, and takes no method."""

    def for_each_tenant(signature: Mapping[str, Any]) -> int:
        return tenancy.for_each_tenant(tenancy._app.signature(signature))

    return for_each_tenant
