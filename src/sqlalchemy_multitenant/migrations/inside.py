"""What asks to run outside of transactions, run inside of one: for schemas that nobody uses yet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, event

from ..errors import MigrationError
from ..isolation.sqltext import code_only
from .batch import driver_of
from .plan import Statement

SWALLOWED = "a statement failed, and what caught its error has not rolled it back"

_CONCURRENTLY = re.compile(
    r"^\s*(?:(?:CREATE\s+(?:UNIQUE\s+)?|DROP\s+|RE)INDEX\b|ALTER\s+TABLE\b|REFRESH\b).*?(?P<word>\bCONCURRENTLY\b)",
    re.IGNORECASE | re.DOTALL,
)
_EITHER = re.compile("CONCURRENTLY|VACUUM", re.IGNORECASE)
_NEEDLESS = re.compile(r"^\s*VACUUM\b", re.IGNORECASE)


def inside_transaction(statements: Iterable[Statement]) -> list[Statement]:
    """The statements as they run inside of a transaction, without those that an empty schema needs not."""
    inside = ((statement, _inside(statement.sql)) for statement in statements)
    return [s if sql is s.sql else replace(s, sql=sql) for s, sql in inside if sql is not None]


def _inside(sql: str) -> str | None:
    """The statement as it runs inside of a transaction; None where an empty schema needs none of it."""
    if not _EITHER.search(sql):  # nearly all of them, for each new tenant
        return sql
    code = code_only(sql)
    if _NEEDLESS.match(code):
        return None
    match = _CONCURRENTLY.match(code)
    return sql if match is None else sql[: match.start("word")] + sql[match.end("word") :]


@contextmanager
def everything_inside(connection: Connection, context: Any) -> Iterator[None]:
    """Of what Alembic runs on the connection meanwhile, nothing leaves its transaction.

    Args:
        context: a `MigrationContext`.
    """

    def change(
        _c: Any, _cursor: Any, statement: str, parameters: Any, _x: Any, _many: bool
    ) -> tuple[str, Any]:
        return _inside(statement) or "SELECT 1", parameters

    context.autocommit_block = nullcontext
    event.listen(connection, "before_cursor_execute", change, retval=True)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", change)


@contextmanager
def no_failed_commits(connection: Connection) -> Iterator[None]:
    """An error that a revision has caught must not end as a COMMIT that the server answers with ROLLBACK
    (https://www.postgresql.org/docs/current/sql-commit.html)."""

    def check(_connection: Connection) -> None:
        driver = driver_of(connection)
        if driver.info.transaction_status == TransactionStatus.INERROR:
            raise MigrationError(SWALLOWED)

    event.listen(connection, "commit", check)
    try:
        yield
    finally:
        event.remove(connection, "commit", check)
