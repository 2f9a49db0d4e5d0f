"""`multitenant migrate`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config_file import load_config
from .common import (
    INTERRUPTED,
    ConfigOption,
    JsonOption,
    chosen_ids,
    fail,
    parse_canary,
    reports_errors,
    warn,
)

if TYPE_CHECKING:
    from ..migrations.report import MigrationReport

AllOption = Annotated[bool, typer.Option("--all", help="Every tenant.")]
TenantsOption = Annotated[str | None, typer.Option("--tenants", metavar="A,B,C", help="These tenants.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", metavar="ID", help="This tenant.")]
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="How many tenants at one time.")]
MaxFailuresOption = Annotated[
    str | None,
    typer.Option("--max-failures", metavar="N|P%", help="Begin no more tenants once more than these failed."),
]

JsonProgressOption = Annotated[
    bool, typer.Option("--json-progress", help="Write each event to stderr, a JSON document a line.")
]


def until_interrupted(run: Callable[[], MigrationReport]) -> MigrationReport:
    """A run's report; also where Ctrl-C has ended it."""
    from ..migrations.report import MigrationInterrupted

    try:
        return run()
    except MigrationInterrupted as interrupted:
        sys.stderr.write(f"{INTERRUPTED}\n")
        return interrupted.report


def exit_code(report: MigrationReport | None) -> int:
    """Of a run that has not gone well."""
    return 130 if report is not None and report.is_interrupted else 1


@reports_errors
def migrate(  # noqa: PLR0913, PLR0917 - one parameter an option
    everyone: AllOption = False,
    tenants: TenantsOption = None,
    tenant: TenantOption = None,
    shared: Annotated[bool, typer.Option("--shared", help="The shared schema, before any tenant.")] = False,
    concurrency: ConcurrencyOption = 10,
    canary: Annotated[
        str | None,
        typer.Option(metavar="N|A,B", help="So many tenants, or these, first; go on if they succeed."),
    ] = None,
    canary_factor: Annotated[
        float | None,
        typer.Option(metavar="F", help="Stop if a canary takes F times what an empty schema does."),
    ] = None,
    max_failures: MaxFailuresOption = None,
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="Those whose last migration failed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the SQL; change nothing.")] = False,
    mark_applied: Annotated[
        bool, typer.Option("--mark-applied", help="Record the newest revision; run nothing.")
    ] = False,
    json_progress: JsonProgressOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring tenants, or the shared schema, to the newest revision."""
    chosen = everyone or only_failed or tenants is not None or tenant is not None
    ids = chosen_ids(everyone=everyone, tenants=tenants, tenant=tenant, as_json=as_json)
    if not chosen and not shared:
        fail("say what to migrate: --all, --tenants a,b,c, --tenant a or --shared", 2, as_json=as_json)
    from ..migrations.migrator import Migrator
    from ..migrations.options import RunOptions
    from .progress import Progress
    from .results import render_plans, render_report

    options: dict[str, Any] = {
        "concurrency": concurrency,
        "canary": parse_canary(canary),
        "canary_factor": canary_factor,
        "max_failures": max_failures,
    }
    chosen_options = RunOptions(**options)  # wrong ones are told before anything runs
    with Migrator(load_config(config)) as migrator:
        if dry_run:
            plans = migrator.plan(
                ids if chosen else [], shared=shared, mark=mark_applied, only_failed=only_failed
            )
            render_plans(plans, as_json=as_json)
            return
        members = migrator.find_members(ids, only_failed=only_failed) if chosen else []
        if chosen:
            migrator.check_canaries(chosen_options, members)
        first, report = None, None
        with Progress(quiet=as_json, json_lines=json_progress) as progress:
            progress.start(len(members) + shared)
            if shared:
                move = migrator.mark_shared_applied if mark_applied else migrator.migrate_shared
                first = move(on_progress=progress.update)
            if chosen:
                run = migrator.mark if mark_applied else migrator.migrate
                report = until_interrupted(lambda: run(members, **options, on_progress=progress.update))
        behind = [] if shared else migrator.status_shared().pending
        edited = migrator.edited_revisions()
        verb = "marked" if mark_applied else "migrated"
        went_well = render_report(first, report, verb=verb, edited=edited, as_json=as_json)
        if behind:
            warn(f"{len(behind)} revisions are pending in the shared schema: multitenant migrate --shared")
    if not went_well:
        raise typer.Exit(exit_code(report))
