"""`multitenant tenant create | list | drop | suspend | activate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import JsonOption, confirm, console, print_json, reports_errors
from .config_file import ConfigOption, load_config

if TYPE_CHECKING:
    from ..catalog.records import TenantRecord

app = typer.Typer(help="Create, list, suspend, activate and drop tenants.", no_args_is_help=True)

IdOption = Annotated[str, typer.Option("--id", metavar="ID", help="The tenant's id.")]


def record_json(record: TenantRecord) -> dict[str, Any]:
    """A tenant's record for programs."""
    return {
        "tenant": record.id,
        "status": record.status.value,
        "schema": record.schema,
        "metadata": dict(record.metadata),
        "created_at": record.created_at.isoformat() if record.created_at else None,
    }


@app.command()
@reports_errors
def create(
    tenant: IdOption,
    schema: Annotated[
        str | None, typer.Option(help="The name of its schema, instead of the configured one.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a tenant, with its schema at the newest revision."""
    from rich.markup import escape

    from ..manager import TenantManager

    with TenantManager(load_config(config)) as manager:
        record = manager.create_tenant(tenant, schema=schema)
    if as_json:
        print_json(record_json(record))
        return
    console().print(f"[green]created[/] tenant {record.id} in schema {escape(str(record.schema))}")


@app.command("list")
@reports_errors
def list_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List all tenants."""
    from rich.markup import escape

    from ..manager import TenantManager

    with TenantManager(load_config(config)) as manager:
        records = manager.list_tenants()
    if as_json:
        print_json([record_json(r) for r in records])
        return
    if not records:
        console().print("There are no tenants yet: multitenant tenant create --id acme")
        return
    from rich.table import Table

    table = Table("Tenant", "Status", "Schema", "Created")
    for record in records:
        created = record.created_at.strftime("%Y-%m-%d %H:%M") if record.created_at else "-"
        table.add_row(record.id, record.status.value, escape(str(record.schema)), created)
    console().print(table)


@app.command()
@reports_errors
def drop(
    tenant: IdOption,
    force: Annotated[bool, typer.Option("--force", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop a tenant with all its data. Asks first."""
    from rich.markup import escape

    from ..manager import TenantManager

    with TenantManager(load_config(config)) as manager:
        record = manager.get_tenant(tenant)
        if not force:
            confirm(
                f"This drops schema {record.schema} with all its data. Type the tenant's id to go on",
                record.id,
                "--force",
                as_json=as_json,
            )
        manager.drop_tenant(tenant)
    if as_json:
        print_json({"dropped": record.id})
        return
    console().print(f"[green]dropped[/] tenant {record.id} and schema {escape(str(record.schema))}")


@app.command()
@reports_errors
def suspend(tenant: IdOption, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Refuse everything for a tenant, in all processes, until it is activated."""
    _set_status(tenant, "suspended", config, as_json)


@app.command()
@reports_errors
def activate(tenant: IdOption, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Let a suspended tenant work again."""
    _set_status(tenant, "active", config, as_json)


def _set_status(tenant: str, status: str, config: str | None, as_json: bool) -> None:
    from ..manager import TenantManager

    with TenantManager(load_config(config)) as manager:
        manager.set_tenant_status(tenant, status)
    if as_json:
        print_json({"tenant": tenant, "status": status})
        return
    console().print(f"tenant {tenant} is [bold]{status}[/]")
