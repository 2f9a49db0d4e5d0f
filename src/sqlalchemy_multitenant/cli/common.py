"""What the commands share: finding the configuration, printing, and reporting errors."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec

import typer

from ..errors import ConfigurationError, InvalidTenantIdError, MultitenantError

if TYPE_CHECKING:
    from rich.console import Console

    from ..config import TenantConfig

P = ParamSpec("P")

ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE_OR_MODULE[:ATTR]",
        help="Where the TenantConfig is. Else $MULTITENANT_CONFIG, \\[tool.multitenant] in pyproject.toml, "
        "or ./tenant_config.py.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


PIPED_WIDTH = 4096
"""Of tables that a program reads."""

_KINDS = {1: "Failed", 2: "UsageError"}


def console(*, stderr: bool = False) -> Console:
    """A Rich console that neither wraps nor cuts anything where no terminal reads it."""
    from rich.console import Console

    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, soft_wrap=piped, width=PIPED_WIDTH if piped else None)


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
        as_json = bool(kwargs.get("as_json"))
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


def load_config(where: str | None) -> TenantConfig:
    """The configuration that `--config` or its defaults name.

    Raises:
        ConfigurationError: there is none, or it cannot be loaded.
    """
    from ..config import TenantConfig

    origin, reference = _reference(where)
    place, _, attribute = reference.rpartition(":") if _has_attribute(reference) else (reference, "", "")
    attribute = attribute or "config"
    module = _import(origin, place)
    try:
        found = getattr(module, attribute)
    except AttributeError as error:
        raise ConfigurationError(origin, reference, f"{place} has no attribute {attribute!r}") from error
    if not isinstance(found, TenantConfig):
        raise ConfigurationError(
            origin, reference, f"{attribute!r} is a {type(found).__name__}, not a TenantConfig"
        )
    # Relative to the configuration, not to wherever the command happens to run.
    file = getattr(module, "__file__", None)
    base = Path(file).resolve().parent if file and _is_file(place) else Path.cwd()
    settings = found.migrations
    return replace(
        found,
        migrations=replace(
            settings, tenant_dir=base / settings.tenant_dir, shared_dir=base / settings.shared_dir
        ),
    )


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _has_attribute(reference: str) -> bool:
    # `C:\project\tenant_config.py` has a colon as well, but no name after it.
    return reference.rpartition(":")[2].isidentifier() and ":" in reference


def _reference(where: str | None) -> tuple[str, str]:
    if where:
        return "--config", where
    if value := os.environ.get("MULTITENANT_CONFIG"):
        return "$MULTITENANT_CONFIG", value
    pyproject = Path("pyproject.toml")
    if pyproject.is_file():
        try:
            settings = tomllib.loads(pyproject.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError("pyproject.toml", str(pyproject), f"not valid TOML: {error}") from error
        tools = settings.get("tool", {})
        section = tools.get("multitenant", {}) if isinstance(tools, dict) else tools
        if not isinstance(section, dict):
            raise ConfigurationError(
                "tool.multitenant", section, 'a table: [tool.multitenant] config = "..."'
            )
        if unknown := sorted(section.keys() - {"config"}):
            raise ConfigurationError("tool.multitenant", ", ".join(unknown), "there is `config` alone")
        value = section.get("config")
        if value:
            return "tool.multitenant.config", str(value)
    if Path("tenant_config.py").is_file():
        return "./tenant_config.py", "tenant_config.py"
    raise ConfigurationError(
        "--config",
        None,
        "no configuration found: run `multitenant init` to make one, or name it with --config",
    )


def _import(origin: str, place: str) -> Any:
    is_file = _is_file(place)
    path = Path(place).resolve()
    if is_file and not path.is_file():
        raise ConfigurationError(origin, place, f"there is no such file as {path}")
    # The configuration imports the application's models, as the application itself does.
    sys.path.insert(0, str(path.parent) if is_file else str(Path.cwd()))
    try:
        return _import_file(path) if is_file else importlib.import_module(place)
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            origin, place, f"it cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def _import_file(path: Path) -> Any:
    """Import exactly this file, even where its name is that of another module."""
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    name = path.stem if loaded is None else f"_multitenant_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


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
