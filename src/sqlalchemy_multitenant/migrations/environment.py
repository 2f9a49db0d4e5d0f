"""An existing project's `env.py`: executed once for what it sets up (imports, operations, options), in the
offline mode, in which it connects to nothing. The options of its online branch are read from its source."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

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

    def is_offline_mode(self) -> bool:
        return True

    def configure(self, *_: Any, **options: Any) -> None:
        self.recorded |= options

    def begin_transaction(self) -> Any:
        return nullcontext()

    def run_migrations(self, **_: Any) -> None:
        pass

    def get_context(self) -> Any:
        raise MigrationError("it asks for the context, and there is none while its options are read")


def read_environment(config: Config, script: ScriptDirectory, version_table: str) -> Mapping[str, Any]:
    """The keywords that an `env.py` beside the revisions gives to `context.configure()`, offline and online;
    none where there is no such file. Needs Alembic's lock.

    Raises:
        MigrationError: it fails; one of its options cannot be told; or it has another version table than the
            configuration.
    """
    path = Path(script.env_py_location)
    if not path.is_file():
        return {}
    if config.get_main_option("sqlalchemy.url") is None:
        config.set_main_option("sqlalchemy.url", "postgresql://")  # to nowhere: for who only looks at it
    source = path.read_text(encoding="utf-8")
    module = types.ModuleType("env_py")
    module.__file__ = str(path)
    options, failure = _execute(config, script, compile(source, str(path), "exec"), module)
    # A branch that was not taken: its options, where they are names of the module, or constants.
    unknown = set()
    for keyword, value in _keywords(source):
        if keyword in options:
            continue
        try:
            options[keyword] = eval(compile(ast.Expression(value), str(path), "eval"), dict(module.__dict__))  # noqa: S307
        except Exception:
            unknown.add(keyword)
    if unknown or (failure is not None and not options):
        reason = "" if failure is None else f" ({type(failure).__name__}: {failure})"
        what = f"{', '.join(sorted(unknown))} cannot be told" if unknown else "it fails"
        raise MigrationError(
            f"{path} is executed for its options, in the offline mode and without an alembic.ini: "
            f"{what}{reason}"
        ) from failure
    table = options.get("version_table", "alembic_version")
    if table != version_table:
        raise MigrationError(
            f"{path} says version_table={table!r}, the configuration {version_table!r}: "
            f"set migrations.version_table to {table!r}"
        )
    return options


def _execute(
    config: Config, script: ScriptDirectory, code: types.CodeType, module: types.ModuleType
) -> tuple[dict[str, Any], BaseException | None]:
    """The options that it gives offline, and what has ended it before its own end."""
    with EnvironmentContext(config, script, as_sql=True) as environment:
        # Exchanged on the object: `alembic.context` speaks for objects of exactly Alembic's class alone.
        environment.__class__ = _Recorder
        recorder = cast("_Recorder", environment)
        recorder.recorded = {}
        try:
            exec(code, module.__dict__)  # noqa: S102 - as Alembic does
        except (Exception, SystemExit) as error:
            return recorder.recorded, error
        finally:
            environment.__class__ = EnvironmentContext
        return recorder.recorded, None


def _keywords(source: str) -> Iterator[tuple[str, ast.expr]]:
    """The keywords that count in all calls of `configure`."""
    for call in ast.walk(ast.parse(source)):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "configure"
        ):
            for keyword in call.keywords:
                if keyword.arg in _COUNTS:
                    yield str(keyword.arg), keyword.value
