"""Applies a plan that ends its transaction in the middle of a revision (autocommit_block).

What of the revision was done is noted in the transaction that did it, or right after the statement that needs
none, so that a run after a crash goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

from ..engines.pipeline import StatementError, send_all
from ..errors import MigrationError
from ..isolation.sqltext import names_only
from ..naming import quote_ident, quote_literal
from .batch import failed_guard, settings_sql, statement_failed
from .execution import Execution
from .guards import SchemaLockedError, roll_back
from .plan import Heads, Segment, SegmentKind, Statement, changes_role
from .steps import HalfDone, Steps, position

_CONCURRENT_INDEX = re.compile(
    r"\s*(?:CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?"
    r'(?P<made>"(?:[^"]|"")+"|[\w$]+)\s+ON\b'
    r"|DROP\s+INDEX\s+CONCURRENTLY\s+(?:IF\s+EXISTS\s+)?"
    r'(?P<dropped>"(?:[^"]|"")+"|[\w$]+)\s*(?:\bCASCADE\b|\bRESTRICT\b)?\s*$)',
    re.IGNORECASE,
)
_CONCURRENTLY = re.compile(r"\bCONCURRENTLY\b", re.IGNORECASE)
_UNNAMED_INDEX = re.compile(r"\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+ON\b", re.IGNORECASE)

_NOT_IN_TRANSACTIONS = frozenset({"25001", "2D000"})
"""What the server says of statements that have to be outside of transactions, and of blocks that end them
(https://www.postgresql.org/docs/current/errcodes-appendix.html)."""


class HalfDoneError(MigrationError):
    """A revision that Alembic runs failed, and it may have committed a part of what it does."""


class InParts(Execution):
    """In transactions of its own, under a lock of the session's."""

    def run(self, steps: Steps) -> None:
        with self._guards.explained(), self._locked_session():
            progress = steps.read(self.driver, self._plan)
            has_record = self._guards.has_record()
            self._batch.add("BEGIN")
            self._set_up()
            self._batch.add(self._guards.locked)
            self._batch.add(self._guards.is_at(self._plan.start, has_record=has_record))
            for segment, following in zip_longest(self._plan.segments, self._plan.segments[1:]):
                if segment.kind is SegmentKind.AUTOCOMMIT:
                    self._note_before(segment.statements[0], steps, progress)
                    self._commit()
                    self._run_autocommit(segment, steps, progress)
                    self._begin_again(segment.recorded, has_record=has_record)
                elif segment.is_border:
                    self._batch.add(steps.forget_sql)  # all revisions before are recorded
                    self._commit()
                    self._run_outside(segment)
                    self._begin_again(segment.recorded, has_record=has_record)
                else:
                    self._run_segment(progress.left_of(self._plan, segment))
                    if segment.commits and following is not None:
                        self._commit()
                        self._begin_again(following.recorded, has_record=has_record)
            self._finish()
            self._batch.add(steps.forget_sql)
            self._commit()

    @contextmanager
    def _locked_session(self) -> Iterator[None]:
        """The lock of the schema for longer than a transaction. Not through a pooler in transaction mode."""
        (result,) = send_all(self.driver, [f"SELECT pg_try_advisory_lock({self._guards.key})".encode()])
        if result.get_value(0, 0) != b"t":
            raise SchemaLockedError(self._to.name)
        try:
            yield
        finally:
            if not self.driver.closed:
                roll_back(self.driver)
                send_all(self.driver, [f"SELECT pg_advisory_unlock({self._guards.key})".encode()])

    def _note_before(self, first: Statement, steps: Steps, progress: HalfDone) -> None:
        """Note what of a revision was done when its block begins; `first` is the block's first statement."""
        if progress.has_done(self._plan, first) or progress.has_begun(self._plan, first):
            return
        done = position(self._plan, first)
        self._batch.add(steps.note_sql(self._plan, first, done) if done else steps.forget_sql)

    def _begin_again(self, recorded: Heads, *, has_record: bool) -> None:
        """A statement of the block may have given up the lock (DISCARD ALL), and others have come."""
        self._batch.add("BEGIN")
        self._set_up()
        self._batch.add(self._guards.locked)
        has_record = has_record or bool(recorded)
        self._batch.add(self._guards.is_at(recorded, has_record=has_record))

    def _run_outside(self, segment: Segment) -> None:
        """Let Alembic run a revision that begins and ends transactions."""
        self._enter(segment.revision)
        self._batch.send()
        self.forget_transaction()
        self._set_session()
        try:
            self._call_alembic(segment, leaves_transaction=True)
        except Exception as error:
            reason = error.reason if isinstance(error, MigrationError) else error
            raise HalfDoneError(
                f"{reason} (it ends transactions by itself: what it had committed stays, and it begins from "
                "its first line again)",
                self._to.tenant,
                segment.revision,
            ) from error

    def _set_session(self) -> None:
        settings = settings_sql(self._to.search_path, self._timeouts, local=False)
        send_all(self.driver, [settings.encode()])

    def _run_autocommit(self, segment: Segment, steps: Steps, progress: HalfDone) -> None:
        """Statements outside of transactions; the session has the search path meanwhile."""
        self._set_session()
        try:
            for statement in progress.left_of(self._plan, segment).statements:
                self._enter(statement.revision)
                with self._named(statement):
                    self._send_alone(statement, steps, progress)
        finally:
            if not self.driver.closed:
                roll_back(self.driver)
                send_all(
                    self.driver, [b"RESET search_path", b"RESET lock_timeout", b"RESET statement_timeout"]
                )

    @contextmanager
    def _named(self, statement: Statement) -> Iterator[None]:
        try:
            yield
        except StatementError as failed:
            if failed_guard(failed.error):
                raise
            raise statement_failed(failed.error, statement, self._to.tenant) from failed.error

    def _send_alone(self, statement: Statement, steps: Steps, progress: HalfDone) -> None:
        done = steps.note_sql(self._plan, statement, position(self._plan, statement) + 1).encode()
        sql = statement.sql.encode()
        code = names_only(
            statement.sql
        )  # comments before it are blanks now; the name may be quoted, and stays
        if _UNNAMED_INDEX.match(code):
            raise MigrationError(
                "an index that is built concurrently needs a name, by which what a failed run leaves of it "
                "is found",
                self._to.tenant,
                statement.revision,
            )
        index = _CONCURRENT_INDEX.match(code)
        if index is not None:
            self._send_index(index, statement, steps, progress)
            send_all(self.driver, [done])
        elif _CONCURRENTLY.search(code):
            self._send_patiently(statement.sql)
            send_all(self.driver, [done])
        else:
            role = [self._guards.role.encode()] if changes_role(statement.sql) else []
            try:
                # Nothing of it can be done without being noted, then, and it is not done again.
                send_all(self.driver, [b"BEGIN", sql, *role, done, b"COMMIT"])
            except StatementError as failed:
                if failed.error.sqlstate not in _NOT_IN_TRANSACTIONS:
                    raise
                roll_back(self.driver)
                send_all(self.driver, [sql])
                send_all(self.driver, [done])

    def _send_index(
        self, match: re.Match[str], statement: Statement, steps: Steps, progress: HalfDone
    ) -> None:
        """CREATE or DROP INDEX CONCURRENTLY; not again, where a run ended before that could be noted."""
        is_made = match["made"] is not None
        name = match["made"] or match["dropped"]
        valid = self._find_index(name)
        if progress.has_begun(self._plan, statement) and (valid if is_made else valid is None):
            return
        if is_made and valid is False:  # a failed run leaves it behind
            self._send_patiently(f"DROP INDEX CONCURRENTLY {name}")
            valid = None
        if (valid is None) is is_made:
            done = position(self._plan, statement)
            send_all(self.driver, [steps.note_sql(self._plan, statement, done, is_begun=True).encode()])
        self._send_patiently(statement.sql)

    def _send_patiently(self, sql: str) -> None:
        """What waits for others' transactions, and for what nobody waits."""
        send_all(self.driver, [b"SET lock_timeout = 0"])
        send_all(self.driver, [sql.encode()])
        self._set_session()

    def _find_index(self, name: str) -> bool | None:
        """Whether the index of this name in the schema is valid; None where there is none."""
        sql = (
            "SELECT i.indisvalid FROM pg_catalog.pg_index i "
            "JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid "
            f"WHERE c.oid = to_regclass({quote_literal(name)}) "
            f"AND c.relnamespace = {quote_literal(quote_ident(self._to.schema))}::regnamespace"
        )
        (result,) = send_all(self.driver, [sql.encode()])
        return None if not result.ntuples else result.get_value(0, 0) == b"t"
