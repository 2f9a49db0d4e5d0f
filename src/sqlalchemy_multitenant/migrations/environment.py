"""An existing project's `env.py`: run for what it sets up (imports, operations, options), with nothing behind
it that reaches a database."""

from __future__ import annotations

from collections.abc import Mapping
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


class _Recorder(EnvironmentContext):
    """Takes `context.configure(...)` down, and runs no migrations."""

    recorded: dict[str, Any]

    def is_offline_mode(self) -> bool:
        # On the other branch it would connect to a database, which is not for it to do here.
        return True

    def configure(self, *_: Any, **options: Any) -> None:
        self.recorded |= options

    def begin_transaction(self) -> Any:
        return nullcontext()

    def run_migrations(self, **_: Any) -> None:
        pass

    def get_context(self) -> Any:
        raise MigrationError("it asks for the context, and there is none while its options are read")


def _run(config: Config, script: ScriptDirectory) -> dict[str, Any]:
    with EnvironmentContext(config, script, as_sql=True) as environment:
        # Exchanged on the object: `alembic.context` speaks for objects of exactly Alembic's class alone.
        environment.__class__ = _Recorder
        recorder = cast("_Recorder", environment)
        recorder.recorded = {}
        try:
            script.run_env()
        finally:
            environment.__class__ = EnvironmentContext
        return recorder.recorded


def read_environment(config: Config, script: ScriptDirectory, version_table: str) -> Mapping[str, Any]:
    """The keywords that an `env.py` beside the revisions gives to `context.configure()`; none where there is
    no such file. Needs Alembic's lock.

    Raises:
        MigrationError: it fails, or has another version table than the configuration.
    """
    if not Path(script.env_py_location).is_file():
        return {}
    try:
        recorded = _run(config, script)
    except Exception as error:
        raise MigrationError(
            f"{script.env_py_location} fails where it is read for its options, offline and without an "
            f"alembic.ini: {type(error).__name__}: {error}"
        ) from error
    table = recorded.get("version_table", "alembic_version")
    if recorded and table != version_table:
        raise MigrationError(
            f"{script.env_py_location} says version_table={table!r}, the configuration {version_table!r}: "
            f"set migrations.version_table to {table!r}"
        )
    return recorded
