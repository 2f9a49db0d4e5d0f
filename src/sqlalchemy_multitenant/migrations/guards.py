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
from .plan import Destination, Heads, MigrationPlan
from .steps import Steps


class SchemaLockedError(TenantBusyError):
    """Another migrator is at work on this schema."""

    default_reason = "another process is migrating it"


class PlanOutdatedError(Exception):
    """The schema is no longer at the revision that the plan starts from."""

    def __init__(self, found: Heads) -> None:
        super().__init__(found)
        self.found = found


class SchemaGuards:
    """The guards of one schema and plan, as statements, and what their errors mean.

    Args:
        steps: where it is noted that a revision was left half done; None where that cannot be.

    Attributes:
        key: the advisory lock of the schema.
    """

    def __init__(
        self,
        driver: psycopg.Connection[Any],
        to: Destination,
        plan: MigrationPlan,
        version_table: str,
        steps: Steps | None = None,
    ) -> None:
        self._driver, self._to, self._plan, self._steps = driver, to, plan, steps
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
    def role(self) -> str:
        """The role that a revision has taken may use it."""
        return f"SELECT {guard_sql(self._is_first, 'role')}"

    @property
    def whole(self) -> str:
        """No revision was left half done."""
        condition = "true" if self._steps is None else self._steps.none_condition
        return f"SELECT {guard_sql(condition, 'half')}"

    def is_at(self, heads: Heads, *, has_record: bool) -> str:
        """It is where the plan starts from, or goes on."""
        nowhere = f"to_regclass({quote_literal(self._record)}) IS NULL"
        return f"SELECT {guard_sql(self._at(heads) if has_record else nowhere, 'moved')}"

    @property
    def ends(self) -> str:
        """It is where the plan ends: a revision may have changed the search path, and the record be somewhere
        else."""
        return f"SELECT {guard_sql(self._at(self._plan.end), 'unrecorded')}"

    def _at(self, heads: Heads) -> str:
        listed = "coalesce(string_agg(version_num, ' ' ORDER BY version_num COLLATE \"C\"), '')"
        return f"(SELECT {listed} FROM {self._record}) = {quote_literal(' '.join(heads))}"

    def has_record(self) -> bool:
        """Whether the schema has a version table."""
        sql = f"SELECT to_regclass({quote_literal(self._record)}) IS NOT NULL"
        (result,) = send_all(self._driver, [sql.encode()])
        return result.get_value(0, 0) == b"t"

    def read_record(self) -> Heads:
        """The revisions that it names; none where it is not there."""
        if not self.has_record():
            return ()
        (found,) = send_all(self._driver, [f"SELECT version_num FROM {self._record}".encode()])
        return tuple(sorted(bytes(found.get_value(row, 0) or b"").decode() for row in range(found.ntuples)))

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What a guard's error means is raised in its stead.

        Raises:
            SchemaLockedError, PlanOutdatedError, TenantNotFoundError, MigrationError: a guard did not hold.
        """
        try:
            yield
        except StatementError as failed:
            guard = failed_guard(failed.error)
            meaning = None if guard is None else self._meaning(guard)
            raise meaning or failed.error from (failed.error if meaning else None)

    def _meaning(self, guard: str) -> Exception | None:
        """None for a guard of somebody else's."""
        name, schema = self._to.name, self._to.schema
        match guard:
            case "locked":
                return SchemaLockedError(name)
            case "gone":
                return TenantNotFoundError(name, f"schema {schema!r} is gone, or this role may not use it")
            case "role":
                reason = (
                    f"a revision takes a role that may not use schema {schema!r}, and would go on in the "
                    f"next one on the path: GRANT USAGE ON SCHEMA {quote_ident(schema)} to it before"
                )
            case "unrecorded":
                wanted = ", ".join(self._plan.end) or "none"
                reason = (
                    f"the revisions recorded in {self._record} are not {wanted}: "
                    "does a revision set the search path, or write the version table?"
                )
            case _:
                return self._found_otherwise(guard)
        return MigrationError(reason, self._to.tenant)

    def _found_otherwise(self, guard: str) -> Exception | None:
        roll_back(self._driver)
        if guard == "half" and self._steps is not None:
            try:
                left = self._steps.read(self._driver, self._plan)
            except MigrationError as error:
                return error
            return MigrationError(
                f"it was left half done ({left.done} of its statements were run), and has no "
                "autocommit_block any more: put that back until the revision is finished",
                self._to.tenant,
                left.revision,
            )
        return PlanOutdatedError(self.read_record()) if guard == "moved" else None


def roll_back(driver: psycopg.Connection[Any]) -> None:
    """End a transaction that is open, whatever its state."""
    if not driver.closed and driver.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        send_all(driver, [b"ROLLBACK"])
