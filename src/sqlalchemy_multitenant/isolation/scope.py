"""From a placement to the SQL that opens a transaction inside it. Pure: nothing here does I/O.

The scope travels in the same message as BEGIN, so that there is no moment in which a transaction
is open and not scoped, and no round trip more than a plain transaction takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..naming import path_sql, quote_ident, quote_literal
from ..placement import Placement

SCOPE_OPTION = "multitenant_scope"
"""Name of the SQLAlchemy execution option that carries a `ScopeSource` to a connection's BEGIN."""

STALE_SQLSTATES = frozenset({"3F000", "42P01", "22012"})
"""What a guard that no longer holds raises: no such schema, no such relation, a division by zero
(https://www.postgresql.org/docs/current/errcodes-appendix.html)."""

# What a transaction sees while its tenant is being looked up in it: nothing. Should the client be
# interrupted there, whatever comes next fails.
NOWHERE = "SET LOCAL search_path TO pg_temp; "

DEAD_END = "pg_temp"
"""The search path of the session itself, as a start-up option: no schema with anything in it. The path of
the transaction replaces it; should an application lose that in a way that is not seen, it finds nothing.
A pooler refuses such options; there the session keeps the server's default."""


def session_reset_sql(*, keep_statements: bool = False) -> str:
    """What puts a session right that has had a user: ends in a semicolon, and goes before a BEGIN.

    It is a transaction of its own, since a later ROLLBACK would bring the old values back. DISCARD ALL would
    do the same and more, but is not allowed in one message with BEGIN
    (https://www.postgresql.org/docs/current/sql-discard.html).

    Args:
        keep_statements: leave prepared statements alone, where the driver has a cache of them.
    """
    return (
        # Modes of its own: the last user may have left defaults that wait (DEFERRABLE) or forbid (READ ONLY).
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE; "
        "RESET SESSION AUTHORIZATION; RESET ALL; SET LOCAL statement_timeout = 0; CLOSE ALL; UNLISTEN *; "
        + ("" if keep_statements else "DEALLOCATE ALL; ")
        + "DISCARD TEMP; DISCARD SEQUENCES; SELECT pg_catalog.pg_advisory_unlock_all(); COMMIT; "
    )


@dataclass(frozen=True, slots=True)
class Scope:
    """What BEGIN sends for one placement.

    Attributes:
        placement: where the transaction is to run.
        fresh: the statements that scope a transaction in which the tenant was just looked up.
        guarded: the same for one in which it was not. The last statement of each is a SELECT that fails
            where the schema is gone, here also where the catalog has changed since: the server then
            refuses everything up to the ROLLBACK, whatever the client does.
    """

    placement: Placement
    fresh: str
    guarded: str


def plan_scope(placement: Placement, epoch: str | None = None, *, oid: str | None = None) -> Scope:
    """The scope of `placement`.

    Args:
        placement: the tenant's, or the shared schema's.
        epoch: the qualified, quoted name of the relation that exists as long as nothing in the
            catalog has changed; None where there is no catalog.
        oid: the schema's OID, where it alone tells that a schema is still the same.
    """
    schema_guard = f"{quote_literal(quote_ident(placement.schema))}::pg_catalog.regnamespace"
    more = "" if epoch is None else f", {quote_literal(epoch)}::pg_catalog.regclass"
    if oid is not None:
        more += f", 1 / ({schema_guard}::pg_catalog.oid = {int(oid)})::pg_catalog.int4"
    fresh = f"SET LOCAL search_path TO {path_sql(placement.search_path)}; SELECT {schema_guard}"
    return Scope(placement, fresh, fresh + more)


def begin_sql(begin: str, scope: Scope, *, clean_up: str = "") -> str:
    """The message that opens a transaction in a known scope.

    Args:
        begin: BEGIN with its transaction modes.
        scope: what is known of the tenant; the server checks that it still holds.
        clean_up: `session_reset_sql()` where the connection has had a user before.
    """
    return f"{clean_up}{begin}; {scope.guarded}"


def begin_nowhere_sql(begin: str, *, clean_up: str = "") -> str:
    """The message that opens a transaction in which the tenant is to be looked up. Ends in a semicolon."""
    return f"{clean_up}{begin}; {NOWHERE}"


class ScopeSource(Protocol):
    """Knows the scope of one tenant, and how to learn it anew. Lives in the execution option."""

    @property
    def lookup_sql(self) -> str:
        """One SELECT with qualified names and no parameters; all its columns are text, and it
        yields one row, or none where the tenant is unknown."""
        ...

    def current(self) -> Scope | None:
        """What is known now; None if it has to be looked up first."""
        ...

    def refresh(self, row: Sequence[str | None] | None) -> Scope:
        """The scope after a look-up.

        Raises:
            TenantNotFoundError, TenantSuspendedError: there is none for this tenant.
            TenantBusyError: the tenant has moved to another pool.
        """
        ...

    def blocking_step(self) -> Callable[[], object] | None:
        """What has to be called before `refresh` can be right, and may take its time; None for nothing."""
        ...

    def explain(self, sqlstate: str | None) -> Exception | None:
        """What an error of the server means that came up while entering the tenant; None to let it pass."""
        ...
