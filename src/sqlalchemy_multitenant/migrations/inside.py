"""What asks to run outside of transactions, run inside of one: for schemas that nobody uses yet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from sqlalchemy import Connection, event

from ..isolation.sqltext import code_only

_CONCURRENTLY = re.compile(
    r"^\s*(?:(?:CREATE\s+(?:UNIQUE\s+)?|DROP\s+|RE)INDEX\b|ALTER\s+TABLE\b|REFRESH\b).*?(?P<word>\bCONCURRENTLY\b)",
    re.IGNORECASE | re.DOTALL,
)
_EITHER = re.compile("CONCURRENTLY|VACUUM", re.IGNORECASE)
_NEEDLESS = re.compile(r"^\s*VACUUM\b", re.IGNORECASE)


def inside_transaction(sql: str) -> str | None:
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
        return inside_transaction(statement) or "SELECT 1", parameters

    context.autocommit_block = nullcontext
    event.listen(connection, "before_cursor_execute", change, retval=True)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", change)
