"""One question to many tenants, and how it is put to them over a connection.

Nothing here awaits: what needs the database takes a `Connection`, through `run_sync` where there is an event
loop.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
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
)
from sqlalchemy.engine import result_tuple
from sqlalchemy.orm import Session
from sqlalchemy.sql import visitors

from ..catalog.members import Member, Roster
from ..catalog.source import Layout
from ..catalog.table import usable_sql
from ..database import needs_unique
from ..errors import TenantNotFoundError, TenantQueryError
from ..isolation.run import run_sql
from ..isolation.sqltext import code_only
from ..naming import path_sql, quote_ident, quote_literal
from .nullability import has_aggregate
from .union import TenantSelect, loads_objects

TENANTS_A_STATEMENT = 250
"""For a statement with one table; less where it has more, since each costs locks, and those are finite
(https://www.postgresql.org/docs/current/runtime-config-locks.html)."""

_QUERY = re.compile(r"[\s(]*(?:select|with|values|table)\b", re.IGNORECASE)

Unit = tuple[Member, ...]
Answer = tuple[Any, ...]
"""A row: the tenant's id, and the columns of the statement."""


@dataclass(eq=False)
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
        roster: the tenants as they were when those were chosen who are asked.
    """

    layout: Layout
    uses_catalog: bool
    statement: Executable
    params: Mapping[str, Any]
    batch: int
    timeout_s: float | None
    is_read_only: bool
    roster: Roster = field(init=False)

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
                self.roster.check(connection, unit)
                yield from result.partitions(self.batch)
            return
        params = dict(self.params)
        if isinstance(self.statement, UpdateBase) and not self.statement._returning:
            options = {"preserve_rowcount": True}
            with closing(connection.execute(self.statement, params, execution_options=options)) as done:
                self.roster.check(connection, unit)
                yield [_changed(unit[0].id, done.rowcount)]
            return
        with (
            Session(bind=connection, expire_on_commit=False) as session,
            closing(session.execute(self.statement, params, execution_options=options)) as rows,
        ):
            self.roster.check(connection, unit)
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
                self.roster.check(connection, (alone,))
                kind = TenantQueryError if self.uses_catalog else TenantNotFoundError
                raise kind(alone.id, f"there is no schema {quote_ident(schema)}")
            if usable[0] != "true":
                raise TenantQueryError(alone.id, f"the role may not use its schema {quote_ident(schema)}")
            settings["search_path"] = path_sql(self.layout.schemas.search_path(schema))
        calls = ", ".join(
            f"set_config({quote_literal(k)}, {quote_literal(v)}, true)" for k, v in settings.items()
        )
        run_sql(connection, f"SELECT {calls}")


_changed_row = result_tuple(["tenant", "rows"])


def _changed(tenant: str, rows: int) -> Answer:
    """Of a statement without rows: how many it changed; None where the server does not say."""
    return cast("Answer", _changed_row((tenant, None if rows < 0 else rows)))


def _with_tenant(result: Any, tenant: str, batch: int) -> Iterator[Sequence[Answer]]:
    """Rows with the tenant's id before their columns."""
    row_of = result_tuple(["tenant", *result.keys()])
    for rows in result.partitions(batch):
        yield [row_of((tenant, *row)) for row in rows]
