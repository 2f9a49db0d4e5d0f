"""The way of one schema through its revisions, as it turns out."""

from __future__ import annotations

import time
from collections import Counter

from .plan import Destination, Heads, MigrationPlan
from .report import MigrationState, TenantResult

PATIENCE_S = 30.0
"""How long somebody who is no migrator may hold the lock of a schema, in seconds."""


class Journey:
    """Where one schema was, and where it is; survives that others are at work on it.

    Attributes:
        to: the schema.
        start, at: its revisions before, and now.
        applied: the ids of the revisions that were run.
        attempts: how often it was tried.
        retries: why it was tried again, and how often.
        is_begun: whether anybody was told that it begins.
        is_finished: whether a plan was run to its end.
    """

    def __init__(self, to: Destination, start: Heads) -> None:
        self.to = to
        self.start = self.at = start
        self.applied: list[str] = []
        self.attempts = 0
        self.retries: Counter[str] = Counter()
        self.is_begun = self.is_finished = False
        self._started = time.perf_counter()
        self._patience = time.monotonic() + PATIENCE_S

    @property
    def elapsed_ms(self) -> float:
        """How long it has taken, waiting included."""
        return (time.perf_counter() - self._started) * 1000

    @property
    def is_patient(self) -> bool:
        """Whether it goes on waiting for a lock that nobody seems to work under."""
        return time.monotonic() < self._patience

    @property
    def has_failed(self) -> bool:
        """Whether an attempt has failed, and was made again or is to be."""
        return bool(self.retries.keys() - {"locked"})

    def wait_on(self) -> None:
        """Somebody is at work on the schema; the patience begins anew."""
        self._patience = time.monotonic() + PATIENCE_S

    def set_out(self, found: Heads) -> None:
        """Somebody else has moved it."""
        self.start = self.at = found

    def went(self, plan: MigrationPlan, found: Heads) -> None:
        """The plan has brought it there, which may be a part of the way."""
        self.applied += [revision.id for revision in plan.applied_at(found)]
        self.at = found
        self.is_finished = found == plan.end

    def result(self, state: MigrationState, *, error: BaseException | None = None) -> TenantResult:
        """What became of it."""
        return TenantResult(
            tenant=self.to.name,
            state=state,
            start=self.start,
            end=self.at,
            applied=tuple(self.applied),
            duration_ms=self.elapsed_ms,
            attempts=max(self.attempts, 1),
            retries=dict(self.retries),
            error=error,
        )
