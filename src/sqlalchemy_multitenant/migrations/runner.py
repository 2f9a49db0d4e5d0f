"""Migrates one schema, and tries again where that can help."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, event

from ..errors import MigrationError, TenantError
from .apply import migrate_schema
from .batch import driver_of
from .guards import PlanOutdatedError, SchemaGuards, SchemaLockedError
from .history import History
from .hooks import HookCalls
from .journey import Journey
from .ledger import Ledger, is_held_by_run
from .parts import HalfDoneError
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

BACK_OFF_S = (0.05, 0.5)
"""How long to leave a schema alone that another migrator is at work on, in seconds: from, to."""

_CANCEL_TIMEOUT_S = 5.0


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
        self._at_work: set[psycopg.Connection[Any]] = set()
        self._is_cancelled = False

    def cancel(self) -> None:
        """Have all that runs now end with an error, and be rolled back."""
        self._is_cancelled = True
        event.listen(self._engine, "before_cursor_execute", _refuse)
        for driver in list(self._at_work):
            with suppress(psycopg.Error):
                driver.cancel_safe(timeout=_CANCEL_TIMEOUT_S)

    def run(
        self, journey: Journey, way: Way, on_start: Callable[[], object], *, waits: bool = True
    ) -> TenantResult:
        """Move one schema from where it is.

        Args:
            way: makes the plan from given heads.
            on_start: called before the first attempt, where there is anything to do.
            waits: while another migrator is at work on it; else that is raised.

        Raises:
            SchemaLockedError: another migrator is; go on with the journey later.
        """
        result = self._move(journey, way, on_start, waits=waits)
        if journey.is_begun:
            self._hooks.after_tenant(journey.to.name, result)
        return result

    def _move(
        self, journey: Journey, way: Way, on_start: Callable[[], object], *, waits: bool
    ) -> TenantResult:
        plan: MigrationPlan | None = None
        while True:
            try:
                plan = way(journey.at)
                if plan.is_empty:
                    # What somebody else has finished is nobody's to tell here.
                    state = MigrationState.DONE if journey.is_finished else MigrationState.SKIPPED
                    return journey.result(state)
                self._begin(journey, on_start)
                self._apply(plan, journey)
            except PlanOutdatedError as outdated:
                self._relocate(journey, plan, outdated.found)
            except SchemaLockedError as locked:
                journey.retries["locked"] += 1
                if not journey.is_patient and not self._is_worked_on(journey):
                    return journey.result(MigrationState.FAILED, error=locked)
                if not waits:
                    raise
                time.sleep(random.uniform(*BACK_OFF_S))  # noqa: S311 - no secret
            except Exception as error:
                # An online revision may raise anything.
                self._relocate(journey, plan)
                reason = transient_reason(error)
                failures = journey.attempts - journey.retries["locked"]
                if reason is None or failures >= MAX_ATTEMPTS or self._is_cancelled:
                    failure = _translated(error, journey.to)
                    return journey.result(MigrationState.FAILED, error=failure)
                journey.retries[reason] += 1
                time.sleep(random.uniform(0, 0.1 * 2**failures))  # noqa: S311 - no secret
            else:
                journey.went(plan, plan.end)
                return journey.result(MigrationState.DONE)

    def _begin(self, journey: Journey, on_start: Callable[[], object]) -> None:
        if not journey.is_begun:
            journey.is_begun = True
            on_start()
            self._hooks.before_tenant(journey.to.name)
        journey.attempts += 1

    def _is_worked_on(self, journey: Journey) -> bool:
        """Whether who holds the lock is a migrator in the middle of its run."""
        with suppress(Exception), self._engine.connect() as connection:
            if is_held_by_run(connection, journey.to.schema):
                journey.wait_on()
                return True
        return False

    def _relocate(self, journey: Journey, plan: MigrationPlan | None, found: Heads | None = None) -> None:
        """Where the schema is after a plan was not applied whole: a part of it may have been committed, or
        all of it, and the answer been lost.

        Args:
            found: what the record says, where that is known.
        """
        if plan is None or not journey.attempts:
            return
        # Where no attempt has failed yet, who has moved it is somebody else.
        may_be_ours = found is None or journey.has_failed
        with suppress(Exception), self._engine.connect() as connection:
            if found is None:
                if not plan.has_borders:
                    return  # where it was; or if only the answer was lost, the next attempt finds it
                guards = SchemaGuards(driver_of(connection), journey.to, plan, self._history.version_table)
                found = guards.read_record()
            if found == journey.at:
                return
            if may_be_ours and self._is_ours(connection, journey.to, plan, found):
                journey.went(plan, found)
                return
        if found is not None:
            journey.set_out(found)

    def _is_ours(self, connection: Connection, to: Destination, plan: MigrationPlan, found: Heads) -> bool:
        """Whether the plan can have brought the schema there."""
        if found != plan.end:
            return plan.has_borders and found in {segment.recorded for segment in plan.segments}
        run = self._books.run
        return run is not None and self._books.ledger.is_done(connection, run, to.name)

    def _apply(self, plan: MigrationPlan, journey: Journey) -> None:
        books, to = self._books, journey.to

        def note() -> Iterator[str]:
            if books.run is not None:
                counts: dict[str, Any] = {"attempts": journey.attempts, "retries": journey.retries}
                yield books.ledger.done_sql(
                    books.run, to, plan, journey.start, before_ms=journey.elapsed_ms, **counts
                )

        with self._engine.connect() as connection:
            driver = driver_of(connection)
            self._at_work.add(driver)
            try:
                if self._is_cancelled:
                    raise MigrationError("interrupted before it was begun", to.name)
                migrate_schema(
                    connection,
                    plan,
                    self._history,
                    to,
                    books.timeouts,
                    shared_schema=books.shared_schema,
                    before_commit=note,
                    observer=self._hooks.observer(to.name),
                )
            finally:
                self._at_work.discard(driver)


def _refuse(*_: object) -> None:
    """What a revision that Alembic runs would send next."""
    raise MigrationError("interrupted")


def transient_reason(error: BaseException) -> str | None:
    """Why trying again may help, in a word or two; None where it will not."""
    seen: BaseException | None = None if isinstance(error, HalfDoneError) else error
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
