"""`multitenant status`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from .common import ConfigOption, JsonOption, console, load_config, parse_ids, print_json, reports_errors

if TYPE_CHECKING:
    from ..migrations.report import TenantMigrationStatus

STYLES = {"ok": "[green]ok[/]", "behind": "[yellow]behind[/]", "broken": "[red]broken[/]"}


@reports_errors
def status(
    tenants: Annotated[str | None, typer.Option("--tenants", metavar="A,B,C", help="These tenants.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where each tenant stands, and which migrations are pending."""
    from ..migrations.migrator import Migrator

    with Migrator(load_config(config)) as migrator:
        found = migrator.status(None if tenants is None else parse_ids(tenants, "--tenants"))
        names = {r.id: r.name for r in migrator.tenant_history.revisions()}
    pending = Counter(revision for tenant in found for revision in tenant.pending)
    if as_json:
        print_json(
            {
                "tenants": [
                    {
                        "tenant": t.tenant,
                        "schema": t.schema,
                        "revisions": list(t.heads),
                        "applied": t.applied,
                        "pending": list(t.pending),
                        "status": t.state,
                        "suspended": t.suspended,
                        "problem": t.problem,
                    }
                    for t in found
                ],
                "pending": [{"revision": r, "tenants": pending[r]} for r in names if r in pending],
            }
        )
        return
    render(found, [(names[r], pending[r]) for r in names if r in pending])


def render(found: list[TenantMigrationStatus], pending: list[tuple[str, int]]) -> None:
    """The table, and below it what is pending."""
    from rich.markup import escape
    from rich.table import Table

    out = console()
    if not found:
        out.print("There are no tenants yet: multitenant tenant create --id acme")
        return
    table = Table("Tenant", "Schema", "Revision", "Applied", "Pending", "Status")
    for tenant in found:
        table.add_row(
            escape(tenant.tenant),
            escape(tenant.schema),
            ", ".join(tenant.heads) or "-",
            str(tenant.applied),
            str(len(tenant.pending)),
            STYLES[tenant.state]
            + (f" {escape(tenant.problem)}" if tenant.problem else "")
            + (" (suspended)" if tenant.suspended else ""),
        )
    out.print(table)
    if pending:
        out.print("\nPending migrations:")
        for name, count in pending:
            out.print(f"- {name} ({count} tenant{'s' if count != 1 else ''})")
        out.print("\nRun [bold]multitenant migrate --all[/] to apply them.")
