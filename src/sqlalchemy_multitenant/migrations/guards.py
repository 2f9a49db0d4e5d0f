"""Guards: what must hold of a schema before a plan may go on, asserted by the server in the same message.

A guard that does not hold is an error, and what follows it is not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from ..engines.pipeline import StatementError, send_all
from ..errors import MigrationError, TenantBusyError, TenantNotFoundError
from ..naming import quote_ident, quote_literal
from .batch import failed_guard, guard_sql, lock_key
from .plan import Destination, Heads


class SchemaLockedError(TenantBusyError):
    """Another migrator is at work on this schema."""

    default_reason = "another process is migrating it"


class PlanOutdatedError(Exception):
    """The schema is no longer at the revision that the plan starts from."""

    def __init__(self, found: Heads) -> None:
        super().__init__(found)
        self.found = found


class SchemaGuards:
    """The guards of one schema, as statements, and what their errors mean.

    Attributes:
        key: the advisory lock of the schema.
    """

    def __init__(self, driver: psycopg.Connection[Any], to: Destination, version_table: str) -> None:
        self._driver, self._to = driver, to
        self._record = f"{quote_ident(to.schema)}.{quote_ident(version_table)}"
        self.key = lock_key(to.schema)

    # PostgreSQL leaves out of the path what is not there, or what the role may not use: tables would be built
    # in the next schema on it, the shared one.
    @property
    def _is_first(self) -> str:
        return f"current_schema() = {quote_literal(self._to.schema)}"

    @property
    def locked(self) -> str:
        """Takes the lock for the transaction. The schema is there."""
        lock = guard_sql(f"pg_try_advisory_xact_lock({self.key})", "locked")
        return f"SELECT {lock}, {guard_sql(self._is_first, 'gone')}"

    @property
    def still_there(self) -> str:
        """Nobody has dropped it meanwhile."""
        return f"SELECT {guard_sql(self._is_first, 'gone')}"

    @property
    def role(self) -> str:
        """The role that a revision has taken may use it."""
        return f"SELECT {guard_sql(self._is_first, 'role')}"

    def starts_at(self, heads: Heads, *, has_record: bool) -> str:
        """It is where the plan starts from."""
        nowhere = f"to_regclass({quote_literal(self._record)}) IS NULL"
        return f"SELECT {guard_sql(self._at(heads) if has_record else nowhere, 'moved')}"

    def ends_at(self, heads: Heads) -> str:
        """It is where the plan ends: a revision may have changed the search path, and the record be somewhere
        else."""
        return f"SELECT {guard_sql(self._at(heads), 'unrecorded')}"

    def _at(self, heads: Heads) -> str:
        listed = "coalesce(string_agg(version_num, ' ' ORDER BY version_num COLLATE \"C\"), '')"
        return f"(SELECT {listed} FROM {self._record}) = {quote_literal(' '.join(heads))}"

    def has_record(self) -> bool:
        """Whether the schema has a version table."""
        sql = f"SELECT to_regclass({quote_literal(self._record)}) IS NOT NULL"
        (result,) = send_all(self._driver, [sql.encode()])
        return result.get_value(0, 0) == b"t"

    def _read_record(self) -> Heads:
        if not self.has_record():
            return ()
        (found,) = send_all(self._driver, [f"SELECT version_num FROM {self._record}".encode()])
        return tuple(sorted(bytes(found.get_value(row, 0) or b"").decode() for row in range(found.ntuples)))

    @contextmanager
    def explained(self, end: Heads) -> Iterator[None]:
        """What a guard's error means is raised in its stead.

        Args:
            end: where the plan ends.

        Raises:
            SchemaLockedError, PlanOutdatedError, TenantNotFoundError, MigrationError: a guard did not hold.
        """
        try:
            yield
        except StatementError as failed:
            guard = failed_guard(failed.error)
            meaning = None if guard is None else self._meaning(guard, end)
            raise meaning or failed.error from (failed.error if meaning else None)

    def _meaning(self, guard: str, end: Heads) -> Exception | None:
        name, schema = self._to.name, self._to.schema
        if guard == "locked":
            return SchemaLockedError(name)
        if guard == "gone":
            return TenantNotFoundError(name, f"schema {schema!r} is gone, or this role may not use it")
        if guard == "role":
            return MigrationError(
                f"a revision takes a role that may not use schema {schema!r}, and would go on in the next "
                f"one on the path: GRANT USAGE ON SCHEMA {quote_ident(schema)} to it before",
                self._to.tenant,
            )
        if guard == "unrecorded":
            return MigrationError(
                f"the revisions recorded in {self._record} are not {', '.join(end) or 'none'}: "
                "does a revision set the search path, or write the version table?",
                self._to.tenant,
            )
        if guard != "moved":
            return None  # of somebody else's
        roll_back(self._driver)
        return PlanOutdatedError(self._read_record())


def roll_back(driver: psycopg.Connection[Any]) -> None:
    """End a transaction that is open, whatever its state."""
    if not driver.closed and driver.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        send_all(driver, [b"ROLLBACK"])
