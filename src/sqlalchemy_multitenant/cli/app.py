"""Puts the commands together, and turns errors into messages and exit codes.

Exit codes: 0 done, 1 something failed, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import typer

from . import demo, generate, init, lint, migrate, query, rollback, runs, spares, status, tenant
from .common import print_json

app = typer.Typer(
    name="multitenant",
    help="Multi-tenancy for SQLAlchemy and PostgreSQL: tenants, and migrations over all of them. "
    "Exits with 0 when done, 1 when something failed, 2 on wrong usage, 130 on Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Help in plain text: Rich's takes as long to load as all the rest of it.
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("sqlalchemy-multitenant"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version


app.command("init")(init.init)
app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
app.command("migrate")(migrate.migrate)
app.command("status")(status.status)
app.command("rollback")(rollback.rollback)
app.command("lint")(lint.lint)
app.command("query")(query.query)
app.command("spares")(spares.spares)
app.add_typer(runs.app, name="runs")
app.add_typer(tenant.app, name="tenant")


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    # A process started in the background by a shell ignores SIGINT; a deploy script's Ctrl-C must count.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _open_standard_streams()
    try:
        return _run_json(arguments) if _wants_json(arguments) else _run_text(arguments)
    except BrokenPipeError:
        # The reader (head, less) went away; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        # Where the output goes is full, say; the message of the error could not be written there, either.
        sys.stderr.write(f"error: {error}\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _wants_json(arguments: Sequence[str]) -> bool:
    given = set(arguments)
    return bool(given & {"--json", "--format=json"}) or ("--format", "json") in pairwise(arguments)


def _open_standard_streams() -> None:
    """Started with `>&-` or `<&-`, Python has None where everybody expects a stream."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115, PTH123 - for good
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _run_text(arguments: Sequence[str]) -> int:
    try:
        app(list(arguments), prog_name="multitenant")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def _run_json(arguments: Sequence[str]) -> int:
    """As text, but wrong usage is a JSON document, too."""
    try:
        code = app(list(arguments), prog_name="multitenant", standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Exception as error:
        # Typer's own errors; their class moved from one version of it to the next.
        code, message = getattr(error, "exit_code", None), getattr(error, "format_message", None)
        if code is None or message is None:
            raise
        print_json({"error": type(error).__name__, "message": message()})
        return int(code)
    return code if isinstance(code, int) else 0
