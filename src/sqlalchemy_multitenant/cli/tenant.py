"""`multitenant tenant create | adopt | list | drop | suspend | activate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config_file import load_config
from ..errors import ConfigurationError
from .common import (
    INTERRUPTED,
    ConfigOption,
    JsonOption,
    confirm,
    console,
    fail,
    print_json,
    print_table,
    reports_errors,
)

if TYPE_CHECKING:
    from ..catalog.records import TenantRecord

app = typer.Typer(help="Create, adopt, list, suspend, activate and drop tenants.", no_args_is_help=True)

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
    tenant: Annotated[str | None, typer.Option("--id", metavar="ID", help="The tenant's id.")] = None,
    ids_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Create all that a file lists, an id a line; `-` for stdin."),
    ] = None,
    schema: Annotated[
        str | None, typer.Option(help="The name of its schema, instead of the configured one.")
    ] = None,
    seed: Annotated[
        Path | None, typer.Option(metavar="FILE.sql", help="Run this file in each new tenant.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="How many tenants at one time.")] = 4,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a tenant, or many, at the newest revision."""
    if tenant is not None and ids_file is not None:
        fail("choose one of --id and --ids-file", 2, as_json=as_json)
    if tenant is None and ids_file is None:
        fail("say whom to create: --id acme, or --ids-file FILE", 2, as_json=as_json)
    if tenant is None and schema is not None:
        fail("--schema names the schema of one tenant: add --id", 2, as_json=as_json)
    from rich.markup import escape

    from ..manager import TenantManager

    if tenant is None:
        _create_many(_read_ids(str(ids_file)), seed, concurrency, config, as_json=as_json)
        return
    with TenantManager(load_config(config)) as manager:
        record = manager.create_tenant(tenant, schema=schema, seed=seed)
    if as_json:
        print_json(record_json(record))
        return
    console().print(f"[green]created[/] tenant {record.id} in schema {escape(str(record.schema))}")


def _read_ids(file: str) -> list[str]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("--ids-file", file, f"it cannot be read: {error}") from error
    lines = (line.partition("#")[0].strip() for line in text.removeprefix("\ufeff").splitlines())
    ids = [line for line in lines if line]
    if not ids:
        raise ConfigurationError("--ids-file", file, "there is no id in it; write one a line")
    return ids


def _create_many(
    ids: list[str], seed: Path | None, concurrency: int, config: str | None, *, as_json: bool
) -> None:
    from rich.markup import escape

    from ..manager import TenantManager
    from .progress import Progress

    with TenantManager(load_config(config)) as manager, Progress("creating", quiet=as_json) as progress:
        progress.start(len(set(ids)))
        try:
            report = manager.create_tenants(
                ids,
                concurrency=concurrency,
                seed=seed,
                on_progress=lambda tenant, error: progress.advance(tenant, failed=error is not None),
            )
        except KeyboardInterrupt:
            there = f"at least {progress.succeeded} of {len(set(ids))} are there"
            message = f"{INTERRUPTED}: {there}, and the same command creates the others"
            fail(message, 130, as_json=as_json, kind="Interrupted")
    if as_json:
        print_json(
            {
                "created": [record_json(record) for record in report.created],
                "existing": list(report.existing),
                "failed": [{"tenant": t, "error": str(e)} for t, e in report.failures.items()],
            }
        )
    else:
        out = console()
        out.print(
            f"[green]{len(report.created)} created[/], {len(report.existing)} there already, "
            f"{len(report.failures)} failed"
        )
        for tenant, error in report.failures.items():
            out.print(f"[red]failed[/] {tenant}: {escape(str(error))}")
    if report.failures:
        raise typer.Exit(1)


@app.command()
@reports_errors
def adopt(
    tenant: IdOption,
    schema: Annotated[
        str | None, typer.Option(help="The schema, where it is not the one of the configured mapping.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an existing schema a tenant's. Changes nothing in it."""
    from rich.markup import escape

    from ..manager import TenantManager

    with TenantManager(load_config(config)) as manager:
        record = manager.adopt_tenant(tenant, schema=schema)
    if as_json:
        print_json(record_json(record))
        return
    console().print(f"[green]adopted[/] schema {escape(str(record.schema))} as tenant {record.id}")


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
    rows = []
    for record in records:
        created = record.created_at.strftime("%Y-%m-%d %H:%M") if record.created_at else "-"
        rows.append((escape(record.id), record.status.value, escape(str(record.schema)), created))
    print_table(("Tenant", "Status", "Schema", "Created"), rows)


@app.command()
@reports_errors
def drop(
    tenant: IdOption,
    force: Annotated[bool, typer.Option("--force", help="Do not ask.")] = False,
    archive: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all that it has into a new file first, for pg_restore."),
    ] = None,
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
        manager.drop_tenant(tenant, archive=archive)
    if as_json:
        archived = {} if archive is None else {"archive": str(archive)}
        print_json({"dropped": record.id, **archived})
        return
    if archive is not None:
        console().print(
            f"[green]archived[/] in {escape(str(archive))}: pg_restore -d DATABASE brings its schema back, "
            f"and multitenant tenant adopt --id {record.id} the tenant"
        )
    console().print(f"[green]dropped[/] tenant {record.id} and schema {escape(str(record.schema))}")


@app.command()
@reports_errors
def suspend(tenant: IdOption, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Refuse everything for a tenant, in all processes."""
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
