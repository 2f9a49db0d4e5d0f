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

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from celery import Celery, signals
from celery.app.annotations import prepare
from celery.canvas import Signature
from sqlalchemy.exc import SQLAlchemyError

from ..context import UseTenant
from ..errors import ConfigurationError
from ..manager import TenantManager
from ..naming import TenantId, parse_tenant_id
from .jobs import STAMP, Job, JobTenancy
from .resolver import is_marked, no_tenant

__all__ = ["CeleryTenancy", "install_tenancy", "no_tenant"]

FOR_EACH = "multitenant.for_each_tenant"
"""The task that enqueues another one for each tenant."""

AnyTask: TypeAlias = Any
"""A task, or its class. Celery's own hints are too few to check against."""

_ENTERED = "multitenant_entered"
_NESTED = ("link", "link_error", "chain", "chord")
_CALLERS = ("celery.map", "celery.starmap")
_IDS = ("task_id", "root_id", "parent_id", "group_id", "group_index")
_NOBODY = ""
"""A stamp that says: nobody's, even where a tenant is current."""


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
        return self._app.signature(_stamped(signature, parse_tenant_id(tenant), again=True))

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
        stamp = (headers or {}).get(STAMP)
        stamp = current if stamp is None else stamp and parse_tenant_id(stamp)
        task = options.get("task_type")
        if task is not None:  # others are not known here: the worker refuses them
            self.check_stamp(name, stamp, needs_none=self._needs_none(task, kwargs))
        stamps = dict.fromkeys(_NESTED, stamp or _NOBODY)
        # The tasks of a chord may be for several tenants; its body is for that of whoever makes the chord,
        # and never for that of the task which happens to end last.
        stamps["chord"] = current or _NOBODY
        for key in _NESTED:
            if options.get(key):
                options[key] = _stamped(options[key], stamps[key])
        if stamp is not None:
            headers = {**(headers or {}), STAMP: stamp}
            args = [_stamped(value, stamp) for value in args or ()]
            kwargs = {key: _stamped(value, stamp) for key, value in (kwargs or {}).items()}
        return self._publish(name, args, kwargs, *rest, headers=headers, **options)

    # -- running --------------------------------------------------------------------------------------

    def _before(self, task: AnyTask, args: Any, kwargs: Any, **_: Any) -> None:
        if task.app is not self._app:
            return
        request = task.request
        stamp = (request.headers or {}).get(STAMP)
        if stamp is None and request.is_eager:
            stamp = self.current()
        job = Job(task.name, args or (), kwargs or {}, stamp, self._needs_none(task, kwargs), request)
        entered: UseTenant[Any] | Exception | None
        try:
            entered = self.resolve(job)
            if entered is not None:
                entered.__enter__()
        except Exception as error:
            entered = error
        setattr(request, _ENTERED, (entered,))

    def _guard(self, task_class: AnyTask) -> None:
        """Let no code of a task run before its tenant is known: neither the function, nor a `__call__`, nor
        handlers of a base class."""
        if "__multitenant_guarded__" in vars(task_class):
            return
        before_start = task_class.before_start

        def guarded(task: AnyTask, task_id: str, args: Any, kwargs: Any) -> Any:
            found = getattr(task.request, _ENTERED, None)
            if found is None:  # the signal's receiver was interrupted
                self._before(task, args, kwargs)
                found = getattr(task.request, _ENTERED)
            (entered,) = found
            if isinstance(entered, Exception):
                raise entered
            return before_start(task, task_id, args, kwargs)

        task_class.before_start = guarded
        task_class.__multitenant_guarded__ = True

    def _guard_all(self, *_: Any, **__: Any) -> None:
        # Not `app.tasks`, which reads the configuration: that may not be there yet.
        for task in self._app._tasks.values():
            self._guard(type(task))

    def _after(self, task: AnyTask, **_: Any) -> None:
        if task.app is self._app:
            for entered in getattr(task.request, _ENTERED, ()):
                if isinstance(entered, UseTenant):
                    entered.__exit__(None, None, None)

    def _needs_none(self, task: AnyTask, kwargs: Mapping[str, Any] | None) -> bool:
        """Celery's own tasks are its housekeeping; but for those that call others."""
        if task.name in _CALLERS:
            called = self._app.tasks.get((kwargs or {})["task"]["task"])
            return called is None or is_marked(called.run)
        return task.name.startswith("celery.") or is_marked(task.run)

    def _enter(self, tenant: TenantId) -> Any:
        # A server that cannot be reached is the task's own matter, which may be one that is tried again.
        with suppress(SQLAlchemyError):
            return super()._enter(tenant)

    def _close(self, **_: Any) -> None:
        self.tenants.close()


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
    def for_each_tenant(signature: Mapping[str, Any]) -> int:
        return tenancy.for_each_tenant(tenancy._app.signature(signature))

    return for_each_tenant


def _stamped(value: Any, stamp: str, *, again: bool = False) -> Any:
    """A copy of a signature, or of a list of them, that carries a stamp, and so do all that hang on it; those
    that have one keep it, unless `again`. Other values as they are."""
    if isinstance(value, list | tuple):
        return (
            [_stamped(item, stamp, again=again) for item in value]
            if any(map(_is_signature, value))
            else value
        )
    if not _is_signature(value):
        return value
    options = dict(value.get("options") or {})
    if again:
        for key in _IDS:
            options.pop(key, None)
    headers = dict(options.get("headers") or {})
    if again or headers.get(STAMP) is None:
        headers[STAMP] = stamp
    for key in _NESTED:
        if options.get(key):
            options[key] = _stamped(options[key], stamp, again=again)
    arguments = {key: _stamped(item, stamp, again=again) for key, item in (value.get("kwargs") or {}).items()}
    return {**value, "options": {**options, "headers": headers}, "kwargs": arguments}


def _is_signature(value: object) -> bool:
    return isinstance(value, dict) and "subtask_type" in value and "task" in value
