"""`multitenant lint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config_file import load_config
from .common import ConfigOption, JsonOption, console, fail, print_json, reports_errors, warn


@reports_errors
def lint(
    kind: Annotated[
        str | None, typer.Option("--type", metavar="tenant|shared", help="Only these revisions.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Only those after this one; needs --type.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find what may do harm in the revisions. Needs no database."""
    if kind not in (None, "tenant", "shared"):
        fail(f"--type {kind}: use 'tenant' or 'shared'", 2, as_json=as_json)
    if since is not None and kind is None:
        fail("--since names a revision of one history: add --type tenant or shared", 2, as_json=as_json)
    from rich.markup import escape

    from ..migrations import lint as linter
    from ..migrations.squawk import find_squawk

    loaded = load_config(config)
    kinds = ("shared", "tenant") if kind is None else (kind,)
    found = [f for k in kinds for f in linter.lint(loaded, k, since=since)]  # type: ignore[arg-type]
    if find_squawk() is None:
        warn("rules for tenants alone: pip install 'sqlalchemy-multitenant[lint]' adds those of squawk")
    if as_json:
        print_json(
            [
                {"file": str(f.file), "line": f.line, "rule": f.rule, "message": f.message, "help": f.help}
                for f in found
            ]
        )
    else:
        out = console()
        for finding in found:
            place = f"{_relative(finding.file)}:{finding.line}" if finding.line else _relative(finding.file)
            out.print(f"{escape(place)}: [yellow]{finding.rule}[/] {escape(finding.message)}")
            if finding.help:
                out.print(f"    {escape(finding.help)}")
        out.print("[green]Nothing found.[/]" if not found else f"{len(found)} found.")
    if found:
        raise typer.Exit(1)


def _relative(file: Path) -> str:
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)
