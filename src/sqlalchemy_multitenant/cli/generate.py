"""`multitenant generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..config_file import load_config
from .common import ConfigOption, JsonOption, console, fail, print_json, reports_errors, warn


@reports_errors
def generate(
    name: Annotated[str, typer.Option("--name", "-n", help="What the revision is about: add-user-avatar.")],
    kind: Annotated[
        str | None, typer.Option("--type", metavar="tenant|shared", help="Compare these models alone.")
    ] = None,
    sql: Annotated[
        bool,
        typer.Option("--sql", help="Write an empty revision for SQL (the tenants', without --type)."),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a revision for what has changed in the models. Touches no tenant."""
    if not name.strip():
        fail("--name is empty: say what the revision is about, as in add-user-avatar", 2, as_json=as_json)
    if kind not in (None, "tenant", "shared"):
        fail(f"--type {kind}: use 'tenant' or 'shared'", 2, as_json=as_json)
    from rich.markup import escape

    from ..migrations.migrator import Migrator

    with Migrator(load_config(config)) as migrator:
        written = (
            [migrator.generate_sql(name, kind or "tenant")]  # type: ignore[arg-type]
            if sql
            else migrator.generate(name, kind)  # type: ignore[arg-type]
        )
    if as_json:
        print_json(
            [
                {
                    "type": r.kind,
                    "revision": r.revision,
                    "path": str(r.path),
                    "changes": list(r.changes),
                    "warnings": list(r.warnings),
                }
                for r in written
            ]
        )
        return
    out = console()
    if not written:
        out.print("No changes found; nothing was written.")
    for revision in written:
        out.print(f"[green]wrote[/] {escape(str(revision.path))}")
        for change in revision.changes:
            out.print(f"      {escape(change)}")
        for warning in revision.warnings:
            warn(warning)
