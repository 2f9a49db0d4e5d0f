"""Migrates one schema, and tries again where that can help."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import Engine

from ..errors import MigrationError, TenantError
from .apply import migrate_schema
from .guards import PlanOutdatedError, SchemaLockedError
from .history import History
from .hooks import HookCalls
from .ledger import Ledger
from .plan import Destination, Heads, MigrationPlan, Timeouts
from .report import MigrationState, TenantResult
from .ways import Way

LOST = "lost connection"
RETRIED_SQLSTATES = {
    "55P03": "lock timeout",
    "40P01": "deadlock",
    "40001": "serialization failure",
    "57P01": LOST,
    "57P02": LOST,
    "57P03": LOST,
    "08006": LOST,
    "08003": LOST,
}
"""What trying again may help against (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""

MAX_ATTEMPTS = 6
LOCKED_PATIENCE_S = 30.0
"""How long another migrator may be at work on a schema, in seconds."""


@dataclass(frozen=True, slots=True)
class Bookkeeping:
    """What a run keeps about each schema, and where.

    Attributes:
        run: the run's number in the ledger; None where nothing is to be written there.
    """

    timeouts: Timeouts
    shared_schema: str
    ledger: Ledger
    run: int | None = None


class SchemaRunner:
    """Brings schemas along one history. Safe to use from several threads.

    Args:
        engine: its connections are used by one schema at a time each.
    """

    def __init__(self, history: History, engine: Engine, books: Bookkeeping, hooks: HookCalls) -> None:
        self._history, self._engine, self._books, self._hooks = history, engine, books, hooks

    def run(self, to: Destination, start: Heads, way: Way, on_start: Callable[[], object]) -> TenantResult:
        """Move one schema from `start`, or from where it turns out to be.

        Args:
            way: makes the plan from given heads.
            on_start: called before the first attempt, where there is anything to do.
        """
        begun = False

        def begin() -> None:
            nonlocal begun
            begun = True
            on_start()
            self._hooks.before_tenant(to.name)

        result = self._move(to, start, way, begin)
        if begun:
            self._hooks.after_tenant(to.name, result)
        return result

    def _move(self, to: Destination, start: Heads, way: Way, on_start: Callable[[], object]) -> TenantResult:
        timer = _Timer(to)
        patience = time.monotonic() + LOCKED_PATIENCE_S
        while True:
            try:
                plan = way(start)
                if plan.is_empty:
                    return timer.result(MigrationState.SKIPPED, start)
                if not timer.attempts:
                    on_start()
                timer.attempts += 1
                self._apply(plan, to, timer)
            except PlanOutdatedError as outdated:
                start = outdated.found
            except SchemaLockedError as locked:
                if time.monotonic() > patience:
                    return timer.result(MigrationState.FAILED, start, error=locked)
                timer.retried("locked")
                time.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - no secret
            except Exception as error:
                # An online revision may raise anything.
                reason = transient_reason(error)
                if reason is None or timer.attempts >= MAX_ATTEMPTS:
                    return timer.result(MigrationState.FAILED, start, error=_translated(error, to))
                timer.retried(reason)
                time.sleep(random.uniform(0, 0.1 * 2**timer.attempts))  # noqa: S311 - no secret
            else:
                return timer.done(plan)

    def _apply(self, plan: MigrationPlan, to: Destination, timer: _Timer) -> None:
        books, before_commit = self._books, []
        if books.run is not None:
            before_commit = [books.ledger.done_sql(books.run, to, plan, timer.attempts, timer.retries)]
        with self._engine.connect() as connection:
            migrate_schema(
                connection,
                plan,
                self._history,
                to,
                books.timeouts,
                shared_schema=books.shared_schema,
                before_commit=before_commit,
                observer=self._hooks.observer(to.name),
            )


class _Timer:
    """Makes the results for one schema."""

    def __init__(self, to: Destination) -> None:
        self._to = to
        self._started = time.perf_counter()
        self.attempts = 0
        self.retries: Counter[str] = Counter()

    def retried(self, reason: str) -> None:
        """Count one attempt that is made again."""
        self.retries[reason] += 1

    def done(self, plan: MigrationPlan) -> TenantResult:
        applied = tuple(revision.id for revision in plan.revisions)
        return self.result(MigrationState.DONE, plan.start, end=plan.end, applied=applied)

    def result(self, state: MigrationState, start: Heads, **more: Any) -> TenantResult:
        values = {"end": start, "attempts": max(self.attempts, 1), "retries": dict(self.retries), **more}
        duration_ms = (time.perf_counter() - self._started) * 1000
        return TenantResult(tenant=self._to.name, state=state, start=start, duration_ms=duration_ms, **values)


def transient_reason(error: BaseException) -> str | None:
    """Why trying again may help, in a word or two; None where it will not."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, psycopg.Error):
            if isinstance(seen, psycopg.OperationalError) and seen.sqlstate is None:
                return LOST
            return RETRIED_SQLSTATES.get(seen.sqlstate or "")
        seen = seen.__cause__
    return None


def _translated(error: BaseException, to: Destination) -> BaseException:
    if isinstance(error, MigrationError) and error.tenant is None:
        named = MigrationError(error.reason, to.tenant, error.revision)
        named.__cause__ = error.__cause__ or error
        return named
    if isinstance(error, MigrationError | TenantError):
        return error
    wrapped = MigrationError(f"{type(error).__name__}: {error}", to.tenant)
    wrapped.__cause__ = error
    return wrapped
