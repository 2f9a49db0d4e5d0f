"""Which shared revision a tenants' revision builds on, and whether it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..errors import MigrationError
from .history import History
from .plan import Heads, MigrationPlan


def require_shared(
    plans: Iterable[MigrationPlan],
    tenant_history: History,
    shared_history: History,
    read_shared_heads: Callable[[], Heads],
) -> None:
    """Refuse to run tenants' revisions that build on a shared one (`requires_shared = "0004"` in the file, as
    `multitenant generate` writes it) where that is not applied.

    Raises:
        MigrationError: names the revision, and the one that it needs.
    """
    wanted = {
        (needed, revision.id)
        for plan in plans
        for revision in plan.revisions
        if (needed := tenant_history.required_shared(revision.id)) is not None
    }
    if not wanted:
        return
    applied = {revision.id for revision in shared_history.applied(read_shared_heads())}
    for needed, revision in sorted(wanted):
        if shared_history.resolve(needed) not in applied:
            raise MigrationError(
                f"it builds on shared revision {needed!r}, which is not applied: run "
                "`multitenant migrate --shared` first",
                revision=revision,
            )


def require_nobody_above(
    plans: Iterable[MigrationPlan], heads: Iterable[Heads], tenant_history: History, shared_history: History
) -> None:
    """Refuse to take shared revisions back that tenants' ones build on.

    Args:
        plans: downgrades of the shared schema.
        heads: those of all tenants.

    Raises:
        MigrationError: names the revision, and the one that is built on it.
    """
    undone = {revision.id for plan in plans for revision in plan.revisions}
    for at in heads:
        try:
            applied = tenant_history.applied(at)
        except MigrationError:  # at a revision that is not here
            continue
        for revision in applied:
            needed = tenant_history.required_shared(revision.id)
            if needed is not None and shared_history.resolve(needed) in undone:
                raise MigrationError(
                    f"tenants' revision {revision.id!r} builds on it, and some tenants have that: "
                    "roll those back first",
                    revision=shared_history.resolve(needed),
                )
