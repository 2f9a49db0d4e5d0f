"""What is still to be asked of whom, and what becomes of the answers.

Tenants are asked in units: many in one statement where that can be, else one by one. A unit that fails is
taken apart until the tenant is found that it fails for. Nothing here awaits, or asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError

from ..catalog.members import Member
from ..catalog.records import TenantStatus
from ..errors import (
    MultitenantError,
    TenantError,
    TenantNotFoundError,
    TenantQueryError,
    TenantSuspendedError,
)
from ..naming import TenantId
from .question import Answer, Question, Unit

_NEVER_TOGETHER = frozenset({"42804", "42846", "42883", "42704"})
"""Types of the branches that differ, a function or type that only the search path finds: no union will do
(https://www.postgresql.org/docs/current/errcodes-appendix.html)."""

_TOO_MANY = frozenset({"53200", "57014"})
"""No place for more locks, or the time is over: fewer tenants may do."""

_LOST = ("08", "57P")
"""The connection is gone: a matter of no tenant's."""


@dataclass
class Work:
    """What is still to be asked, and what of the answers may be handed on.

    Attributes:
        question: what is asked.
        returns_errors: hand on what a tenant failed with in place of its rows, all of which are held back
            until they are complete; else raise it.
        limit: the most rows to hand on; None for all.
        skips_gone: pass over a tenant that has been dropped or suspended meanwhile.
        concurrency: how many units may be asked at one time.
    """

    question: Question
    returns_errors: bool
    limit: int | None
    concurrency: int
    skips_gone: bool = False
    _waiting: deque[Member] = field(default_factory=deque)
    _again: deque[Unit] = field(default_factory=deque)
    _together: bool = True
    _at_once: int = 1
    _held: list[Answer] = field(default_factory=list)
    _done: set[str] = field(default_factory=set)
    _was_handed_on: bool = False
    _failure: Exception | None = None

    def __post_init__(self) -> None:
        self._together = self.question.together is not None
        self._at_once = self.question.tenants_a_statement if self._together else 1

    def begin(self, members: Iterable[Member], errors: Sequence[TenantError]) -> Sequence[TenantError]:
        """Have these asked, in this order; returns the errors of others, to hand on.

        Raises:
            TenantError: the first of them, where errors are not to be handed on.
        """
        if errors and not self.returns_errors:
            raise errors[0]
        self._waiting.extend(members)
        return errors

    def take(self) -> list[Unit]:
        """The next units, which may be asked at one time; none when all is done.

        Raises:
            Exception: what a unit failed with, where no tenant of it has failed alone.
        """
        if self.is_full:
            return []
        units: list[Unit] = []
        # What is asked again comes alone: the others must not overtake it.
        alone = self._again or not self.question.is_short or self._failure is not None
        most = 1 if alone else self.concurrency
        while len(units) < most and (unit := self._next()):
            units.append(unit)
        if not units and self._failure is not None:
            raise self._failure
        return units

    def _next(self) -> Unit:
        if self._again:
            return self._again.popleft()
        if self._failure is not None:
            return ()
        size = self._at_once if self._together else 1
        return tuple(self._waiting.popleft() for _ in range(min(size, len(self._waiting))))

    @property
    def is_full(self) -> bool:
        """Whether no more rows are to be handed on."""
        return self.limit is not None and self.limit <= 0

    @property
    def must_ask_again(self) -> bool:
        """Whether parts of a unit that failed are to be asked before all others."""
        return bool(self._again) and not self.is_full

    def asks_together(self, unit: Unit) -> bool:
        """Whether the unit is asked in one statement for several."""
        return self._together and len(unit) > 1

    def accept(self, rows: Sequence[Answer]) -> list[Answer]:
        """What may be handed on now that these have come from the unit."""
        if self._failure is not None:
            return []  # only the tenant that fails is looked for
        if not self.returns_errors:
            return self._limited(rows)
        ready: list[Answer] = []
        for row in rows:
            if self._held and self._held[-1][0] != row[0]:
                ready += self._release()
            self._held.append(row)
        if self.limit is not None and len(ready) + len(self._held) >= self.limit:
            ready += self._release()  # more of them are not wanted
        return self._limited(ready)

    def settle(
        self, unit: Unit, rows: Sequence[Answer], error: Exception | None
    ) -> Sequence[Answer | TenantError]:
        """The unit is complete, with all its rows, or has failed: what may be handed on. Raises as `fail`."""
        if error is not None:
            return self.fail(unit, error)
        return [*self.accept(rows), *self.finish()]

    def finish(self) -> list[Answer]:
        """The unit is complete: what may be handed on now."""
        ready = self._limited(self._release())
        self._start_unit()
        return ready

    def fail(self, unit: Unit, error: Exception) -> list[TenantError]:
        """The unit has failed: what may be handed on of that.

        Raises:
            TenantError: errors are not to be handed on, and the tenant is known.
            Exception: the error is of no tenant's.
        """
        if _is_nobodys(error):
            raise error
        left = tuple(member for member in unit if member.id not in self._done)
        was_handed_on = self._was_handed_on
        self._start_unit()
        if isinstance(error, TenantError) or len(unit) == 1:
            failed = _as_tenant_error(error, unit)
            self._ask_again(tuple(member for member in left if member.id != failed.tenant))
            if self.skips_gone and isinstance(error, TenantNotFoundError | TenantSuspendedError):
                return []
            if not self.returns_errors:
                raise failed
            return [failed]
        sqlstate = _sqlstate(error)
        if sqlstate in _NEVER_TOGETHER and not was_handed_on:
            self._together = False
            self._again.extendleft((member,) for member in reversed(left))
            return []
        if was_handed_on and not self.returns_errors:
            # Its rows must not come twice. All that is wanted of it now is who fails.
            self._failure = error
        if sqlstate in _TOO_MANY:
            self._at_once = max(1, min(self._at_once, len(unit) // 2))
        half = (len(left) + 1) // 2
        self._ask_again(left[half:])
        self._ask_again(left[:half])
        return []

    def _start_unit(self) -> None:
        self._held, self._done, self._was_handed_on = [], set(), False

    def _ask_again(self, unit: Unit) -> None:
        if unit:
            self._again.appendleft(unit)

    def _release(self) -> list[Answer]:
        ready, self._held = self._held, []
        if ready:
            self._done.add(ready[0][0])
        return ready

    def _limited(self, rows: Sequence[Answer]) -> list[Answer]:
        self._was_handed_on = self._was_handed_on or bool(rows)
        if self.limit is None:
            return list(rows)
        kept = list(rows[: self.limit])
        self.limit -= len(kept)
        return kept


def _as_tenant_error(error: Exception, unit: Unit) -> TenantError:
    if isinstance(error, TenantError):
        return error
    failed = TenantQueryError(unit[0].id, _said(error))
    failed.__cause__ = error
    return failed


def _is_nobodys(error: Exception) -> bool:
    """Whether no tenant has to do with it: the connection, the pool, the statement as it was built."""
    if isinstance(error, DBAPIError):
        lost = error.connection_invalidated or (_sqlstate(error) or "").startswith(_LOST)
        return lost and not isinstance(error, DataError)
    if isinstance(error, MultitenantError):
        return not isinstance(error, TenantError)
    return isinstance(error, SQLAlchemyError) or (_sqlstate(error) or "").startswith(_LOST)


def _sqlstate(error: Exception) -> str | None:
    """The server's code; None for what does not come from there. asyncpg's errors come as they are where
    rows are fetched from a cursor."""
    code = getattr(getattr(error, "orig", error), "sqlstate", None)
    return code if isinstance(code, str) else None


def _said(error: Exception) -> str:
    """What the database said, without the statement, which is not quite the user's."""
    original: Any = getattr(error, "orig", error)
    # psycopg has a report of its own; asyncpg's error is behind SQLAlchemy's.
    reported = getattr(original, "diag", None) or original.__cause__ or original
    message = getattr(reported, "message_primary", None) or getattr(reported, "message", None)
    hint = getattr(reported, "message_hint", None) or getattr(reported, "hint", None)
    return f"{message or original}".strip() + (f" ({hint})" if hint else "")


def choose(
    members: Sequence[Member], tenants: Sequence[TenantId] | None, status: TenantStatus | None
) -> tuple[list[Member], list[TenantError]]:
    """Whom to ask, and who cannot be asked.

    Args:
        members: all tenants there are.
        tenants: those that are wanted; None for all.
        status: which they must have; None for any.
    """
    if tenants is None:
        return [member for member in members if status is None or member.status is status], []
    known = {member.id: member for member in members}
    chosen: list[Member] = []
    errors: list[TenantError] = []
    for tenant in dict.fromkeys(tenants):
        member = known.get(tenant)
        if member is None:
            errors.append(TenantNotFoundError(tenant))
        elif status is not None and member.status is not status:
            errors.append(TenantSuspendedError(tenant))
        else:
            chosen.append(member)
    return chosen, errors
