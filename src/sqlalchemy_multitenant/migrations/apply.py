"""Applies a plan to one schema: one lock, one transaction, one round trip where everything is compiled.

What has to hold before a statement may run (nobody else is at work on the schema, it is there, it is at the
revision that the plan starts from) is asserted by guards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from sqlalchemy import Connection

from ..engines.admin import CLEAN
from .batch import Batch
from .execution import Execution, Observer
from .guards import PlanOutdatedError, roll_back
from .history import History
from .inside import inside_transaction
from .parts import InParts
from .plan import Destination, MigrationPlan, Timeouts
from .steps import Steps


def apply_plan(
    connection: Connection,
    plan: MigrationPlan,
    history: History,
    to: Destination,
    timeouts: Timeouts,
    *,
    is_new: bool = False,
    batch: Batch | None = None,
    commits: bool = False,
) -> None:
    """Bring a schema from `plan.start` to `plan.end` in the connection's transaction, which the caller
    commits. What asks to be run outside of transactions is run inside, without CONCURRENTLY: for schemas that
    nobody uses yet.

    Args:
        is_new: the schema was made just now, and is empty.
        batch: what is to be sent before; it goes along.
        commits: let the last message be COMMIT, which then costs no round trip of its own.

    Raises:
        SchemaLockedError: another migrator has it.
        PlanOutdatedError: it is not at `plan.start`.
        TenantNotFoundError: the schema is gone.
        MigrationError: a statement failed; says which, of which revision.
    """
    execution = _InCallersTransaction(connection, plan, history, to, timeouts)
    execution.run(batch or Batch.within(connection, to.tenant), is_new=is_new, commits=commits)


def migrate_schema(
    connection: Connection,
    plan: MigrationPlan,
    history: History,
    to: Destination,
    timeouts: Timeouts,
    *,
    shared_schema: str,
    before_commit: Callable[[], Iterable[str]] = tuple,
    observer: Observer | None = None,
) -> None:
    """The same in transactions of its own: one, unless the plan has borders. The connection is in none, and
    is left in none.

    Args:
        shared_schema: where the steps of plans with borders are noted.
        before_commit: makes SQL that goes into the last transaction.
        observer: is told of each revision, at the price of a round trip for each.

    Raises:
        HalfDoneError: as MigrationError, and to try again would do some of it twice.
    """
    steps = Steps(shared_schema, to.schema)
    kind = InParts if plan.has_borders else _InOneTransaction
    execution = kind(
        connection,
        plan,
        history,
        to,
        timeouts,
        steps=steps,
        before_commit=before_commit,
        observer=observer,
    )
    try:
        execution.run(steps)
    except BaseException:
        roll_back(execution.driver)
        raise
    finally:
        if not execution.driver.closed:
            execution.forget_transaction()


class _InCallersTransaction(Execution):
    """In somebody's transaction."""

    def run(self, batch: Batch, *, is_new: bool, commits: bool) -> None:
        self._batch = batch
        with self._guards.explained():
            self._set_up()
            if not is_new:  # else nobody sees it yet, and its version table is looked for at the end
                self._batch.add(self._guards.locked)
                self._batch.add(self._guards.is_at(self._plan.start, has_record=self._guards.has_record()))
            for segment in self._plan.segments:
                inside = replace(segment, statements=tuple(inside_transaction(segment.statements)))
                self._run_segment(inside, is_unused=True)
            self._finish()
            if commits:
                self._batch.add("COMMIT")
            self._batch.send()
        if commits and self._plan.spares_session:
            self._connection.info[CLEAN] = True


class _InOneTransaction(Execution):
    """In one transaction of its own."""

    def run(self, steps: Steps) -> None:
        self._run_from(steps, has_record=bool(self._plan.start))
        if self._plan.spares_session:
            self._connection.info[CLEAN] = True

    def _run_from(self, steps: Steps, *, has_record: bool) -> None:
        try:
            with self._guards.explained():
                self._run_whole(steps, has_record=has_record)
        except PlanOutdatedError as outdated:
            if has_record or outdated.found != self._plan.start:
                raise
            self._run_from(steps, has_record=True)  # there is a version table, and it is empty

    def _run_whole(self, steps: Steps, *, has_record: bool) -> None:
        self._batch.add("BEGIN")
        # The run ends with a commit that waits for the disk, and so for all that came before it. Should the
        # server die earlier, a tenant is where it was, and its record says so
        # (https://www.postgresql.org/docs/current/wal-async-commit.html).
        self._batch.add("SET LOCAL synchronous_commit = off")
        self._set_up()
        self._batch.add(self._guards.locked)
        self._batch.add(steps.forget_sql if self._plan.is_stamp else self._guards.whole)
        self._batch.add(self._guards.is_at(self._plan.start, has_record=has_record))
        for segment in self._plan.segments:
            self._run_segment(segment)
        self._finish()
        self._commit()
