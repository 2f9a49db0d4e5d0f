"""One plan on its way into one schema: what all ways of applying it have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, event

from ..engines.pipeline import send_all
from ..errors import MigrationError
from .batch import Batch, driver_of, settings_sql
from .guards import SchemaGuards
from .history import History
from .inside import SWALLOWED
from .pacing import LockOrder, renewal_sql
from .plan import Destination, MigrationPlan, Segment, SegmentKind, Statement, Timeouts, changes_role
from .steps import Steps


class Observer(Protocol):
    """Is told of each revision."""

    def before(self, revision: str) -> None: ...
    def after(self, revision: str, duration_ms: float) -> None: ...


class Execution:
    """One plan on its way into one schema.

    Args:
        steps: where it is noted that a revision was left half done; None for a schema that nobody else sees.
        before_commit: makes SQL that goes into the last transaction.
        observer: is told of each revision, at the price of a round trip for each.

    Attributes:
        driver: psycopg's own connection.
    """

    def __init__(
        self,
        connection: Connection,
        plan: MigrationPlan,
        history: History,
        to: Destination,
        timeouts: Timeouts,
        *,
        steps: Steps | None = None,
        before_commit: Callable[[], Iterable[str]] = tuple,
        observer: Observer | None = None,
    ) -> None:
        self._connection, self._plan, self._history = connection, plan, history
        self._to, self._timeouts, self._before_commit = to, timeouts, before_commit
        self.driver = driver_of(connection)
        self._batch = Batch(self.driver, to.tenant)
        self._guards = SchemaGuards(self.driver, to, plan, history.version_table, steps)
        self._locks = LockOrder()
        self._observer = observer
        self._observed: str | None = None
        self._since = 0.0

    def _set_up(self) -> None:
        self._batch.add(settings_sql(self._to.search_path, self._timeouts))

    def _finish(self) -> None:
        self._enter(None)
        self._batch.add(self._guards.ends)
        for sql in self._before_commit():
            self._batch.add(sql)

    def _commit(self) -> None:
        self._batch.add("COMMIT")
        self._batch.send()
        self.forget_transaction()

    def forget_transaction(self) -> None:
        """The server is in none; now SQLAlchemy knows it as well, and sends nothing."""
        if self._connection.in_transaction():
            self._connection.rollback()

    # -- segments -------------------------------------------------------------------------------------

    def _run_segment(self, segment: Segment, *, is_unused: bool = False) -> None:
        if segment.kind is SegmentKind.ONLINE:
            self._run_online(segment, is_unused=is_unused)
        else:
            self._add_compiled(segment.statements)

    def _add_compiled(self, statements: Sequence[Statement]) -> None:
        if self._observer is None and self._plan.is_plain and not self._plan.online:
            self._batch.add_all(statements)
            return
        for statement in statements:
            self._enter(statement.revision or self._observed)
            may_wait = self._locks.may_wait(statement.sql) if self._plan.online else statement.may_wait
            if may_wait:
                self._batch.add(renewal_sql(self._timeouts.lock_s))
            self._batch.add_all([statement])
            if changes_role(statement.sql):
                self._batch.add(self._guards.role)

    def _enter(self, revision: str | None) -> None:
        """Tell the observer where one revision ends, and another begins; None after the last one."""
        if self._observer is None or revision == self._observed:
            return
        self._batch.send()
        if self._observed is not None:
            self._observer.after(self._observed, (time.perf_counter() - self._since) * 1000)
        self._observed, self._since = revision, time.perf_counter()
        if revision is not None:
            self._observer.before(revision)

    def _run_online(self, segment: Segment, *, is_unused: bool = False) -> None:
        """Let Alembic run a revision in the transaction that is open."""
        self._enter(segment.revision)
        self._batch.send()
        # As far as SQLAlchemy knows, too: a Session on the connection must not take it for its own.
        if not self._connection.in_transaction():
            self._connection.begin()
        transaction = self._transaction_id()
        self._call_alembic(segment, is_unused=is_unused)
        if self._status is TransactionStatus.INERROR:
            raise MigrationError(SWALLOWED, self._to.tenant, segment.revision)
        if self._status is TransactionStatus.IDLE or self._transaction_id() != transaction:
            raise MigrationError(
                "the revision has ended the transaction by itself: what came before may stay, and nothing "
                "that comes after it was run. Take its commit or rollback out",
                self._to.tenant,
                segment.revision,
            )

    def _call_alembic(
        self, segment: Segment, *, leaves_transaction: bool = False, is_unused: bool = False
    ) -> None:
        assert segment.revision is not None  # noqa: S101 - an online segment has one
        with self._watched(None if leaves_transaction else self._locks):
            self._history.run_online(
                self._connection,
                self._to.schema,
                segment.revision,
                is_downgrade=self._plan.is_downgrade,
                leaves_transaction=leaves_transaction,
                is_unused=is_unused,
            )

    @contextmanager
    def _watched(self, locks: LockOrder | None) -> Iterator[None]:
        """What Alembic runs meanwhile may not take a role that would not see the schema, nor wait for one
        lock after the other."""

        def renew(_c: Any, _cursor: Any, statement: str, *_: object) -> None:
            if locks is not None and locks.may_wait(statement):
                send_all(self.driver, [renewal_sql(self._timeouts.lock_s).encode()])

        def check(_c: Any, _cursor: Any, statement: str, *_: object) -> None:
            if changes_role(statement):
                with self._guards.explained():
                    send_all(self.driver, [self._guards.role.encode()])

        event.listen(self._connection, "before_cursor_execute", renew)
        event.listen(self._connection, "after_cursor_execute", check)
        try:
            yield
        finally:
            event.remove(self._connection, "before_cursor_execute", renew)
            event.remove(self._connection, "after_cursor_execute", check)

    @property
    def _status(self) -> TransactionStatus:
        return self.driver.info.transaction_status

    def _transaction_id(self) -> str:
        (result,) = send_all(self.driver, [b"SELECT pg_catalog.pg_current_xact_id()::text"])
        return str(result.get_value(0, 0))
