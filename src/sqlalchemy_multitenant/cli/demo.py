"""`multitenant demo`."""

from __future__ import annotations

from .common import reports_errors


@reports_errors
def demo() -> None:
    """Show the whole product at work on an embedded PostgreSQL, in a few seconds."""
    from ..demo import run_demo

    run_demo()
