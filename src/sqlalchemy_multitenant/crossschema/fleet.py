"""One question to many tenants: what to ask of whom, and what becomes of the answers.

Tenants are asked in units: many in one statement where that can be, else one by one. A unit that fails is
taken apart until the tenant is found that it fails for. Nothing here awaits: what needs the database takes a
`Connection`, through `run_sync` where there is an event loop.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from sqlalchemy import (
    CompoundSelect,
    Connection,
    CursorResult,
    Executable,
    Select,
    Table,
    TextClause,
    TextualSelect,
    UpdateBase,
    text,
)
from sqlalchemy.engine import result_tuple
from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.sql import visitors

from ..catalog.members import Member
from ..catalog.records import TenantStatus
from ..catalog.source import Layout
from ..catalog.table import TABLE, qualified, usable_sql
from ..database import needs_unique
from ..errors import (
    MultitenantError,
    TenantError,
    TenantNotFoundError,
    TenantQueryError,
    TenantSuspendedError,
)
from ..isolation.run import run_sql
from ..isolation.sqltext import code_only
from ..naming import TenantId, path_sql, quote_ident, quote_literal
from .nullability import has_aggregate
from .union import TenantSelect, loads_objects

TENANTS_A_STATEMENT = 250
"""For a statement with one table; less where it has more, since each costs locks, and those are finite
(https://www.postgresql.org/docs/current/runtime-config-locks.html)."""

_NEVER_TOGETHER = frozenset({"42804", "42846", "42883", "42704"})
"""Types of the branches that differ, a function or type that only the search path finds: no union will do
(https://www.postgresql.org/docs/current/errcodes-appendix.html)."""

_TOO_MANY = frozenset({"53200", "57014"})
"""No place for more locks, or the time is over: fewer tenants may do."""

_LOST = ("08", "57P")
"""The connection is gone: a matter of no tenant's."""

_QUERY = re.compile(r"[\s(]*(?:select|with|values|table)\b", re.IGNORECASE)

Unit = tuple[Member, ...]
Answer = tuple[Any, ...]
"""A row: the tenant's id, and the columns of the statement."""


@dataclass(frozen=True)
class Question:
    """A statement that is to be put to tenants.

    Attributes:
        layout: where they live.
        uses_catalog: whether their records are in the catalog.
        statement: what each is asked.
        params: its parameters.
        batch: how many rows are in memory at one time.
        timeout_s: seconds that one statement may take; None for no limit.
        is_read_only: whether the transaction is.
    """

    layout: Layout
    uses_catalog: bool
    statement: Executable
    params: Mapping[str, Any]
    batch: int
    timeout_s: float | None
    is_read_only: bool

    @cached_property
    def together(self) -> TenantSelect | None:
        """The form that asks many at once; None where there is none."""
        return TenantSelect.of(self.statement, self.layout.schemas) if self.is_read_only else None

    @property
    def tenants_a_statement(self) -> int:
        """How many tenants one statement may ask."""
        tables = {part for part in visitors.iterate(self.statement) if isinstance(part, Table)}  # type: ignore[arg-type]
        return max(1, TENANTS_A_STATEMENT // max(1, len(tables)))

    @cached_property
    def is_short(self) -> bool:
        """Whether the answers of a unit are few enough to be held at once: those of a statement that has one
        row per tenant. What writes is over when it has been committed, and counts as short, too."""
        statement = self.statement
        if not self.is_read_only:
            return True
        if not isinstance(statement, Select) or statement._group_by_clauses:
            return False
        return any(has_aggregate(column) for column in statement.selected_columns)

    @cached_property
    def _has_cursor(self) -> bool:
        """Whether the server keeps a cursor for the answers, as it can for a query."""
        statement = self.statement.element if isinstance(self.statement, TextualSelect) else self.statement
        if isinstance(statement, TextClause):
            return self.is_read_only and _QUERY.match(code_only(statement.text)) is not None
        # Objects may bring others along, which a cursor cannot: a tenant's are read at once.
        reads = isinstance(statement, Select | CompoundSelect) and not self.is_short
        return reads and not loads_objects(statement)

    def ask_all(self, connection: Connection, unit: Unit, *, together: bool) -> list[Answer]:
        """As `ask`, at once."""
        return [row for batch in self.ask(connection, unit, together=together) for row in batch]

    def ask(
        self, connection: Connection, unit: Unit, *, together: bool
    ) -> Generator[Sequence[Answer], None, None]:
        """The answers of `unit`, a batch at a time, in the order of its tenants.

        Raises:
            TenantError: one of them is not what it was when the unit was made.
            DBAPIError: the database refused.
        """
        self.enter(connection, None if together else unit[0])
        options = {"yield_per": self.batch} if self._has_cursor else {}
        if together and self.together is not None:
            statement = self.together.rows_of(unit)
            with closing(connection.execute(statement, self.params, execution_options=options)) as result:
                # The tables are locked now: what the catalog says of their schemas can no longer change.
                self.check(connection, unit)
                yield from result.partitions(self.batch)
            return
        params = dict(self.params)
        if isinstance(self.statement, UpdateBase) and not self.statement._returning:
            options = {"preserve_rowcount": True}
            with closing(connection.execute(self.statement, params, execution_options=options)) as done:
                self.check(connection, unit)
                yield [_changed(unit[0].id, done.rowcount)]
            return
        with (
            Session(bind=connection, expire_on_commit=False) as session,
            closing(session.execute(self.statement, params, execution_options=options)) as rows,
        ):
            self.check(connection, unit)
            if isinstance(rows, CursorResult) and not rows.returns_rows:
                yield [_changed(unit[0].id, rows.rowcount)]
                return
            each = rows.unique() if needs_unique(rows) else rows
            for batch in _with_tenant(each, unit[0].id, self.batch):
                session.expunge_all()
                yield batch

    def enter(self, connection: Connection, alone: Member | None = None) -> None:
        """Set up the transaction; for one tenant `alone`, in its schema."""
        settings = {
            "statement_timeout": str(0 if self.timeout_s is None else max(1, round(self.timeout_s * 1000))),
        }
        if alone is None:
            # Tenant by tenant, in their order; and all rows are read, not the first few.
            settings |= {
                "max_parallel_workers_per_gather": "0",
                "enable_async_append": "off",
                "cursor_tuple_fraction": "1.0",
            }
        else:
            schema = str(alone.schema)
            usable = run_sql(connection, usable_sql(quote_literal(schema))).first()
            # PostgreSQL passes over a schema of the path that is not there, or not for this role.
            if usable is None:
                self.check(connection, (alone,))
                kind = TenantQueryError if self.uses_catalog else TenantNotFoundError
                raise kind(alone.id, f"there is no schema {quote_ident(schema)}")
            if usable[0] != "true":
                raise TenantQueryError(alone.id, f"the role may not use its schema {quote_ident(schema)}")
            settings["search_path"] = path_sql(self.layout.schemas.search_path(schema))
        calls = ", ".join(
            f"set_config({quote_literal(k)}, {quote_literal(v)}, true)" for k, v in settings.items()
        )
        run_sql(connection, f"SELECT {calls}")

    def check(self, connection: Connection, unit: Unit) -> None:
        """Make sure that each tenant has the schema and the status that it had."""
        if not self.uses_catalog:
            return
        table = qualified(self.layout.shared_schema, TABLE)
        # Only what differs comes back.
        statement = text(
            "SELECT u.id, t.status FROM unnest(CAST(:ids AS text[]), CAST(:states AS text[]), "
            f"CAST(:schemas AS text[])) AS u(id, status, schema) LEFT JOIN {table} AS t ON t.id = u.id "
            "WHERE (t.status, t.schema_name) IS DISTINCT FROM (u.status, u.schema)"
        )
        known = {
            "ids": [member.id for member in unit],
            "states": [member.status.value for member in unit],
            "schemas": [member.schema for member in unit],
        }
        for tenant, status in connection.execute(statement, known):
            if status == TenantStatus.SUSPENDED:
                raise TenantSuspendedError(tenant)
            changed = (
                None if status in (None, TenantStatus.DROPPED) else "it has changed meanwhile; ask again"
            )
            raise TenantNotFoundError(tenant, changed)


_changed_row = result_tuple(["tenant", "rows"])


def _changed(tenant: str, rows: int) -> Answer:
    """Of a statement without rows: how many it changed; None where the server does not say."""
    return cast("Answer", _changed_row((tenant, None if rows < 0 else rows)))


def _with_tenant(result: Any, tenant: str, batch: int) -> Iterator[Sequence[Answer]]:
    """Rows with the tenant's id before their columns."""
    row_of = result_tuple(["tenant", *result.keys()])
    for rows in result.partitions(batch):
        yield [row_of((tenant, *row)) for row in rows]


@dataclass
class Work:
    """What is still to be asked, and what of the answers may be handed on.

    Attributes:
        question: what is asked.
        returns_errors: hand on what a tenant failed with in place of its rows, all of which are held back
            until they are complete; else raise it.
        limit: the most rows to hand on; None for all.
        skips_gone: pass over a tenant that has been dropped or suspended meanwhile.
        concurrency: how many units may be asked at one time.
    """

    question: Question
    returns_errors: bool
    limit: int | None
    concurrency: int
    skips_gone: bool = False
    _waiting: deque[Member] = field(default_factory=deque)
    _again: deque[Unit] = field(default_factory=deque)
    _together: bool = True
    _at_once: int = 1
    _held: list[Answer] = field(default_factory=list)
    _done: set[str] = field(default_factory=set)
    _was_handed_on: bool = False
    _failure: Exception | None = None

    def __post_init__(self) -> None:
        self._together = self.question.together is not None
        self._at_once = self.question.tenants_a_statement if self._together else 1

    def begin(self, members: Iterable[Member], errors: Sequence[TenantError]) -> Sequence[TenantError]:
        """Have these asked, in this order; returns the errors of others, to hand on.

        Raises:
            TenantError: the first of them, where errors are not to be handed on.
        """
        if errors and not self.returns_errors:
            raise errors[0]
        self._waiting.extend(members)
        return errors

    def take(self) -> list[Unit]:
        """The next units, which may be asked at one time; none when all is done.

        Raises:
            Exception: what a unit failed with, where no tenant of it has failed alone.
        """
        if self.is_full:
            return []
        units: list[Unit] = []
        # What is asked again comes alone: the others must not overtake it.
        alone = self._again or not self.question.is_short or self._failure is not None
        most = 1 if alone else self.concurrency
        while len(units) < most and (unit := self._next()):
            units.append(unit)
        if not units and self._failure is not None:
            raise self._failure
        return units

    def _next(self) -> Unit:
        if self._again:
            return self._again.popleft()
        if self._failure is not None:
            return ()
        size = self._at_once if self._together else 1
        return tuple(self._waiting.popleft() for _ in range(min(size, len(self._waiting))))

    @property
    def is_full(self) -> bool:
        """Whether no more rows are to be handed on."""
        return self.limit is not None and self.limit <= 0

    @property
    def must_ask_again(self) -> bool:
        """Whether parts of a unit that failed are to be asked before all others."""
        return bool(self._again) and not self.is_full

    def asks_together(self, unit: Unit) -> bool:
        """Whether the unit is asked in one statement for several."""
        return self._together and len(unit) > 1

    def accept(self, rows: Sequence[Answer]) -> list[Answer]:
        """What may be handed on now that these have come from the unit."""
        if self._failure is not None:
            return []  # only the tenant that fails is looked for
        if not self.returns_errors:
            return self._limited(rows)
        ready: list[Answer] = []
        for row in rows:
            if self._held and self._held[-1][0] != row[0]:
                ready += self._release()
            self._held.append(row)
        if self.limit is not None and len(ready) + len(self._held) >= self.limit:
            ready += self._release()  # more of them are not wanted
        return self._limited(ready)

    def settle(
        self, unit: Unit, rows: Sequence[Answer], error: Exception | None
    ) -> Sequence[Answer | TenantError]:
        """The unit is complete, with all its rows, or has failed: what may be handed on. Raises as `fail`."""
        if error is not None:
            return self.fail(unit, error)
        return [*self.accept(rows), *self.finish()]

    def finish(self) -> list[Answer]:
        """The unit is complete: what may be handed on now."""
        ready = self._limited(self._release())
        self._start_unit()
        return ready

    def fail(self, unit: Unit, error: Exception) -> list[TenantError]:
        """The unit has failed: what may be handed on of that.

        Raises:
            TenantError: errors are not to be handed on, and the tenant is known.
            Exception: the error is of no tenant's.
        """
        if _is_nobodys(error):
            raise error
        left = tuple(member for member in unit if member.id not in self._done)
        was_handed_on = self._was_handed_on
        self._start_unit()
        if isinstance(error, TenantError) or len(unit) == 1:
            failed = _as_tenant_error(error, unit)
            self._ask_again(tuple(member for member in left if member.id != failed.tenant))
            if self.skips_gone and isinstance(error, TenantNotFoundError | TenantSuspendedError):
                return []
            if not self.returns_errors:
                raise failed
            return [failed]
        sqlstate = _sqlstate(error)
        if sqlstate in _NEVER_TOGETHER and not was_handed_on:
            self._together = False
            self._again.extendleft((member,) for member in reversed(left))
            return []
        if was_handed_on and not self.returns_errors:
            # Its rows must not come twice. All that is wanted of it now is who fails.
            self._failure = error
        if sqlstate in _TOO_MANY:
            self._at_once = max(1, min(self._at_once, len(unit) // 2))
        half = (len(left) + 1) // 2
        self._ask_again(left[half:])
        self._ask_again(left[:half])
        return []

    def _start_unit(self) -> None:
        self._held, self._done, self._was_handed_on = [], set(), False

    def _ask_again(self, unit: Unit) -> None:
        if unit:
            self._again.appendleft(unit)

    def _release(self) -> list[Answer]:
        ready, self._held = self._held, []
        if ready:
            self._done.add(ready[0][0])
        return ready

    def _limited(self, rows: Sequence[Answer]) -> list[Answer]:
        self._was_handed_on = self._was_handed_on or bool(rows)
        if self.limit is None:
            return list(rows)
        kept = list(rows[: self.limit])
        self.limit -= len(kept)
        return kept


def _as_tenant_error(error: Exception, unit: Unit) -> TenantError:
    if isinstance(error, TenantError):
        return error
    failed = TenantQueryError(unit[0].id, _said(error))
    failed.__cause__ = error
    return failed


def _is_nobodys(error: Exception) -> bool:
    """Whether no tenant has to do with it: the connection, the pool, the statement as it was built."""
    if isinstance(error, DBAPIError):
        lost = error.connection_invalidated or (_sqlstate(error) or "").startswith(_LOST)
        return lost and not isinstance(error, DataError)
    if isinstance(error, MultitenantError):
        return not isinstance(error, TenantError)
    return isinstance(error, SQLAlchemyError) or (_sqlstate(error) or "").startswith(_LOST)


def _sqlstate(error: Exception) -> str | None:
    """The server's code; None for what does not come from there. asyncpg's errors come as they are where
    rows are fetched from a cursor."""
    code = getattr(getattr(error, "orig", error), "sqlstate", None)
    return code if isinstance(code, str) else None


def _said(error: Exception) -> str:
    """What the database said, without the statement, which is not quite the user's."""
    original: Any = getattr(error, "orig", error)
    # psycopg has a report of its own; asyncpg's error is behind SQLAlchemy's.
    reported = getattr(original, "diag", None) or original.__cause__ or original
    message = getattr(reported, "message_primary", None) or getattr(reported, "message", None)
    hint = getattr(reported, "message_hint", None) or getattr(reported, "hint", None)
    return f"{message or original}".strip() + (f" ({hint})" if hint else "")


def choose(
    members: Sequence[Member], tenants: Sequence[TenantId] | None, status: TenantStatus | None
) -> tuple[list[Member], list[TenantError]]:
    """Whom to ask, and who cannot be asked.

    Args:
        members: all tenants there are.
        tenants: those that are wanted; None for all.
        status: which they must have; None for any.
    """
    if tenants is None:
        return [member for member in members if status is None or member.status is status], []
    known = {member.id: member for member in members}
    chosen: list[Member] = []
    errors: list[TenantError] = []
    for tenant in dict.fromkeys(tenants):
        member = known.get(tenant)
        if member is None:
            errors.append(TenantNotFoundError(tenant))
        elif status is not None and member.status is not status:
            errors.append(TenantSuspendedError(tenant))
        else:
            chosen.append(member)
    return chosen, errors
