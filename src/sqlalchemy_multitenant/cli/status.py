"""`multitenant status`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config_file import load_config
from .common import ConfigOption, JsonOption, console, parse_ids, print_json, print_table, reports_errors
from .migrate import ConcurrencyOption
from .results import warn_of_edits

if TYPE_CHECKING:
    from ..migrations.report import TenantMigrationStatus
    from ..migrations.verify import TenantVerification

STYLES = {"ok": "[green]ok[/]", "behind": "[yellow]behind[/]", "broken": "[red]broken[/]"}


@reports_errors
def status(
    tenants: Annotated[str | None, typer.Option("--tenants", metavar="A,B,C", help="These tenants.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare each tenant's catalogue with what the revisions build.")
    ] = False,
    concurrency: ConcurrencyOption = 10,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where each tenant stands, and which migrations are pending."""
    from ..migrations.migrator import Migrator
    from .progress import Progress

    ids = None if tenants is None else parse_ids(tenants, "--tenants")
    with Migrator(load_config(config)) as migrator:
        found = migrator.status(ids)
        shared = migrator.status_shared()
        names = {r.id: r.name for r in migrator.tenant_history.revisions()}
        edited = migrator.edited_revisions()
        verified: list[TenantVerification] | None = None
        if verify:
            with Progress("comparing", quiet=as_json) as progress:
                progress.start(len(found))
                verified = migrator.verify(ids, concurrency=concurrency, on_progress=progress.advance)
    pending = Counter(revision for tenant in found for revision in tenant.pending)
    if as_json:
        print_json(
            {
                "shared": _status_json(shared),
                "tenants": [_status_json(tenant) for tenant in found],
                **({} if verified is None else {"verified": [_verified_json(v) for v in verified]}),
                "pending": [{"revision": r, "tenants": pending[r]} for r in names if r in pending],
                "edited": [{"type": e.kind, "revision": e.revision, "name": e.name} for e in edited],
            }
        )
    else:
        render(shared, found, [(names[r], pending[r]) for r in names if r in pending])
        warn_of_edits(edited)
        if verified is not None:
            _render_verified(verified)
    if any(status.problem for status in (shared, *found)) or not all(v.ok for v in verified or ()):
        raise typer.Exit(1)


def _status_json(status: TenantMigrationStatus) -> dict[str, Any]:
    return {
        "tenant": status.tenant,
        "schema": status.schema,
        "revisions": list(status.heads),
        "applied": status.applied,
        "pending": list(status.pending),
        "status": status.state,
        "suspended": status.suspended,
        "problem": status.problem,
    }


def _verified_json(verified: TenantVerification) -> dict[str, Any]:
    return {
        "tenant": verified.tenant,
        "schema": verified.schema,
        "ok": verified.ok,
        "problem": verified.problem,
        "differences": [
            {"kind": d.kind, "name": d.name, "expected": d.expected, "found": d.found}
            for d in verified.differences
        ],
    }


def _render_verified(verified: list[TenantVerification]) -> None:
    from rich.markup import escape

    out = console()
    wrong = [v for v in verified if not v.ok]
    out.print(f"\n{len(verified) - len(wrong)} of {len(verified)} tenants are as the revisions build them.")
    if not wrong:
        return
    rows: list[tuple[str, ...]] = []
    for tenant in wrong:
        if tenant.problem is not None:
            rows.append((escape(tenant.tenant), "[red]unknown[/]", "", "", escape(tenant.problem)))
        for d in tenant.differences:
            there = ("[red]none[/]" if text is None else escape(text) for text in (d.expected, d.found))
            rows.append((escape(tenant.tenant), d.kind, escape(d.name), *there))
    print_table(("Tenant", "What", "Name", "By the revisions", "In the schema"), rows)


def render(
    shared: TenantMigrationStatus, found: list[TenantMigrationStatus], pending: list[tuple[str, int]]
) -> None:
    """The table, and below it what is pending."""
    from rich.markup import escape

    out = console()
    rows = [(escape(tenant.tenant), *_cells(tenant)) for tenant in found]
    if shared.heads or shared.pending or shared.problem:
        rows.insert(0, ("[dim]shared[/]", *_cells(shared)))
    if rows:
        print_table(("Tenant", "Schema", "Revision", "Applied", "Pending", "Status"), rows)
    if shared.pending:
        out.print(f"\n{len(shared.pending)} pending in the shared schema: {', '.join(shared.pending)}")
    if pending:
        out.print("\nPending migrations:")
        for name, count in pending:
            out.print(f"- {escape(name)} ({count} tenant{'s' if count != 1 else ''})")
    if pending or shared.pending:
        flags = " ".join([*(["--shared"] if shared.pending else []), *(["--all"] if pending else [])])
        out.print(f"\nRun [bold]multitenant migrate {flags}[/] to apply them.")
    if not found:
        out.print("There are no tenants yet: multitenant tenant create --id acme")


def _cells(status: TenantMigrationStatus) -> tuple[str, ...]:
    from rich.markup import escape

    state = STYLES[status.state] + (f" {escape(status.problem)}" if status.problem else "")
    suspended = " (suspended)" if status.suspended else ""
    numbers = (str(status.applied), str(len(status.pending)))
    return escape(status.schema), escape(", ".join(status.heads)) or "-", *numbers, state + suspended
