"""`JobTenancy`: a job is stamped with its tenant when it is enqueued, and runs for that one or not at all.

The modules of the queues are built on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checks import check
from ..context import TenantContext
from ..errors import NoTenantError, TenantConflictError
from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from ..naming import TenantId, parse_tenant_id
from .resolver import Resolver

STAMP = "tenant"
"""What the stamp is called in a message."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job that is about to run.

    Attributes:
        name: of its task.
        args: positional arguments; none where a queue knows none.
        kwargs: arguments by name.
        stamp: the tenant it was enqueued for, or None.
        needs_none: whether its task is marked with `no_tenant`.
        raw: what the queue knows of it: Celery's request, procrastinate's context.
    """

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    stamp: str | None
    needs_none: bool
    raw: Any


class JobTenancy(Resolver[Job]):
    """Stamps jobs, and makes their tenant the current one while they run.

    Attributes:
        tenants: the manager.
        context: which tells the tenant; `context.get_tenant_db()` works in a job.
    """

    def __init__(
        self,
        tenants: TenantManager | AsyncTenantManager,
        *,
        extract_tenant_id: Callable[[Job], str | None] | None = None,
        context: TenantContext[Any, Any] | None = None,
        validate_tenant: Callable[..., Any] | None = None,
        enrich_context: Callable[..., Any] | None = None,
        check_every_s: float = 60.0,
    ) -> None:
        """
        Args:
            tenants: the manager.
            extract_tenant_id: finds the id in a `Job` that may have no stamp, since another program enqueued
                it; in its arguments, say. Where there is a stamp, they must agree.
            context: the application's own, where it has one already: jobs are stamped with its tenant.
            validate_tenant: called with the id, and the `Job` if it takes two arguments; False refuses the
                tenant as unknown, and what it raises fails the job.
            enrich_context: called with the id and the `Job`; returns `context.get_tenant().data`.
            check_every_s: seconds for which a tenant that was there is taken to be there still; the database
                checks it again with each transaction.
        """
        check(
            extract_tenant_id is None or callable(extract_tenant_id),
            "extract_tenant_id",
            extract_tenant_id,
            "a callable",
        )
        super().__init__(
            tenants,
            extract_tenant_id=self._find,
            context=context,
            validate_tenant=validate_tenant,
            enrich_context=enrich_context,
            check_every_s=check_every_s,
        )
        self._extract_unstamped = extract_tenant_id

    def _find(self, job: Job) -> str | None:
        stamp = job.stamp or None
        if self._extract_unstamped is None:
            return stamp
        found = self._extract_unstamped(job) or None
        if stamp is not None and found is not None and parse_tenant_id(found) != stamp:
            raise TenantConflictError(f"job {job.name} is stamped with {stamp!r}, and says {found!r}")
        return stamp or found

    def _allow_none(self, work: Job, found: object) -> None:  # noqa: ARG002
        self.check_stamp(work.name, None, needs_none=work.needs_none)

    def check_stamp(self, name: str, stamp: str | None, *, needs_none: bool) -> None:
        """
        Raises:
            NoTenantError: a job of this task needs a tenant.
        """
        if not stamp and not needs_none:
            raise NoTenantError(
                f"task {name} has no tenant: enqueue it where one is set (context.use_tenant), or mark it "
                "with no_tenant"
            )

    def current(self) -> TenantId | None:
        """What a job is stamped with that is enqueued here."""
        current = self.context.get_tenant_or_none()
        return None if current is None else current.id
