"""`multitenant spares`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..config_file import load_config
from .common import ConfigOption, JsonOption, console, print_json, reports_errors


@reports_errors
def spares(
    keep: Annotated[int, typer.Option(min=0, metavar="N", help="How many there are to be.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make schemas ahead: a tenant is then created in milliseconds.

    For a job of its own: every few minutes, and after each deployment.
    """
    from ..manager import TenantManager

    with TenantManager(load_config(config)) as manager:
        stock = manager.keep_spares(keep)
    if as_json:
        print_json({"ready": stock.ready, "made": stock.made, "discarded": stock.discarded})
        return
    console().print(
        f"[green]{stock.ready} ready[/]: {stock.made} made now, {stock.discarded} too many or too old"
    )
