"""Finding the file that the configuration is in, and loading it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError

if TYPE_CHECKING:
    from .config import TenantConfig


def load_config(where: str | None, *, origin: str = "--config", folder: Path | None = None) -> TenantConfig:
    """The configuration that is named; or else by `$MULTITENANT_CONFIG`, by `[tool.multitenant]` in
    pyproject.toml, or by `./tenant_config.py`.

    Args:
        where: a file or a module, and perhaps `:attribute`; None for the defaults.
        origin: who names it, for errors.
        folder: where to look; by default the working folder.

    Raises:
        ConfigurationError: there is none, or it cannot be loaded.
    """
    from .config import TenantConfig  # brings SQLAlchemy, which `--help` needs not

    folder = Path.cwd() if folder is None else folder
    origin, reference = (origin, where) if where else _reference(origin, folder)
    place, _, attribute = reference.rpartition(":") if _has_attribute(reference) else (reference, "", "")
    attribute = attribute or "config"
    module = _import(origin, place, folder)
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
    base = Path(file).resolve().parent if file and _is_file(place) else folder
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


def _reference(origin: str, folder: Path) -> tuple[str, str]:
    if value := os.environ.get("MULTITENANT_CONFIG"):
        return "$MULTITENANT_CONFIG", value
    pyproject = folder / "pyproject.toml"
    if pyproject.is_file():
        try:
            settings = tomllib.loads(pyproject.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError("pyproject.toml", pyproject.name, f"not valid TOML: {error}") from error
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
    if (folder / "tenant_config.py").is_file():
        return "./tenant_config.py", "tenant_config.py"
    raise ConfigurationError(
        origin, None, f"no configuration found: run `multitenant init` to make one, or name it with {origin}"
    )


def _import(origin: str, place: str, folder: Path) -> Any:
    is_file = _is_file(place)
    path = (folder / place).resolve()
    if is_file and not path.is_file():
        raise ConfigurationError(origin, place, f"there is no such file as {path}")
    # The configuration imports the application's models, as the application itself does.
    sys.path.insert(0, str(path.parent) if is_file else str(folder))
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
