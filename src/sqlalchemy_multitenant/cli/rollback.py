"""`multitenant rollback`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..config_file import load_config
from .common import ConfigOption, JsonOption, chosen_ids, confirm, fail, reports_errors
from .migrate import (
    AllOption,
    ConcurrencyOption,
    JsonProgressOption,
    MaxFailuresOption,
    TenantOption,
    TenantsOption,
    exit_code,
    until_interrupted,
)

if TYPE_CHECKING:
    from ..migrations.planner import FleetPlan


@reports_errors
def rollback(  # noqa: PLR0913, PLR0917 - one parameter an option
    everyone: AllOption = False,
    tenants: TenantsOption = None,
    tenant: TenantOption = None,
    shared: Annotated[bool, typer.Option("--shared", help="The shared schema, and no tenant.")] = False,
    to: Annotated[
        str | None, typer.Option(metavar="REVISION", help="The revision that is to be the newest, or `base`.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="How many revisions to take back, instead.")
    ] = None,
    concurrency: ConcurrencyOption = 10,
    max_failures: MaxFailuresOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the SQL; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_progress: JsonProgressOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take tenants, or the shared schema, back to an earlier revision. Asks first."""
    ids = chosen_ids(everyone=everyone, tenants=tenants, tenant=tenant, as_json=as_json)
    chosen = everyone or ids is not None
    if chosen and shared:
        fail("choose tenants or --shared; each is a rollback of its own", 2, as_json=as_json)
    if not chosen and not shared:
        fail("say whom to take back: --all, --tenants a,b,c, --tenant a or --shared", 2, as_json=as_json)
    if to == "":
        fail("--to is empty: name a revision", 2, as_json=as_json)
    if to is not None and steps is not None:
        fail(f"--to {to} and --steps {steps}: choose one of them", 2, as_json=as_json)
    if to is None and steps is None:
        fail("say how far to go back: --to REVISION or --steps N", 2, as_json=as_json)
    if shared and to is None:
        fail("the shared schema goes back --to REVISION", 2, as_json=as_json)
    from ..migrations.migrator import Migrator
    from ..migrations.options import RunOptions
    from .progress import Progress
    from .results import render_plans, render_report

    RunOptions(concurrency=concurrency, max_failures=max_failures)
    with Migrator(load_config(config)) as migrator:
        plans = (
            migrator.plan_rollback_shared(to=str(to))
            if shared
            else migrator.plan_rollback(ids, to=to, steps=steps)
        )
        if dry_run:
            render_plans(plans, as_json=as_json)
            return
        if plans and not yes:
            _ask(plans, as_json=as_json)
        if shared:
            with Progress(quiet=as_json, json_lines=json_progress) as progress:
                progress.start(1)
                result = migrator.rollback_shared(to=str(to), on_progress=progress.update)
            render_report(result, None, verb="taken back", as_json=as_json)
            return
        with Progress(quiet=as_json, json_lines=json_progress) as progress:
            progress.start(len(migrator.find_members(ids)))
            report = until_interrupted(
                lambda: migrator.rollback(
                    ids,
                    to=to,
                    steps=steps,
                    concurrency=concurrency,
                    max_failures=max_failures,
                    on_progress=progress.update,
                )
            )
        again = "rollback --to REVISION takes back those that failed"
        went_well = render_report(None, report, verb="taken back", again=again, as_json=as_json)
    if not went_well:
        raise typer.Exit(exit_code(report))


def _ask(plans: list[FleetPlan], *, as_json: bool) -> None:
    tenants = [tenant for plan in plans for tenant in plan.tenants]
    undone = dict.fromkeys(revision.name for plan in plans for revision in plan.plan.revisions)
    if plans[0].kind == "shared":
        what = f"This takes back {', '.join(undone)} in the shared schema, which all tenants use."
        confirm(f"{what} Type 'shared' to go on", "shared", "--yes", as_json=as_json)
        return
    what = f"This takes back {', '.join(undone)} in {len(tenants)} tenant{'s' if len(tenants) > 1 else ''}."
    if len(tenants) == 1:
        confirm(f"{what} Type the tenant's id to go on", tenants[0], "--yes", as_json=as_json)
    else:
        confirm(f"{what} Type the number of tenants to go on", str(len(tenants)), "--yes", as_json=as_json)
