"""Applies a plan to one schema: one lock, one transaction, one round trip where everything is compiled.

What has to hold before a statement may run (nobody else is at work on the schema, it is there, it is at the
revision that the plan starts from) is asserted by guards.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import psycopg
from sqlalchemy import Connection, event

from ..engines.admin import CLEAN
from ..engines.pipeline import StatementError, send_all
from ..errors import MigrationError
from ..isolation.sqltext import names_only
from ..naming import quote_ident, quote_literal
from . import steps
from .batch import Batch, driver_of, failed_guard, settings_sql, statement_failed
from .guards import PlanOutdatedError, SchemaGuards, SchemaLockedError, roll_back
from .history import History
from .inside import inside_transaction
from .plan import (
    Destination,
    MigrationPlan,
    Segment,
    SegmentKind,
    Statement,
    Timeouts,
    changes_role,
)

# CREATE INDEX CONCURRENTLY if_not_exists name ON ...
_CONCURRENT_INDEX = re.compile(
    r"\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?"
    r'(?P<name>"(?:[^"]|"")+"|[\w$]+)\s+ON\b',
    re.IGNORECASE,
)


class Observer(Protocol):
    """Is told of each revision."""

    def before(self, revision: str) -> None: ...
    def after(self, revision: str, duration_ms: float) -> None: ...


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
    batch = batch or Batch.within(connection, to.tenant)
    application = _Application(connection, plan, history, to, timeouts, batch=batch)
    application.run_inside(is_new=is_new, commits=commits)


def migrate_schema(
    connection: Connection,
    plan: MigrationPlan,
    history: History,
    to: Destination,
    timeouts: Timeouts,
    *,
    shared_schema: str,
    before_commit: Sequence[str] = (),
    observer: Observer | None = None,
) -> None:
    """The same in transactions of its own: one, unless the plan has borders. The connection is in none, and
    is left in none.

    Args:
        shared_schema: where the steps of plans with borders are noted.
        before_commit: SQL that goes into the last transaction.
        observer: is told of each revision, at the price of a round trip for each.
    """
    application = _Application(connection, plan, history, to, timeouts, before_commit, observer)
    application.run_alone(shared_schema)


class _Application:
    """One plan on its way into one schema."""

    def __init__(
        self,
        connection: Connection,
        plan: MigrationPlan,
        history: History,
        to: Destination,
        timeouts: Timeouts,
        before_commit: Sequence[str] = (),
        observer: Observer | None = None,
        batch: Batch | None = None,
    ) -> None:
        self._connection, self._plan, self._history = connection, plan, history
        self._to, self._timeouts, self._before_commit = to, timeouts, before_commit
        self._observer = observer
        self._driver = driver_of(connection)
        self._batch = batch or Batch(self._driver, to.tenant)
        self._guards = SchemaGuards(self._driver, to, history.version_table)

    # -- in somebody's transaction --------------------------------------------------------------------

    def run_inside(self, *, is_new: bool, commits: bool) -> None:
        with self._guards.explained(self._plan.end):
            self._open(has_record=None if is_new else self._guards.has_record())
            for segment in self._plan.segments:
                if segment.kind is SegmentKind.ONLINE:
                    self._run_online(segment, in_transaction=True, is_unused=True)
                else:
                    self._add_compiled(inside_transaction(segment.statements))
            self._close()
            if commits:
                self._batch.add("COMMIT")
            self._batch.send()
        if commits and self._plan.spares_session:
            self._connection.info[CLEAN] = True

    # -- in transactions of its own -------------------------------------------------------------------

    def run_alone(self, shared_schema: str) -> None:
        try:
            if self._plan.has_borders:
                with self._guards.explained(self._plan.end), self._locked_session():
                    self._run_parts(steps.Steps(shared_schema, self._to.schema))
            else:
                self._run_from(has_record=bool(self._plan.start))
                if self._plan.spares_session:
                    self._connection.info[CLEAN] = True
        except BaseException:
            roll_back(self._driver)
            raise
        finally:
            if not self._driver.closed:
                self._forget_transaction()

    def _run_from(self, *, has_record: bool) -> None:
        try:
            with self._guards.explained(self._plan.end):
                self._run_whole(has_record=has_record)
        except PlanOutdatedError as outdated:
            if has_record or outdated.found != self._plan.start:
                raise
            self._run_from(has_record=True)  # there is a version table, and it is empty

    def _run_whole(self, *, has_record: bool) -> None:
        self._batch.add("BEGIN")
        # The run ends with a commit that waits for the disk, and so for all that came before it. Should the
        # server die earlier, a tenant is where it was, and its record says so
        # (https://www.postgresql.org/docs/current/wal-async-commit.html).
        self._batch.add("SET LOCAL synchronous_commit = off")
        self._open(has_record=has_record)
        for segment in self._plan.segments:
            self._run_segment(segment)
        self._close()
        self._commit()

    def _run_parts(self, progress: steps.Steps) -> None:
        """Where a transaction ends in the middle of a revision, what of it was done is noted in the same
        transaction, so that a run after a crash goes on from there."""
        revision, done = progress.read(self._driver, self._plan)
        self._batch.add("BEGIN")
        self._open(has_record=self._guards.has_record())
        for segment in self._plan.segments:
            if not segment.is_border:
                self._run_segment(steps.skip_done(self._plan, segment, revision, done))
                continue
            if segment.kind is SegmentKind.ONLINE:
                self._commit()
                self._run_online(segment, in_transaction=False)
                self._begin_again()
                continue
            first = segment.statements[0]
            position = steps.position(self._plan, first)
            if first.revision != revision or position >= done:
                self._batch.add(progress.note_sql(self._plan, first, position))
            self._commit()
            self._run_autocommit(segment, progress, revision, done)
            self._begin_again()
        self._close()
        self._batch.add(progress.forget_sql)
        self._commit()

    def _commit(self) -> None:
        self._batch.add("COMMIT")
        self._batch.send()
        self._forget_transaction()

    def _forget_transaction(self) -> None:
        """The server is in none; now SQLAlchemy knows it as well, and sends nothing."""
        if self._connection.in_transaction():
            self._connection.rollback()

    def _begin_again(self) -> None:
        self._batch.add("BEGIN")
        self._batch.add(settings_sql(self._to.search_path, self._timeouts))
        self._batch.add(self._guards.still_there)

    def _run_autocommit(
        self, segment: Segment, progress: steps.Steps, revision: str | None, done: int
    ) -> None:
        """Statements outside of transactions; the session has the search path meanwhile."""
        self._batch.add(settings_sql(self._to.search_path, self._timeouts, local=False))
        self._batch.send()
        try:
            for statement in segment.statements:
                position = steps.position(self._plan, statement)
                if statement.revision == revision and position < done:
                    continue
                self._send_alone(statement, is_resumed=statement.revision == revision and position == done)
                self._batch.add(progress.note_sql(self._plan, statement, position + 1))
                self._batch.send()
        finally:
            if not self._driver.closed:
                send_all(
                    self._driver, [b"RESET search_path", b"RESET lock_timeout", b"RESET statement_timeout"]
                )

    def _send_alone(self, statement: Statement, *, is_resumed: bool) -> None:
        # Comments before it are blanks now; the name may be quoted, and stays.
        match = _CONCURRENT_INDEX.match(names_only(statement.sql))
        try:
            if match is not None:
                # It waits for others' transactions, and nobody waits for it.
                send_all(self._driver, [b"SET lock_timeout = 0"])
                valid = self._find_index(match["name"])
                if valid is False:
                    send_all(self._driver, [f"DROP INDEX CONCURRENTLY {match['name']}".encode()])
                elif valid and is_resumed:
                    return  # it was finished, and the run ended before that could be noted
            send_all(self._driver, [statement.sql.encode()])
            if changes_role(statement.sql):
                send_all(self._driver, [self._guards.role.encode()])
        except StatementError as failed:
            if failed_guard(failed.error):
                raise
            raise statement_failed(failed.error, statement, self._to.tenant) from failed.error

    def _find_index(self, name: str) -> bool | None:
        """Whether the index of this name in the schema is valid; None where there is none."""
        sql = (
            "SELECT i.indisvalid FROM pg_catalog.pg_index i "
            "JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid "
            f"WHERE c.oid = to_regclass({quote_literal(name)}) "
            f"AND c.relnamespace = {quote_literal(quote_ident(self._to.schema))}::regnamespace"
        )
        (result,) = send_all(self._driver, [sql.encode()])
        return None if not result.ntuples else result.get_value(0, 0) == b"t"

    @contextmanager
    def _locked_session(self) -> Iterator[None]:
        """The lock of the schema for longer than a transaction. Not through a pooler in transaction mode."""
        (result,) = send_all(self._driver, [f"SELECT pg_try_advisory_lock({self._guards.key})".encode()])
        if result.get_value(0, 0) != b"t":
            raise SchemaLockedError(self._to.name)
        try:
            yield
        finally:
            if not self._driver.closed:
                roll_back(self._driver)
                send_all(self._driver, [f"SELECT pg_advisory_unlock({self._guards.key})".encode()])

    # -- both -----------------------------------------------------------------------------------------

    def _open(self, *, has_record: bool | None) -> None:
        """The settings, and the guards.

        Args:
            has_record: whether there is a version table; None where the schema is new, and empty.
        """
        self._batch.add(settings_sql(self._to.search_path, self._timeouts))
        if has_record is None:
            return  # nobody else sees it yet, and its version table is looked for at the end
        self._batch.add(self._guards.locked)
        self._batch.add(self._guards.starts_at(self._plan.start, has_record=has_record))

    def _close(self) -> None:
        self._batch.add(self._guards.ends_at(self._plan.end))
        for sql in self._before_commit:
            self._batch.add(sql)

    def _run_segment(self, segment: Segment) -> None:
        if segment.kind is SegmentKind.ONLINE:
            self._run_online(segment, in_transaction=True)
        else:
            self._add_compiled(segment.statements)

    def _add_compiled(self, statements: Sequence[Statement]) -> None:
        if self._observer is None:
            self._add_all(statements)
            return
        for revision, group in steps.by_revision(statements):
            if revision is None:
                self._add_all(group)
            else:
                self._batch.send()
                self._observed(revision, partial(self._send_group, group))

    def _add_all(self, statements: Sequence[Statement]) -> None:
        if not self._plan.changes_role:
            self._batch.add_all(statements)
            return
        for statement in statements:
            self._batch.add_all([statement])
            if changes_role(statement.sql):
                self._batch.add(self._guards.role)

    def _send_group(self, statements: Sequence[Statement]) -> None:
        self._add_all(statements)
        self._batch.send()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """What Alembic runs meanwhile may not take a role that would not see the schema."""

        def check(_c: Any, _cursor: Any, statement: str, *_: object) -> None:
            if changes_role(statement):
                with self._guards.explained(self._plan.end):
                    send_all(self._driver, [self._guards.role.encode()])

        event.listen(self._connection, "after_cursor_execute", check)
        try:
            yield
        finally:
            event.remove(self._connection, "after_cursor_execute", check)

    def _observed(self, revision: str, work: Callable[[], object]) -> None:
        if self._observer is None:
            work()
            return
        self._observer.before(revision)
        started = time.perf_counter()
        work()
        self._observer.after(revision, (time.perf_counter() - started) * 1000)

    def _run_online(self, segment: Segment, *, in_transaction: bool, is_unused: bool = False) -> None:
        self._batch.send()
        revision = segment.revision
        assert revision is not None  # noqa: S101 - an online segment has one
        if in_transaction:
            # As far as SQLAlchemy knows, too: a Session on the connection must not take it for its own.
            if not self._connection.in_transaction():
                self._connection.begin()
        else:
            self._forget_transaction()
            settings = settings_sql(self._to.search_path, self._timeouts, local=False)
            send_all(self._driver, [settings.encode()])
        transaction = self._transaction_id() if in_transaction else ""
        with self._watched():
            self._observed(
                revision,
                lambda: self._history.run_online(
                    self._connection,
                    self._to.schema,
                    revision,
                    is_downgrade=self._plan.is_downgrade,
                    leaves_transaction=not in_transaction,
                    is_unused=is_unused,
                ),
            )
        if in_transaction and (self._is_idle() or self._transaction_id() != transaction):
            raise MigrationError(
                "the revision has ended the transaction by itself: what came before may stay, and nothing "
                "that comes after it was run. Take its commit or rollback out",
                self._to.tenant,
                revision,
            )

    def _is_idle(self) -> bool:
        return self._driver.info.transaction_status == psycopg.pq.TransactionStatus.IDLE

    def _transaction_id(self) -> str:
        (result,) = send_all(self._driver, [b"SELECT pg_catalog.pg_current_xact_id()::text"])
        return str(result.get_value(0, 0))
