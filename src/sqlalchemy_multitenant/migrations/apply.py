"""Applies a plan to one schema: one transaction, one lock, one pipeline of statements."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import pq
from sqlalchemy import Connection

from ..errors import MigrationError, TenantBusyError, TenantNotFoundError
from ..naming import quote_ident, quote_literal
from .history import History
from .plan import Destination, Heads, MigrationPlan, Statement, Timeouts

SHOWN = 500
"""How many characters of a failing statement its error shows."""


class SchemaLockedError(TenantBusyError):
    """Another migrator is at work on this schema."""

    default_reason = "another process is migrating it"


class PlanOutdatedError(Exception):
    """The schema is no longer at the revision that the plan starts from."""

    def __init__(self, found: Heads) -> None:
        super().__init__(found)
        self.found = found


def lock_key(schema: str) -> int:
    """The advisory lock of a schema, within its database: 64 bits, signed
    (https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS)."""
    digest = hashlib.sha256(f"multitenant migration\0{schema}".encode()).digest()
    return int(struct.unpack("<q", digest[:8])[0])


def settings_sql(search_path: Sequence[str], timeouts: Timeouts) -> str:
    """One SELECT that sets what holds for the transaction: set_config() with true as its last argument is
    SET LOCAL (https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SET)."""
    path = ", ".join([*map(quote_ident, search_path), "pg_temp"])
    return (
        f"SELECT set_config('search_path', {quote_literal(path)}, true), "
        f"set_config('lock_timeout', '{max(round(timeouts.lock_s * 1000), 1)}', true), "
        f"set_config('statement_timeout', '{round((timeouts.statement_s or 0) * 1000)}', true)"
    )


def apply_plan(
    connection: Connection, plan: MigrationPlan, history: History, to: Destination, timeouts: Timeouts
) -> None:
    """Bring a schema from `plan.start` to `plan.end`, in the connection's transaction, which the
    caller commits: structure, data and version move together or not at all.

    Raises:
        SchemaLockedError: another migrator has it.
        PlanOutdatedError: another migrator was faster.
        TenantNotFoundError: the schema is gone.
        MigrationError: a statement failed; says which, of which revision.
    """
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    qualified = f"{quote_ident(to.schema)}.{quote_ident(history.version_table)}"
    with driver.pipeline():
        driver.execute(settings_sql(to.search_path, timeouts).encode())
        locked = driver.execute(f"SELECT pg_try_advisory_xact_lock({lock_key(to.schema)})".encode())
        has_table = driver.execute(f"SELECT to_regclass({quote_literal(qualified)}) IS NOT NULL".encode())
        lives_in = driver.execute(b"SELECT current_schema()")
        if not _one(locked):
            raise SchemaLockedError(to.name)
        if _one(lives_in) != to.schema:
            # PostgreSQL leaves out of the path what is not there, or may not be used: the tables would
            # be built in the next schema on it, the shared one.
            raise TenantNotFoundError(to.name, f"schema {to.schema!r} is gone, or this role may not use it")
        found: Heads = ()
        if _one(has_table):
            rows = driver.execute(f"SELECT version_num FROM {qualified} ORDER BY 1".encode()).fetchall()
            found = tuple(row[0] for row in rows)
    if found != plan.start:
        raise PlanOutdatedError(found)
    if plan.online is not None:
        history.run_online(connection, to.schema)
    else:
        _send(driver, plan.statements, to.name)
    _verify(driver, plan, qualified, to)


def _verify(driver: psycopg.Connection[Any], plan: MigrationPlan, table: str, to: Destination) -> None:
    """Hold the recorded revisions against the plan's: a revision may have changed the search path, and
    the record be somewhere else."""
    rows = driver.execute(f"SELECT version_num FROM {table} ORDER BY 1".encode()).fetchall()
    recorded = tuple(row[0] for row in rows)
    if recorded != plan.end:
        raise MigrationError(
            f"{', '.join(recorded) or 'nothing'} is recorded in {table} instead of {', '.join(plan.end)}: "
            "does a revision set the search path, or write the version table?",
            to.name,
        )


def _one(cursor: psycopg.Cursor[Any]) -> Any:
    row = cursor.fetchone()
    return row[0] if row else None


def _send(driver: psycopg.Connection[Any], statements: Sequence[Statement], to: str) -> None:
    cursors: list[psycopg.Cursor[Any]] = []
    problem: psycopg.Error | None = None
    try:
        with driver.pipeline() as pipeline:
            try:
                for statement in statements:
                    cursors.append(driver.execute(statement.sql.encode()))  # noqa: PERF401
                pipeline.sync()
            except psycopg.Error as error:
                problem = error
    except psycopg.Error as error:
        # What leaving the pipeline says is but the consequence.
        problem = problem or error
    if problem is None:
        return
    if problem.sqlstate is None or driver.closed:
        raise problem
    failed = next((i for i, c in enumerate(cursors) if not _succeeded(c)), len(cursors) - 1)
    raise statement_failed(problem, statements[max(failed, 0)], to) from problem


def _succeeded(cursor: psycopg.Cursor[Any]) -> bool:
    result = cursor.pgresult
    return result is not None and result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


def statement_failed(error: psycopg.Error, statement: Statement, tenant: str) -> MigrationError:
    """The error that names the statement and its revision."""
    sql = statement.sql if len(statement.sql) <= SHOWN else statement.sql[:SHOWN] + " ..."
    return MigrationError(f"{str(error).strip()} [{error.sqlstate}] in: {sql}", tenant, statement.revision)
