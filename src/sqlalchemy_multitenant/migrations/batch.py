"""Batches: statements that go to a schema in one round trip, with what must hold before they may run."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection

from ..engines.pipeline import StatementError, rows_of, send_all
from ..errors import MigrationError
from ..naming import path_sql, quote_literal
from .plan import Statement, Timeouts

_GUARD = re.compile(r"multitenant:(?P<name>[a-z]+):")

_INVALID_TEXT = "22P02"

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


def driver_of(connection: Connection) -> psycopg.Connection[Any]:
    """psycopg's own connection, on which batches are sent."""
    driver: Any = connection.connection.driver_connection
    return cast("psycopg.Connection[Any]", driver)


def guard_sql(condition: str, name: str) -> str:
    """An expression: an error of the server's that names `name`, where `condition` does not hold."""
    # The text is not a constant, or PostgreSQL would try to make a number of it while it plans.
    return f"CASE WHEN {condition} THEN 1 ELSE concat('multitenant:{name}:', current_schema())::int END"


def failed_guard(error: BaseException) -> str | None:
    """The name of the guard whose error it is, or None."""
    if getattr(error, "sqlstate", None) != _INVALID_TEXT:  # a name in another error may look like it
        return None
    match = _GUARD.search(str(error))
    return None if match is None else match["name"]


class Batch:
    """Statements that are sent in one round trip."""

    def __init__(self, driver: psycopg.Connection[Any], tenant: str | None) -> None:
        self._driver, self._tenant = driver, tenant
        self._messages: list[bytes] = []
        self._statements: list[Statement | None] = []
        self._readers: dict[int, Callable[[list[tuple[Any, ...]]], object]] = {}

    @classmethod
    def within(cls, connection: Connection, tenant: str | None) -> Batch:
        """A batch in the connection's transaction, which psycopg begins no earlier than it must."""
        driver = driver_of(connection)
        batch = cls(driver, tenant)
        if driver.info.transaction_status == TransactionStatus.IDLE:
            batch.add("BEGIN")
        return batch

    def add(self, sql: str, read: Callable[[list[tuple[Any, ...]]], object] | None = None) -> None:
        """Something of the toolkit's own.

        Args:
            read: is given its rows when it has been sent.
        """
        if read is not None:
            self._readers[len(self._messages)] = read
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
        readers, self._readers = self._readers, {}
        if not messages:
            return
        try:
            results = send_all(self._driver, messages)
        except StatementError as failed:
            statement = statements[failed.position]
            if statement is None:
                raise
            raise statement_failed(failed.error, statement, self._tenant) from failed.error
        for position, read in readers.items():
            read(rows_of(self._driver, results[position]))


def statement_failed(error: psycopg.Error, statement: Statement, tenant: str | None) -> MigrationError:
    """The error that names the statement and its revision."""
    sql = statement.sql if len(statement.sql) <= SHOWN else statement.sql[:SHOWN] + " ..."
    return MigrationError(f"{str(error).strip()} [{error.sqlstate}] in: {sql}", tenant, statement.revision)
