"""`multitenant query`."""

from __future__ import annotations

import getpass
import json
import math
import re
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config_file import load_config
from .common import ConfigOption, JsonOption, chosen_ids, confirm, console, fail, print_json, reports_errors
from .migrate import AllOption, TenantOption, TenantsOption

if TYPE_CHECKING:
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
        float,
        typer.Option(min=0.001, metavar="SECONDS", help="How long the server may work without an answer."),
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
    if as_json and form is Format.CSV:
        fail("choose one of --json and --format csv", 2, as_json=True)
    ids = chosen_ids(everyone=everyone, tenants=tenants, tenant=tenant, as_json=as_json)
    if where_status is not None and (everyone or ids is not None):
        fail("choose one of --all, --tenants, --tenant and --where-status", 2, as_json=as_json)
    if write and not everyone and ids is None and where_status is None:
        fail("say who is to be changed: --all, --tenants, --tenant or --where-status", 2, as_json=as_json)
    if write and limit is not None:
        fail("--limit is for reading: with --write, each tenant is changed", 2, as_json=as_json)
    statement = _read_statement(sql, as_json=as_json)
    from ..crossschema.all_tenants import for_all_tenants
    from ..crossschema.raw import verbatim
    from ..manager import TenantManager

    status: Any = None if where_status is WhereStatus.ANY else (where_status or WhereStatus.ACTIVE).value
    with TenantManager(load_config(config)) as manager:
        if write and not yes:
            ids = _ask(manager, ids, status, as_json=as_json)
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


def _read_statement(sql: str, *, as_json: bool) -> str:
    from ..isolation.sqltext import code_only, split_statements

    statement = sys.stdin.read().removeprefix("\ufeff") if sql == "-" else sql
    statements = split_statements(statement)
    if not statements:
        fail("there is no statement", 2, as_json=as_json)
    if len(statements) > 1:
        fail(f"one statement at a time; here are {len(statements)}", 2, as_json=as_json)
    if re.match(r"\s*copy\b", code_only(statement), re.IGNORECASE):
        fail("COPY cannot be used here: SELECT, and --format csv", 2, as_json=as_json)
    return statement


def _ask(manager: TenantManager, ids: list[str] | None, status: str | None, *, as_json: bool) -> list[str]:
    """Ask whether to change tenants; returns those that were shown."""
    known = [record.id for record in manager.list_tenants() if status in (None, record.status)]
    chosen = [tenant for tenant in ids if tenant in known] if ids else list(known)
    what = f"This may change {_count(len(chosen), 'tenant')}."
    if len(chosen) == 1:
        confirm(f"{what} Type the tenant's id to go on", chosen[0], "--yes", as_json=as_json)
    else:
        confirm(f"{what} Type the number of tenants to go on", str(len(chosen)), "--yes", as_json=as_json)
    return ids or list(chosen)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # one without a name, as in many containers
        return None


def _print(answers: Iterable[Any], form: Format) -> bool:
    """Print the rows, and whom it failed for; returns whether it did for any."""
    from ..errors import TenantError

    errors: list[tuple[str, str]] = []

    def rows() -> Iterable[Any]:
        for answer in answers:
            if isinstance(answer, TenantError):
                errors.append((answer.tenant, str(answer)))
            else:
                yield answer

    if form is Format.CSV:
        _print_csv(rows(), errors)
    elif form is Format.JSON:
        found = [dict(zip(_unique(row._fields), map(_json, row), strict=True)) for row in rows()]
        print_json({"rows": found, "errors": [{"tenant": t, "message": message} for t, message in errors]})
    else:
        _print_table(rows())
    if form is not Format.JSON:
        _print_errors(errors)
    return bool(errors)


def _print_csv(rows: Iterable[Any], errors: list[tuple[str, str]]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    header: list[str] = []
    for row in rows:
        names = _unique(row._fields)
        if not header:
            header = names
            writer.writerow(header)
        if set(names) == set(header):
            values = dict(zip(names, row, strict=True))
            writer.writerow(_shown(values[name]) for name in header)
        elif all(row[0] != tenant for tenant, _ in errors):
            errors.append((row[0], f"tenant {row[0]!r}: other columns than before: {', '.join(names[1:])}"))
    sys.stdout.flush()


def _print_table(rows: Iterable[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    found: list[dict[str, Any]] = []
    try:
        found.extend(dict(zip(_unique(row._fields), row, strict=True)) for row in rows)
    finally:
        # Also after Ctrl-C: what was changed by then is to be known.
        names = list(dict.fromkeys(name for row in found for name in row))
        table = Table()
        for name in names:
            table.add_column(Text(_visible(name)))
        for row in found:
            cells = [row.get(name, "") for name in names]
            table.add_row(
                *(Text("null", "dim") if value is None else Text(_visible(_shown(value))) for value in cells)
            )
        out.print(table if found else "No rows.")
    if found:
        out.print(f"{_count(len(found), 'row')} of {_count(len({row['tenant'] for row in found}), 'tenant')}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _shown(value: Any) -> str:
    """A value in a table or a CSV file; documents and arrays as JSON, bytes as PostgreSQL writes them."""
    if isinstance(value, dict | list | bool):
        return json.dumps(_json(value), default=str, ensure_ascii=False)
    if isinstance(value, bytes | memoryview):
        return f"\\x{bytes(value).hex()}"
    return "" if value is None else str(value)


def _json(value: Any) -> Any:
    """A value in a document: JSON has neither bytes nor infinite numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bytes | memoryview):
        return _shown(value)
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return {key: _json(item) for key, item in value.items()} if isinstance(value, dict) else value


def _visible(text: str) -> str:
    """Control characters as escapes: what tenants have written must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _unique(names: Iterable[str]) -> list[str]:
    """The names of columns, each once."""
    unique: list[str] = []
    for name in names:
        known = sum(1 for other in unique if other == name or re.fullmatch(rf"{re.escape(name)}_\d+", other))
        unique.append(f"{name}_{known + 1}" if name in unique else name)
    return unique


def _print_errors(errors: list[tuple[str, str]]) -> None:
    from rich.markup import escape

    err = console(stderr=True)
    for _, message in errors:
        err.print(f"[bold red]error:[/] {escape(_visible(message))}")
