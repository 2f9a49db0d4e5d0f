"""What the commands share: printing, asking, and reporting errors."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec

import typer

from ..errors import ConfigurationError, InvalidTenantIdError, MultitenantError

if TYPE_CHECKING:
    from rich.console import Console


P = ParamSpec("P")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE_OR_MODULE[:ATTR]",
        help="Where the TenantConfig is. Else $MULTITENANT_CONFIG, [tool.multitenant] in pyproject.toml, "
        "or ./tenant_config.py.",
        show_default=False,
    ),
]

PIPED_WIDTH = 4096
"""Of tables that a program reads."""

_KINDS = {1: "Failed", 2: "UsageError"}


def console(*, stderr: bool = False) -> Console:
    """A Rich console that neither wraps nor cuts anything where no terminal reads it."""
    from rich.console import Console

    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, soft_wrap=piped, width=PIPED_WIDTH if piped else None)


LONG_TABLE = 200
"""From how many rows on a table has no borders: Rich takes a millisecond for each row."""


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of cells with Rich's markup; the first column tells its rows apart."""
    if len(rows) <= LONG_TABLE:
        from rich.table import Table

        table = Table(*headers)
        for row in rows:
            table.add_row(*row)
        console().print(table)
        return
    from rich.cells import cell_len

    lines = [tuple(headers), *(tuple(map(_plain, row)) for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


@functools.lru_cache(maxsize=100)
def _rendered(markup: str) -> str:
    from rich.markup import render

    return render(markup).plain


def _plain(cell: str) -> str:
    return _rendered(cell) if "[" in cell or "\\" in cell else cell


def print_json(document: Any) -> None:
    """The one JSON document of a command."""
    out = sys.__stdout__ or sys.stdout
    out.write(json.dumps(document, default=str, indent=2) + "\n")
    out.flush()


def fail(message: str, code: int, *, as_json: bool = False, kind: str | None = None) -> NoReturn:
    """Report an error and end."""
    if as_json:
        print_json({"error": kind or _KINDS[code], "message": message})
    else:
        from rich.markup import escape

        console(stderr=True).print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(code)


def warn(message: str) -> None:
    """Say something on stderr."""
    from rich.markup import escape

    console(stderr=True).print(f"[yellow]note:[/] {escape(message)}")


INTERRUPTED = "interrupted; what was begun is finished or undone"


def _was_interrupted(error: BaseException) -> bool:
    """Whether an error is but what came of Ctrl-C: a driver that puts its connection right meets others."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Make the package's errors, and the database's, messages with an exit code."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json")) or kwargs.get("form") == "json"
        # Whatever the configuration or a revision prints must not get into the document.
        elsewhere = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        try:
            with elsewhere:
                command(*args, **kwargs)
        except (ConfigurationError, InvalidTenantIdError) as error:
            fail(str(error), 2, as_json=as_json, kind=type(error).__name__)
        except MultitenantError as error:
            if _was_interrupted(error):
                fail(INTERRUPTED, 130, as_json=as_json, kind="Interrupted")
            fail(str(error), 1, as_json=as_json, kind=type(error).__name__)
        except KeyboardInterrupt:
            fail(INTERRUPTED, 130, as_json=as_json, kind="Interrupted")
        except BrokenPipeError:
            raise
        except OSError as error:
            fail(str(error), 1, as_json=as_json, kind=type(error).__name__)
        except Exception as error:
            if _was_interrupted(error):
                fail(INTERRUPTED, 130, as_json=as_json, kind="Interrupted")
            if not type(error).__module__.startswith("sqlalchemy"):
                raise
            text = str(getattr(error, "orig", None) or error).strip()
            fail(f"the database said: {text}", 1, as_json=as_json, kind=type(error).__name__)

    return wrapper


def parse_ids(values: str, option: str) -> list[str]:
    """Comma-separated ids, each once.

    Raises:
        ConfigurationError: there is none.
    """
    ids = list(dict.fromkeys(part.strip() for part in values.split(",") if part.strip()))
    if not ids:
        raise ConfigurationError(option, values, "name at least one tenant, as in --tenants a,b,c")
    return ids


def chosen_ids(*, everyone: bool, tenants: str | None, tenant: str | None, as_json: bool) -> list[str] | None:
    """The ids that `--tenants` or `--tenant` name; None for all, or for none of the options."""
    if sum([everyone, tenants is not None, tenant is not None]) > 1:
        fail("choose one of --all, --tenants and --tenant", 2, as_json=as_json)
    if tenants is not None:
        return parse_ids(tenants, "--tenants")
    return None if tenant is None else [tenant]


def parse_canary(value: str | None) -> int | list[str] | None:
    """`--canary 5` or `--canary a,b`.

    Raises:
        ConfigurationError: neither.
    """
    if value is None:
        return None
    return int(value) if value.isdecimal() else parse_ids(value, "--canary")


def confirm(question: str, answer: str, flag: str, *, as_json: bool) -> None:
    """Ask on stderr; end where something else than `answer` is typed. `flag` is what spares the question."""
    if as_json:
        fail(f"nobody can be asked here: add {flag}", 2, as_json=as_json)
    try:
        typed = typer.prompt(question, err=True)
    except typer.Abort:
        sys.stderr.write("\n")
        if sys.stdin.isatty():
            raise KeyboardInterrupt from None
        fail(f"nobody answers: add {flag}", 2)
    if typed != answer:
        fail(f"{typed!r} is not {answer!r}; nothing was changed", 1)
