"""What a run of migrations is shown as: for people, and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .common import INTERRUPTED, console, print_json

if TYPE_CHECKING:
    from ..migrations.planner import FleetPlan
    from ..migrations.report import EditedRevision, MigrationReport, TenantResult

SHOWN = 5
"""How many tenants a plan names."""


def result_json(result: TenantResult, kind: str) -> dict[str, Any]:
    """One tenant's result, or the shared schema's (`kind` is `shared`), for programs."""
    return {
        "type": kind,
        "tenant": result.tenant,
        "state": result.state.value,
        "from": list(result.start),
        "to": list(result.end),
        "applied": list(result.applied),
        "duration_ms": round(result.duration_ms, 1),
        "attempts": result.attempts,
        "retries": dict(result.retries),
        "error": None if result.error is None else str(result.error),
    }


def render_report(
    shared: TenantResult | None,
    report: MigrationReport | None,
    *,
    verb: str,
    edited: Sequence[EditedRevision] = (),
    again: str = "--only-failed tries those that failed",
    as_json: bool,
) -> bool:
    """Show what became of the shared schema and of the tenants; returns whether all went well.

    Args:
        again: how those that failed are tried again.
    """
    from ..migrations.report import MigrationReport

    tenants = report or MigrationReport(())
    details = (*([shared] if shared else []), *tenants.details)
    whole = replace(tenants, details=details)
    if as_json:
        interrupted = {"error": "Interrupted", "message": INTERRUPTED} if whole.is_interrupted else {}
        print_json(
            {
                **interrupted,
                "run": whole.run,
                "total": whole.total,
                "succeeded": whole.succeeded,
                "skipped": whole.skipped,
                "unreached": whole.unreached,
                "failed": whole.failed,
                "stopped": whole.stopped,
                "hook_errors": [
                    {"tenant": e.tenant, "hook": e.hook, "error": str(e.error)} for e in whole.hook_errors
                ],
                "edited": [{"type": e.kind, "revision": e.revision, "name": e.name} for e in edited],
                "details": [
                    *([result_json(shared, "shared")] if shared else []),
                    *(result_json(result, "tenant") for result in tenants.details),
                ],
            }
        )
    else:
        _print_report(whole, verb, again)
        warn_of_edits(edited)
    return not whole.failed and whole.stopped is None


def _print_report(report: MigrationReport, verb: str, again: str) -> None:
    from rich.markup import escape

    out = console()
    failed = f"[bold red]{report.failed} failed[/]" if report.failed else "0 failed"
    idle = f"{report.skipped - report.unreached} up to date"
    left = f", {report.unreached} not reached" if report.unreached else ""
    out.print(f"{report.total} in all: [green]{report.succeeded} {verb}[/], {idle}{left}, {failed}")
    retries: dict[str, int] = {}
    for result in report.details:
        for reason, count in result.retries.items():
            retries[reason] = retries.get(reason, 0) + count
    if retries:
        counted = ", ".join(f"{reason} {count}" for reason, count in sorted(retries.items()))
        out.print(f"tried again: {counted}")
    for raised in report.hook_errors:
        error = f"{type(raised.error).__name__}: {raised.error}"
        out.print(f"[yellow]hook {raised.hook} failed[/] for {raised.tenant}: {escape(error)}")
    for result in report.failures:
        out.print(f"[red]failed[/] {result.tenant}: {escape(str(result.error))}")
    if report.stopped is not None:
        out.print(f"[bold red]stopped:[/] {escape(report.stopped)}")
    if report.run is not None and (report.failed or report.stopped is not None):
        hint = f"; {again}" if report.failed else ""
        out.print(f"multitenant runs show {report.run} tells this again{hint}.")


def warn_of_edits(edited: Sequence[EditedRevision]) -> None:
    """Name the revisions that were changed after somebody had them."""
    from rich.markup import escape

    for revision in edited:
        console(stderr=True).print(
            f"[yellow]edited after it was applied:[/] {escape(revision.name)} ({revision.kind}); who has it "
            "already does not get the change: take it back, and write a new revision"
        )


def render_plans(plans: Sequence[FleetPlan], *, as_json: bool) -> None:
    """Show what would be done."""
    if as_json:
        print_json([_plan_json(plan) for plan in plans])
        return
    from rich.markup import escape

    out = console()
    if not plans:
        out.print("Nothing is pending.")
    for plan in plans:
        start, end = (", ".join(heads) or "nothing" for heads in (plan.plan.start, plan.plan.end))
        number = len(plan.tenants)
        tenants = f"{number} tenant{'s' if number != 1 else ''}: {_some(plan.tenants)}"
        who = "the shared schema" if plan.kind == "shared" else tenants
        out.print(f"[bold]-- {escape(start)} -> {escape(end)}[/], {escape(who)}")
        out.print(escape(plan.plan.sql))


def _plan_json(plan: FleetPlan) -> dict[str, Any]:
    return {
        "type": plan.kind,
        "tenants": list(plan.tenants),
        "from": list(plan.plan.start),
        "to": list(plan.plan.end),
        "revisions": [revision.id for revision in plan.plan.revisions],
        "online": plan.plan.online,
        "sql": [statement.sql for statement in plan.plan.statements],
        "sql_hash": plan.plan.sql_hash,
    }


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
