"""`multitenant query`."""

from __future__ import annotations

import getpass
import json
import re
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import JsonOption, chosen_ids, confirm, console, fail, print_json, reports_errors
from .config_file import ConfigOption, load_config
from .migrate import AllOption, TenantOption, TenantsOption

if TYPE_CHECKING:
    from ..errors import TenantError
    from ..manager import TenantManager


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class WhereStatus(StrEnum):
    """Which tenants are asked."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    ANY = "any"


@reports_errors
def query(  # noqa: PLR0913, PLR0917 - one parameter an option
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One statement; `-` reads it from stdin.")],
    everyone: AllOption = False,
    tenants: TenantsOption = None,
    tenant: TenantOption = None,
    where_status: Annotated[
        WhereStatus | None, typer.Option(help="All tenants of this status. Else: active ones.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How rows are printed.")] = Format.TABLE,
    limit: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="At most so many rows in all.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="How long one tenant may take.")
    ] = 30.0,
    write: Annotated[
        bool, typer.Option("--write", help="Let it change something. Asks first; else it is read-only.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run one statement for many tenants.

    Each tenant sees its own tables, then the shared ones. Without a choice, all active tenants are asked.
    """
    as_json = as_json or form is Format.JSON
    ids = chosen_ids(everyone=everyone, tenants=tenants, tenant=tenant, as_json=as_json)
    if where_status is not None and (everyone or ids is not None):
        fail("choose one of --all, --tenants, --tenant and --where-status", 2, as_json=as_json)
    if write and not everyone and ids is None and where_status is None:
        fail("say who is to be changed: --all, --tenants, --tenant or --where-status", 2, as_json=as_json)
    statement = sys.stdin.read() if sql == "-" else sql
    if not statement.strip():
        fail("there is no statement", 2, as_json=as_json)
    from ..crossschema.all_tenants import for_all_tenants
    from ..crossschema.raw import verbatim
    from ..manager import TenantManager

    status: Any = None if where_status is WhereStatus.ANY else (where_status or WhereStatus.ACTIVE).value
    with TenantManager(load_config(config)) as manager:
        if write and not yes:
            _ask(manager, ids, status, as_json=as_json)
        answers = for_all_tenants(
            manager,
            verbatim(statement),
            errors="return",
            tenants=ids,
            where_status=status,
            limit=limit,
            read_only=not write,
            statement_timeout_s=timeout,
            asked_by=_user(),
        )
        failed = _print(answers, Format.JSON if as_json else form)
    if failed:
        raise typer.Exit(1)


def _ask(manager: TenantManager, ids: list[str] | None, status: str | None, *, as_json: bool) -> None:
    count = len(ids) if ids else sum(status in (None, record.status) for record in manager.list_tenants())
    what = f"This may change {_count(count, 'tenant')}."
    if ids and len(ids) == 1:
        confirm(f"{what} Type the tenant's id to go on", ids[0], "--yes", as_json=as_json)
    else:
        confirm(f"{what} Type the number of tenants to go on", str(count), "--yes", as_json=as_json)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # one without a name, as in many containers
        return None


def _print(answers: Iterable[Any], form: Format) -> bool:
    """Print the rows, and whom it failed for; returns whether it did for any."""
    from ..errors import TenantError

    errors: list[TenantError] = []

    def rows() -> Iterable[Any]:
        for answer in answers:
            if isinstance(answer, TenantError):
                errors.append(answer)
            else:
                yield answer

    if form is Format.CSV:
        _print_csv(rows())
    elif form is Format.JSON:
        found = [dict(zip(_unique(row._fields), row, strict=True)) for row in rows()]
        print_json({"rows": found, "errors": [{"tenant": e.tenant, "message": str(e)} for e in errors]})
    else:
        _print_table(list(rows()))
    if form is not Format.JSON:
        _print_errors(errors)
    return bool(errors)


def _print_csv(rows: Iterable[Any]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    header: tuple[str, ...] = ()
    for row in rows:
        if header != row._fields:
            header = row._fields
            writer.writerow(header)
        writer.writerow(map(_shown, row))
    sys.stdout.flush()


def _print_table(rows: list[Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = console()
    if not rows:
        out.print("No rows.")
        return
    table = Table(*(escape(name) for name in rows[0]._fields))
    for row in rows:
        table.add_row(*("[dim]null[/]" if value is None else escape(_shown(value)) for value in row))
    out.print(table)
    out.print(f"{_count(len(rows), 'row')} of {_count(len({row[0] for row in rows}), 'tenant')}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _shown(value: Any) -> str:
    """A value in a table or a CSV file; documents and arrays as JSON, as PostgreSQL takes them."""
    if isinstance(value, dict | list | bool):
        return json.dumps(value, default=str, ensure_ascii=False)
    return "" if value is None else str(value)


def _unique(names: Iterable[str]) -> list[str]:
    """The names of columns, each once."""
    unique: list[str] = []
    for name in names:
        known = sum(1 for other in unique if other == name or re.fullmatch(rf"{re.escape(name)}_\d+", other))
        unique.append(f"{name}_{known + 1}" if name in unique else name)
    return unique


def _print_errors(errors: list[TenantError]) -> None:
    from rich.markup import escape

    err = console(stderr=True)
    for error in errors:
        err.print(f"[bold red]error:[/] {escape(str(error))}")
