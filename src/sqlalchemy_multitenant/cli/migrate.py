"""`multitenant migrate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    ConfigOption,
    JsonOption,
    console,
    fail,
    load_config,
    parse_ids,
    print_json,
    reports_errors,
)

if TYPE_CHECKING:
    from ..migrations.report import MigrationReport, TenantResult


@reports_errors
def migrate(  # noqa: PLR0913, PLR0917 - one parameter an option
    everyone: Annotated[bool, typer.Option("--all", help="Every tenant.")] = False,
    tenants: Annotated[str | None, typer.Option("--tenants", metavar="A,B,C", help="These tenants.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="ID", help="This tenant.")] = None,
    shared: Annotated[bool, typer.Option("--shared", help="The shared schema, before any tenant.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="How many tenants at one time.")] = 10,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the SQL; change nothing.")] = False,
    mark_applied: Annotated[
        bool, typer.Option("--mark-applied", help="Record the newest revision; run nothing.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring tenants, or the shared schema, to the newest revision."""
    chosen = [bool(everyone), tenants is not None, tenant is not None]
    if sum(chosen) > 1:
        fail("choose one of --all, --tenants and --tenant", 2, as_json=as_json)
    if not any(chosen) and not shared:
        fail("say what to migrate: --all, --tenants a,b,c, --tenant a or --shared", 2, as_json=as_json)
    from ..migrations.migrator import Migrator
    from .progress import Progress

    ids: list[str] | None = None
    if tenants is not None:
        ids = parse_ids(tenants, "--tenants")
    elif tenant is not None:
        ids = [tenant]
    with Migrator(load_config(config)) as migrator:
        if dry_run:
            _show_plans(migrator.plan(ids if any(chosen) else [], shared=shared, mark=mark_applied), as_json)
            return
        results: list[TenantResult] = []
        report: MigrationReport | None = None
        if shared:
            results.append(migrator.mark_shared_applied() if mark_applied else migrator.migrate_shared())
        if any(chosen):
            if mark_applied:
                report = migrator.mark_applied(ids)
            else:
                with Progress(quiet=as_json) as progress:
                    members = migrator.find_members(ids)
                    progress.start(len(members))
                    report = migrator.migrate(members, concurrency=concurrency, on_progress=progress.update)
            results += report.details
    _render(results, as_json)
    if any(result.error for result in results):
        raise typer.Exit(1)


def _render(results: list[TenantResult], as_json: bool) -> None:
    from ..migrations.report import MigrationReport

    report = MigrationReport.of(results)
    if as_json:
        print_json(
            {
                "total": report.total,
                "succeeded": report.succeeded,
                "skipped": report.skipped,
                "failed": report.failed,
                "details": [result_json(r) for r in results],
            }
        )
        return
    out = console()
    out.print(
        f"{report.total} in all: [green]{report.succeeded} migrated[/], {report.skipped} up to date, "
        f"{'[bold red]' if report.failed else ''}{report.failed} failed{'[/]' if report.failed else ''}"
    )
    from rich.markup import escape

    for result in report.failures:
        out.print(f"[red]failed[/] {result.tenant}: {escape(str(result.error))}")


def result_json(result: TenantResult) -> dict[str, Any]:
    """One tenant's result for programs."""
    return {
        "tenant": result.tenant,
        "state": result.state.value,
        "from": list(result.start),
        "to": list(result.end),
        "applied": list(result.applied),
        "duration_ms": round(result.duration_ms, 1),
        "attempts": result.attempts,
        "error": None if result.error is None else str(result.error),
    }


def _show_plans(plans: list[Any], as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "type": p.kind,
                    "tenants": list(p.tenants),
                    "from": list(p.plan.start),
                    "to": list(p.plan.end),
                    "revisions": [r.id for r in p.plan.revisions],
                    "online": p.plan.online,
                    "sql": [s.sql for s in p.plan.statements],
                }
                for p in plans
            ]
        )
        return
    out = console()
    if not plans:
        out.print("Nothing is pending.")
    from rich.markup import escape

    for p in plans:
        start = ", ".join(p.plan.start) or "nothing"
        who = "the shared schema" if p.kind == "shared" else f"{len(p.tenants)} tenants: {_some(p.tenants)}"
        out.print(f"[bold]-- {start} -> {', '.join(p.plan.end)}[/], {escape(who)}")
        if p.plan.online:
            out.print(f"-- run by Alembic on each connection, since {escape(p.plan.online)}")
        out.print(escape(p.plan.sql))


SHOWN = 5
"""How many tenants a plan names."""


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
