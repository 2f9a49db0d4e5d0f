"""Calls the application's hooks around migrations, and keeps what they raise apart from what these do."""

from __future__ import annotations

import logging

from ..events import MigrationHooks
from .report import HookError, TenantResult

logger = logging.getLogger("sqlalchemy_multitenant")


class HookCalls:
    """The hooks of one run. Safe to use from several threads."""

    def __init__(self, hooks: MigrationHooks) -> None:
        self._hooks = hooks
        self.errors: list[HookError] = []

    def _call(self, name: str, tenant: str, *more: object) -> None:
        try:
            getattr(self._hooks, name)(tenant, *more)
        except Exception as error:
            logger.exception("the hook %s failed for %s", name, tenant)
            self.errors.append(HookError(tenant, name, error))

    def before_tenant(self, tenant: str) -> None:
        """Something is about to be done for a tenant."""
        self._call("before_tenant", tenant)

    def after_tenant(self, tenant: str, result: TenantResult) -> None:
        """It is over."""
        self._call("after_tenant", tenant, result)

    def observer(self, tenant: str) -> RevisionCalls | None:
        """What is told of each revision of a tenant; None where nobody wants to know."""
        return RevisionCalls(self, tenant) if self._hooks.wants_migrations else None


class RevisionCalls:
    """The hooks about one tenant's revisions."""

    def __init__(self, calls: HookCalls, tenant: str) -> None:
        self._calls, self._tenant = calls, tenant

    def before(self, revision: str) -> None:
        """A revision is about to be run."""
        self._calls._call("before_migration", self._tenant, revision)

    def after(self, revision: str, duration_ms: float) -> None:
        """It has been run, and is to be committed with the others."""
        self._calls._call("after_migration", self._tenant, revision, duration_ms)
