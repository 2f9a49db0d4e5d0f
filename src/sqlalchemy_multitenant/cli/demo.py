"""`multitenant demo`."""

from __future__ import annotations

from .common import JsonOption, print_json, reports_errors


@reports_errors
def demo(as_json: JsonOption = False) -> None:
    """Show the product at work on an embedded PostgreSQL, in seconds."""
    import io

    from rich.console import Console

    from ..demo import run_demo

    if not as_json:
        run_demo(Console(highlight=False))
        return
    shown = Console(file=io.StringIO(), highlight=False, width=110)
    run_demo(shown)
    print_json({"shown": shown.file.getvalue().splitlines()})  # type: ignore[attr-defined]
