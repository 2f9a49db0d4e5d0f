"""Ways: from where a schema turns out to be, to the plan that takes it where it is wanted."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ConfigurationError, MigrationError
from .history import History
from .plan import Heads, MigrationPlan

Way = Callable[[Heads], MigrationPlan]
"""From where a schema is to the plan that takes it where it is wanted."""


class NoWayError(MigrationError):
    """There is no plan for a schema that stands where it does: a matter of that tenant's alone."""


def way_back(history: History, to: str | None, steps: int | None) -> Callable[[Heads], Way]:
    """Makes, from where a tenant was found, what plans its way back from where it turns out to be.

    Raises:
        ConfigurationError: neither `to` nor `steps`, or both; or no number of steps.
        MigrationError: there is no revision `to`.
    """
    if (to is None) == (steps is None):
        raise ConfigurationError("to", to, "either to=REVISION or steps=N, and not both")
    if to is not None:
        target = history.resolve(to)
        return lambda _start: lambda heads: history.plan_back_to(heads, target)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ConfigurationError("steps", steps, "a whole number, at least 1")

    def way_of(start: Heads) -> Way:
        if not start:
            return lambda heads: MigrationPlan(heads, heads, (), ())
        if error := _refuse_steps(history, start, steps):
            return no_way(error)
        first = history.plan_downgrade(start, f"-{steps}")

        def way(heads: Heads) -> MigrationPlan:
            # A connection may be lost while it commits, and a revision may fail after others were committed.
            # To try again must not take back some more.
            if heads == first.end:
                return MigrationPlan(heads, heads, (), ())
            if len(heads) == 1 and heads[0] in {revision.id for revision in first.revisions[1:]}:
                return history.plan_downgrade(heads, first.end[0] if first.end else "base")
            if heads != start:
                raise MigrationError(f"it was moved to {', '.join(heads) or 'base'} meanwhile; run it again")
            return first

        return way

    return way_of


def _refuse_steps(history: History, start: Heads, steps: int) -> NoWayError | None:
    """Why so many steps cannot be taken back from `start`; None where they can, as far as counting tells."""
    at = start
    for taken in range(steps):
        if not at:
            return NoWayError(f"it has {taken} revisions, and {steps} were to be taken back")
        script = history.script_of(at[0])
        if len(at) > 1 or script.is_merge_point:
            return NoWayError(f"branches meet at {', '.join(at)}: say to which revision instead (to=, --to)")
        at = () if script.down_revision is None else (str(script.down_revision),)
    return None


def no_way(error: MigrationError) -> Way:
    """For a tenant for whom nothing can be planned."""

    def way(_heads: Heads) -> MigrationPlan:
        raise error

    return way
