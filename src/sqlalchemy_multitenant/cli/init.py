"""`multitenant init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import JsonOption, console, print_json, reports_errors


@reports_errors
def init(
    directory: Annotated[Path, typer.Argument(help="The project's folder.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Scaffold a project: its configuration, models and migrations.

    Writes tenant_config.py, models.py and the folders for revisions; overwrites nothing.
    """
    from rich.markup import escape

    from ..migrations.scaffold import scaffold

    written, kept = scaffold(directory)
    if as_json:
        print_json({"written": [str(p) for p in written], "kept": [str(p) for p in kept]})
        return
    out = console()
    for path in written:
        out.print(f"[green]wrote[/] {escape(str(path))}")
    for path in kept:
        out.print(f"[yellow]kept [/] {escape(str(path))} (it was there already)")
    out.print(
        "\nNext: [bold]multitenant generate --name first[/], then [bold]multitenant migrate --shared[/]"
    )
    out.print("and [bold]multitenant tenant create --id acme[/].")
