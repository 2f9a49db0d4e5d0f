"""Migrates one schema, and tries again where that can help."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ..errors import MigrationError, TenantError
from .apply import PlanOutdatedError, SchemaLockedError, apply_plan
from .history import History
from .plan import Destination, Heads, MigrationPlan, Timeouts
from .report import MigrationState, TenantResult

RETRIED_SQLSTATES = frozenset({"55P03", "40P01", "40001", "57P01", "57P02", "57P03", "08006", "08003"})
"""Lock timeout, deadlock, serialization failure, and a connection that was ended
(https://www.postgresql.org/docs/current/errcodes-appendix.html)."""

MAX_ATTEMPTS = 6
LOCKED_PATIENCE_S = 30.0
"""How long another migrator may be at work on a schema, in seconds."""


class SchemaRunner:
    """Brings schemas to the newest revision of one history. Safe to use from several threads."""

    def __init__(self, history: History, engine: Engine, timeouts: Timeouts) -> None:
        self._history, self._engine, self._timeouts = history, engine, timeouts

    def upgrade(self, to: Destination, start: Heads, on_start: Callable[[], object]) -> TenantResult:
        """Migrate one schema from `start`, or from where it turns out to be.

        Args:
            on_start: called before the first attempt, where anything is pending.
        """
        timer = _Timer(to)
        patience = time.monotonic() + LOCKED_PATIENCE_S
        while True:
            try:
                plan = self._history.plan_upgrade(start)
                if plan.is_empty:
                    return timer.result(MigrationState.SKIPPED, start)
                if not timer.attempts:
                    on_start()
                timer.attempts += 1
                self._apply(plan, to)
            except PlanOutdatedError as outdated:
                start = outdated.found
            except SchemaLockedError as locked:
                if time.monotonic() > patience:
                    return timer.result(MigrationState.FAILED, start, error=locked)
                time.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - no secret
            except Exception as error:
                # An online revision may raise anything.
                if not is_transient(error) or timer.attempts >= MAX_ATTEMPTS:
                    return timer.result(MigrationState.FAILED, start, error=_translated(error, to))
                time.sleep(random.uniform(0, 0.1 * 2**timer.attempts))  # noqa: S311 - no secret
            else:
                return timer.done(plan)

    def mark(self, to: Destination, start: Heads) -> TenantResult:
        """Record the newest revision, and run nothing."""
        timer = _Timer(to)
        plan = self._history.plan_stamp(start)
        if plan.is_empty:
            return timer.result(MigrationState.SKIPPED, start)
        timer.attempts += 1
        try:
            self._apply(plan, to)
        except (MigrationError, DBAPIError, psycopg.Error, TenantError, PlanOutdatedError) as error:
            return timer.result(MigrationState.FAILED, start, error=_translated(error, to))
        return timer.done(plan)

    def _apply(self, plan: MigrationPlan, to: Destination) -> None:
        with self._engine.begin() as connection:
            apply_plan(connection, plan, self._history, to, self._timeouts)


class _Timer:
    """Makes the results for one schema."""

    def __init__(self, to: Destination) -> None:
        self._to = to
        self._started = time.perf_counter()
        self.attempts = 0

    def done(self, plan: MigrationPlan) -> TenantResult:
        applied = tuple(revision.id for revision in plan.revisions)
        return self.result(MigrationState.DONE, plan.start, end=plan.end, applied=applied)

    def result(self, state: MigrationState, start: Heads, **more: Any) -> TenantResult:
        values = {"end": start, "attempts": max(self.attempts, 1), **more}
        duration_ms = (time.perf_counter() - self._started) * 1000
        return TenantResult(tenant=self._to.name, state=state, start=start, duration_ms=duration_ms, **values)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, psycopg.Error):
            if isinstance(seen, psycopg.errors.PipelineAborted):
                return False
            lost = isinstance(seen, psycopg.OperationalError) and seen.sqlstate is None
            return lost or seen.sqlstate in RETRIED_SQLSTATES
        seen = seen.__cause__
    return False


def _translated(error: BaseException, to: Destination) -> BaseException:
    if isinstance(error, MigrationError) and error.tenant is None:
        named = MigrationError(error.reason, to.name, error.revision)
        named.__cause__ = error.__cause__ or error
        return named
    if isinstance(error, MigrationError | TenantError):
        return error
    wrapped = MigrationError(f"{type(error).__name__}: {error}", to.name)
    wrapped.__cause__ = error
    return wrapped
