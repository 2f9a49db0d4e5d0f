"""`Planner`: what a run would do, without doing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..catalog.members import Member
from .history import History
from .plan import Heads, MigrationPlan
from .project import Project
from .report import SHARED
from .requirements import require_nobody_above, require_shared
from .ways import NoWayError, Way, way_back


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """A plan, and who would get it.

    Attributes:
        kind: `tenant` or `shared`.
    """

    kind: str
    plan: MigrationPlan
    tenants: tuple[str, ...]


class Planner(Project):
    """A project, and what can be planned for it. Reads only."""

    def plan(
        self,
        tenants: Iterable[str] | None = None,
        *,
        shared: bool = False,
        mark: bool = False,
        only_failed: bool = False,
    ) -> list[FleetPlan]:
        """What a run would do, without doing it: one entry for each distinct plan, with the tenants that
        would get it. A tenant without a schema gets none; `status` names it.

        Args:
            tenants: their ids; None for all.
            shared: whether the shared schema comes first.
            mark: plan `mark_applied` instead of a migration.
            only_failed: of these tenants, those whose last result was a failure.

        Raises:
            MigrationError: the revisions are wrong.
            TenantNotFoundError: one of `tenants` does not exist.
        """

        def way(history: History) -> Way:
            return history.plan_stamp if mark else history.plan_upgrade

        plans = []
        if shared:
            plan = way(self.shared_history)(self._shared()[1])
            plans += [] if plan.is_empty else [FleetPlan(SHARED, plan, (SHARED,))]
        members = self.find_members(tenants, only_failed=only_failed)
        ours = self._plans(members, lambda _start: way(self.tenant_history), mark=mark)
        if not shared and not mark:
            self._require_shared([plan.plan for plan in ours])
        return plans + ours

    def _require_nobody_above(self, plans: Sequence[FleetPlan]) -> None:
        heads = {at for at in self._read_heads(self.find_members()).values() if at}
        require_nobody_above([p.plan for p in plans], heads, self.tenant_history, self.shared_history)

    def _require_shared(self, plans: Sequence[MigrationPlan]) -> None:
        require_shared(plans, self.tenant_history, self.shared_history, lambda: self._shared()[1])

    def plan_rollback(
        self, tenants: str | Iterable[str] | None = None, *, to: str | None = None, steps: int | None = None
    ) -> list[FleetPlan]:
        """What `rollback` would do, without doing it.

        Raises:
            MigrationError: no such revision, or one on the way has no downgrade.
            TenantNotFoundError: one of `tenants` does not exist.
        """
        members = self.find_members([tenants] if isinstance(tenants, str) else tenants)
        return self._plans(members, way_back(self.tenant_history, to, steps))

    def plan_rollback_shared(self, *, to: str) -> list[FleetPlan]:
        """What `rollback_shared` would do, without doing it.

        Raises:
            MigrationError: no such revision, or one on the way has no downgrade.
        """
        plan = self.shared_history.plan_back_to(self._shared()[1], self.shared_history.resolve(to))
        return [] if plan.is_empty else [FleetPlan(SHARED, plan, (SHARED,))]

    def _plans(
        self, members: Sequence[Member], way_of: Callable[[Heads], Way], *, mark: bool = False
    ) -> list[FleetPlan]:
        """Without those that nothing can be planned for: a run names them as failed, as `status` does."""
        heads = self._read_heads(members)
        groups: dict[Heads, list[str]] = {}
        for member in members:
            start = heads[member.schema]
            if start is not None:
                groups.setdefault(start, []).append(member.id)
        if not mark:
            for start in [start for start in groups if self._standing(start, self.tenant_history)[2]]:
                del groups[start]
        plans = []
        for start, names in groups.items():
            with suppress(NoWayError):
                plans.append(FleetPlan("tenant", way_of(start)(start), tuple(names)))
        return [plan for plan in plans if not plan.plan.is_empty]
