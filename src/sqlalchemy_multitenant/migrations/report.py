"""What a run of migrations did: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from .plan import Heads

INTERRUPTED = "interrupted"
"""Why a run was stopped by Ctrl-C."""

SHARED = "shared"
"""What the shared schema is called among the results."""


class MigrationState(StrEnum):
    """What became of one tenant."""

    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantResult:
    """One tenant's result.

    Attributes:
        tenant: its id; `shared` for the shared schema.
        state: done, skipped (nothing was pending) or failed.
        start, end: the revisions before and after. Where it failed, `end` is where it is now: another one
            than `start` where a revision before has ended the transaction (autocommit_block).
        applied: the ids of the revisions applied, oldest first.
        duration_ms: how long it took, waiting and retries included.
        attempts: how often it was tried.
        retries: why it was tried again, and how often (`{"lock timeout": 2}`).
        error: what went wrong, or None.
    """

    tenant: str
    state: MigrationState
    start: Heads = ()
    end: Heads = ()
    applied: tuple[str, ...] = ()
    duration_ms: float = 0.0
    attempts: int = 1
    retries: Mapping[str, int] = field(default_factory=dict)
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class HookError:
    """A hook of the application's raised; the migration it was told of went on.

    Attributes:
        hook: its name, such as `after_tenant`.
    """

    tenant: str
    hook: str
    error: Exception


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """The results of a run, in the order of the tenants given.

    Attributes:
        stopped: why the run ended before all tenants had their turn, or None.
        run: its number in the ledger; None where there was nothing to do.
        hook_errors: what the application's hooks raised.
        unreached: how many of those that were skipped had something pending.
    """

    details: tuple[TenantResult, ...]
    stopped: str | None = None
    run: int | None = None
    hook_errors: tuple[HookError, ...] = ()
    unreached: int = 0

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return self.stopped == INTERRUPTED

    @property
    def aborted(self) -> bool:
        """Whether the run ended before all tenants had their turn."""
        return self.stopped is not None

    def _count(self, state: MigrationState) -> int:
        return sum(result.state is state for result in self.details)

    @property
    def total(self) -> int:
        """How many tenants were asked for."""
        return len(self.details)

    @property
    def succeeded(self) -> int:
        """How many were brought to a newer revision."""
        return self._count(MigrationState.DONE)

    @property
    def skipped(self) -> int:
        """How many had nothing pending, or were not reached because the run was aborted."""
        return self._count(MigrationState.SKIPPED)

    @property
    def failed(self) -> int:
        """How many failed; each is at the revision that its result's `end` names."""
        return self._count(MigrationState.FAILED)

    @property
    def failures(self) -> tuple[TenantResult, ...]:
        """The results of those that failed."""
        return tuple(r for r in self.details if r.state is MigrationState.FAILED)


class MigrationInterrupted(KeyboardInterrupt):
    """A run was ended by Ctrl-C.

    Attributes:
        report: what became of each tenant.
    """

    def __init__(self, report: MigrationReport) -> None:
        super().__init__(report)
        self.report = report


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantMigrationStatus:
    """Where one tenant stands.

    Attributes:
        applied: how many revisions of the history it has.
        pending: the ids of those it lacks, oldest first.
        suspended: whether it is; it is migrated all the same.
        problem: why that cannot be told (no schema, an unknown revision), or None.
    """

    tenant: str
    schema: str
    heads: Heads
    applied: int
    pending: tuple[str, ...]
    suspended: bool = False
    problem: str | None = None

    @property
    def state(self) -> str:
        """`ok`, `behind` or `broken`."""
        if self.problem:
            return "broken"
        return "behind" if self.pending else "ok"


@dataclass(frozen=True, slots=True)
class EditedRevision:
    """A revision that does something else than when it was first applied.

    Attributes:
        kind: `tenant` or `shared`.
        revision: its id.
        name: its file's name, without folder.
    """

    kind: str
    revision: str
    name: str
