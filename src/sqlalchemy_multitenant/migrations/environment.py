"""An existing project's `env.py`: run for what it sets up (imports, operations, options), with nothing behind
it that reaches a database."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast
from unittest import mock

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

from ..errors import MigrationError

GENERATE_OPTIONS = (
    "alembic_module_prefix",
    "autogenerate_plugins",
    "compare_server_default",
    "compare_type",
    "include_object",
    "process_revision_directives",
    "render_item",
    "sqlalchemy_module_prefix",
    "user_module_prefix",
)
"""What of an env.py's options counts when a revision is generated, besides `include_name`."""

_COUNTS = {*GENERATE_OPTIONS, "include_name", "version_table"}


class _Recorder(EnvironmentContext):
    """Takes `context.configure(...)` down, and runs no migrations."""

    recorded: dict[str, Any]
    offline: bool

    def is_offline_mode(self) -> bool:
        return self.offline

    def configure(self, *_: Any, **options: Any) -> None:
        self.recorded |= options

    def begin_transaction(self) -> Any:
        return nullcontext()

    def run_migrations(self, **_: Any) -> None:
        pass

    def get_context(self) -> Any:
        raise MigrationError("it asks for the context, and there is none while its options are read")


class _Nothing:
    """Stands for engines and connections, sync and async: whatever is done with it gives it again."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def __await__(self) -> Any:
        yield from ()
        return self

    async def run_sync(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        return fn(self, *args, **kwargs)


_ENGINE_MAKERS = (
    "sqlalchemy.create_engine",
    "sqlalchemy.engine_from_config",
    "sqlalchemy.engine.create_engine",
    "sqlalchemy.engine.engine_from_config",
    "sqlalchemy.ext.asyncio.async_engine_from_config",
    "sqlalchemy.ext.asyncio.create_async_engine",
    "sqlmodel.create_engine",
)


@contextmanager
def _nothing_behind() -> Iterator[None]:
    """No engine that is made connects, and no logging is set up."""
    with ExitStack() as stack:
        for name in _ENGINE_MAKERS:
            module, _, function = name.rpartition(".")
            if module in sys.modules:
                stack.enter_context(mock.patch.object(sys.modules[module], function, _Nothing()))
        stack.enter_context(mock.patch("logging.config.fileConfig", _Nothing()))
        yield


def _run(config: Config, script: ScriptDirectory, *, offline: bool) -> dict[str, Any]:
    with _nothing_behind(), EnvironmentContext(config, script, as_sql=offline) as environment:
        # Exchanged on the object: `alembic.context` speaks for objects of exactly Alembic's class alone.
        environment.__class__ = _Recorder
        recorder = cast("_Recorder", environment)
        recorder.recorded, recorder.offline = {}, offline
        try:
            script.run_env()
        except SystemExit as end:
            raise MigrationError(f"it exits: {end}") from end
        finally:
            environment.__class__ = EnvironmentContext
        return recorder.recorded


def _keywords(path: Path) -> set[str]:
    """The keywords of all calls of `configure` in the file."""
    calls = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    return {
        keyword.arg
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "configure"
        for keyword in call.keywords
        if keyword.arg
    }


def read_environment(config: Config, script: ScriptDirectory, version_table: str) -> Mapping[str, Any]:
    """The keywords that an `env.py` beside the revisions gives to `context.configure()`, offline and online;
    none where there is no such file. Needs Alembic's lock.

    Raises:
        MigrationError: it fails, or has another version table than the configuration.
    """
    path = Path(script.env_py_location)
    if not path.is_file():
        return {}
    if config.get_main_option("sqlalchemy.url") is None:
        config.set_main_option("sqlalchemy.url", "postgresql://")  # to nowhere: for who only looks at it
    recorded: dict[str, Any] = {}
    errors: list[Exception] = []
    for offline in (True, False):
        try:
            recorded |= _run(config, script, offline=offline)
        except Exception as error:
            errors.append(error)
    unseen = (_keywords(path) & _COUNTS) - recorded.keys()
    if errors and (not recorded or unseen):
        what = f"; {', '.join(sorted(unseen))} cannot be told" if unseen else ""
        raise MigrationError(
            f"{path} fails where it is read for its options, without an alembic.ini and with no database "
            f"behind it: {type(errors[-1]).__name__}: {errors[-1]}{what}"
        ) from errors[-1]
    table = recorded.get("version_table", "alembic_version")
    if recorded and table != version_table:
        raise MigrationError(
            f"{path} says version_table={table!r}, the configuration {version_table!r}: "
            f"set migrations.version_table to {table!r}"
        )
    return recorded
