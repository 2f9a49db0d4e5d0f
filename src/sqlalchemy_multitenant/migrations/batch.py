"""Batches: statements that go to a schema in one round trip, with what must hold before they may run."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

import psycopg

from ..engines.pipeline import StatementError, send_all
from ..errors import MigrationError
from ..naming import path_sql, quote_literal
from .plan import Statement, Timeouts

SHOWN = 500
"""How many characters of a failing statement its error shows."""


def lock_key(schema: str) -> int:
    """The advisory lock of a schema, within its database: 64 bits, signed
    (https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS)."""
    digest = hashlib.sha256(f"multitenant migration\0{schema}".encode()).digest()
    return int(struct.unpack("<q", digest[:8])[0])


def settings_sql(search_path: Sequence[str], timeouts: Timeouts, *, local: bool = True) -> str:
    """One SELECT that sets what holds for the transaction, or for the session: set_config() with true as its
    last argument is SET LOCAL (https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SET).
    """
    values = {
        "search_path": quote_literal(path_sql(search_path)),
        "lock_timeout": f"'{max(round(timeouts.lock_s * 1000), 1)}'",
        "statement_timeout": f"'{round((timeouts.statement_s or 0) * 1000)}'",
    }
    calls = (f"set_config('{name}', {value}, {str(local).lower()})" for name, value in values.items())
    return f"SELECT {', '.join(calls)}"


def guard_sql(condition: str, name: str) -> str:
    """An expression: an error of the server's that names `name`, where `condition` does not hold."""
    # The text is not a constant, or PostgreSQL would try to make a number of it while it plans.
    return f"CASE WHEN {condition} THEN 1 ELSE concat('multitenant:{name}:', current_schema())::int END"


class Batch:
    """Statements that are sent in one round trip."""

    def __init__(self, driver: psycopg.Connection[Any], tenant: str | None) -> None:
        self._driver, self._tenant = driver, tenant
        self._messages: list[bytes] = []
        self._statements: list[Statement | None] = []

    def add(self, sql: str) -> None:
        """Something of the toolkit's own."""
        self._messages.append(sql.encode())
        self._statements.append(None)

    def add_all(self, statements: Sequence[Statement]) -> None:
        """Statements of a plan."""
        self._messages += [statement.sql.encode() for statement in statements]
        self._statements += statements

    def send(self) -> None:
        """Send what has been added.

        Raises:
            MigrationError: a statement of the plan failed.
            StatementError: a guard, or another statement of the toolkit's own.
        """
        messages, self._messages = self._messages, []
        statements, self._statements = self._statements, []
        if not messages:
            return
        try:
            send_all(self._driver, messages)
        except StatementError as failed:
            statement = statements[failed.position]
            if statement is None:
                raise
            raise statement_failed(failed.error, statement, self._tenant) from failed.error


def statement_failed(error: psycopg.Error, statement: Statement, tenant: str | None) -> MigrationError:
    """The error that names the statement and its revision."""
    sql = statement.sql if len(statement.sql) <= SHOWN else statement.sql[:SHOWN] + " ..."
    return MigrationError(f"{str(error).strip()} [{error.sqlstate}] in: {sql}", tenant, statement.revision)
