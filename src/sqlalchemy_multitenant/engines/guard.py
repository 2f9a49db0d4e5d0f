"""What the guarded connections of both drivers share: whom the next transaction is for."""

from __future__ import annotations

from ..errors import ConfigurationError, NoTenantError
from ..isolation.scope import ScopeSource, session_reset_sql

OUTSIDE = (
    "this connection serves tenants and is in no transaction of one: "
    "use the sessions and connections of a TenantDb (and not COMMIT or ROLLBACK as SQL text)"
)


class Guarded:
    """Part of a driver's connection that runs nothing outside a scoped transaction.

    Its state is in class attributes first, so that it is a defined one even while the driver connects.
    """

    _armed = False
    _reset_due = False
    _is_pooled = False
    _altered: str | None = None
    _session_reset = session_reset_sql()
    _next: ScopeSource | None = None
    checkout = 0

    def arm(self, pid: int) -> None:
        """From now on, refuse whatever is sent outside a scoped transaction.

        Args:
            pid: the server's process that answers. Where it is not the one that the server gave when the
                connection was made, a pooler is in between, and transactions of others in the same session.
        """
        self._armed = True
        self._is_pooled = pid != self._announced_pid()

    def _announced_pid(self) -> int:
        raise NotImplementedError

    def note_altered(self, what: str) -> None:
        """Something was set on the connection in this process, which no statement would take back: it is
        not given to another user."""
        if self._armed:
            self._altered = what

    def check_unaltered(self) -> None:
        """Raise if the last user has left something on the connection in this process."""
        if self._altered is not None:
            raise NoTenantError(f"its last user has left {self._altered}")

    def mark_checked_out(self) -> None:
        """A new user has the connection: its first BEGIN cleans up after the last one."""
        self._reset_due = True
        self._next = None
        self.checkout += 1

    def _note_begun(self) -> None:
        # Behind a pooler, others use the session between any two transactions.
        self._reset_due = self._is_pooled

    def bind(self, source: ScopeSource) -> None:
        """The next BEGIN is for `source`."""
        self._next = source

    @property
    def _clean_up(self) -> str:
        """What goes before the next BEGIN."""
        return self._session_reset if self._reset_due else ""

    def _take_scope(self) -> ScopeSource:
        """What `bind` left, once.

        Raises:
            NoTenantError: nothing.
        """
        source, self._next = self._next, None
        if source is None:
            raise NoTenantError(OUTSIDE)
        return source


def refuse_autocommit(level: str) -> None:
    """Raise for AUTOCOMMIT, under which a scope would end with its first statement."""
    if level == "AUTOCOMMIT":
        raise ConfigurationError(
            "isolation_level",
            level,
            "a tenant's statements run in transactions, since its scope ends with them; what cannot run "
            "in one (VACUUM, CREATE INDEX CONCURRENTLY) belongs in a migration or in a psql of your own",
        )
