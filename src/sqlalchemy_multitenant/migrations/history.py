"""The only door to Alembic's scripts: reads a folder of revisions and compiles them to SQL.

Alembic's `op` and `context` are process-wide, so everything here happens under one lock, and once per
distinct pair of revisions instead of once per tenant.
"""

from __future__ import annotations

import io
import threading
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any, cast

from alembic.config import Config
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.schema import DDLElement

from ..errors import MigrationError
from ..isolation.sqltext import find_transaction_control, split_statements
from ..naming import quote_ident, quote_literal
from .plan import Heads, MigrationPlan, Revision, Statement

ALEMBIC_LOCK = threading.RLock()
"""Held while Alembic's process-wide proxies are set."""


class _CollectingImpl(PostgresqlImpl):
    """Alembic's offline mode, except that statements are kept as values instead of written to a text (in
    which tabs become spaces, inside of data as well), and that nobody gets a stand-in for a connection."""

    collected: list[Statement]
    revision: str | None

    @property
    def bind(self) -> Any:
        raise _NeedsConnectionError("it calls op.get_bind()")

    def emit_commit(self) -> None:
        # Called by autocommit_block() alone: the plan's transaction is not Alembic's.
        raise MigrationError(
            "autocommit_block() (CREATE INDEX CONCURRENTLY and the like) is not supported yet: what it runs "
            "could not be undone together with the rest",
            revision=self.revision,
        )

    def _exec(self, construct: Any, *_: Any, multiparams: Any = None, params: Any = None, **__: Any) -> None:
        if multiparams or params:
            raise _NeedsConnectionError("a statement is executed with parameters")
        if isinstance(construct, str):
            construct = text(construct)
        literal = {} if isinstance(construct, DDLElement) else {"literal_binds": True}
        compiled = construct.compile(dialect=self.dialect, compile_kwargs=literal)
        if getattr(compiled, "insert_prefetch", ()) or getattr(compiled, "update_prefetch", ()):
            raise _NeedsConnectionError("a column has a default in Python")
        sql = str(compiled)
        if command := find_transaction_control(sql):
            raise MigrationError(
                f"{command} would split the migration in two: take it out", revision=self.revision
            )
        self.collected += [Statement(part, self.revision) for part in split_statements(sql)]


class _CompilingEnvironment(EnvironmentContext):
    """A revision that asks whether it runs offline is about to do less than it would online."""

    def is_offline_mode(self) -> bool:
        raise _NeedsConnectionError("it asks for the offline mode")


class History:
    """The revisions in one folder.

    Args:
        directory: the folder that holds `versions/`.
        version_table: name of Alembic's version table, as in the configuration.
        label: `"tenant"` or `"shared"`, for messages.
    """

    def __init__(self, directory: Path, version_table: str, label: str) -> None:
        self.directory, self.version_table, self.label = directory, version_table, label
        self.config = Config(cmd_opts=Namespace(quiet=True, x=None))
        self.config.set_main_option("script_location", str(directory).replace("%", "%%"))
        self.config.set_main_option("path_separator", "os")
        self.config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
        self._plans: dict[tuple[Heads, str], MigrationPlan] = {}
        self._script: ScriptDirectory | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a folder with at least one revision."""
        versions = self.directory / "versions"
        return versions.is_dir() and any(versions.glob("*.py"))

    @property
    def script(self) -> ScriptDirectory:
        """Alembic's view of the folder, read once.

        Raises:
            MigrationError: the folder is missing or a revision in it is broken.
        """
        if self._script is None:
            if not (self.directory / "versions").is_dir():
                raise MigrationError(
                    f"there is no folder {self.directory / 'versions'}; `multitenant init` makes one"
                )
            with ALEMBIC_LOCK, self._translated(), warnings.catch_warnings():
                # A revision that follows a missing one, or whose id is there twice, is but a warning.
                warnings.simplefilter("error", UserWarning)
                script = ScriptDirectory.from_config(self.config)
                script.get_heads()
            self._script = script
        return self._script

    def reload(self) -> None:
        """Read the folder anew."""
        self._script = None
        self._plans.clear()

    def heads(self) -> Heads:
        """The newest revisions: one, unless branches are open; none in an empty history.

        Raises:
            MigrationError: a revision cannot be read.
        """
        if not self.exists:
            return ()
        with self._translated():
            return tuple(sorted(self.script.get_heads()))

    def revisions(self) -> list[Revision]:
        """All revisions, oldest first."""
        if not self.exists:
            return []
        with self._translated():
            return [_revision(s) for s in reversed(list(self.script.walk_revisions()))]

    def resolve(self, target: str) -> str:
        """The full id of a revision given by id, unique beginning, label or symbol (`head`).

        Raises:
            MigrationError: there is none, or several.
        """
        if target in ("head", "heads", "base"):
            return target
        with self._translated():
            found = self.script.get_revision(target)
        if found is None:
            raise MigrationError(f"there is no {self.label} revision {target!r} in {self.directory}")
        return str(found.revision)

    def pending(self, start: Heads, target: str = "heads") -> list[Revision]:
        """What an upgrade from `start` would apply, oldest first.

        Raises:
            MigrationError: `start` names a revision that is not in this folder.
        """
        if not self.exists:
            if start:
                raise MigrationError(
                    f"the schema is at {', '.join(start)}, and {self.directory} has no revisions"
                )
            return []
        with self._translated():
            steps = self.script._upgrade_revs(target, start)  # type: ignore[arg-type]
            return [_revision(step.revision) for step in steps]

    def plan_upgrade(self, start: Heads, target: str = "heads") -> MigrationPlan:
        """The plan from `start` to `target`; compiled once, then kept.

        Raises:
            MigrationError: a revision is unknown or fails to compile.
        """
        key = (start, target)
        with ALEMBIC_LOCK:
            if key not in self._plans:
                self._plans[key] = self._compile(start, target)
            return self._plans[key]

    def _compile(self, start: Heads, target: str) -> MigrationPlan:
        revisions = tuple(self.pending(start, target))
        if not revisions:
            return MigrationPlan(start, start, (), ())
        end = self._heads_after(start, target)
        try:
            first, second = self._render(start, target), self._render(start, target)
        except _NeedsConnectionError as reason:
            return MigrationPlan(start, end, revisions, (), online=str(reason))
        if first != second:
            # uuid4(), now() and the like: each tenant is to get a value of its own.
            return MigrationPlan(start, end, revisions, (), online="its SQL differs from run to run")
        return MigrationPlan(start, end, revisions, tuple(first))

    def _render(self, start: Heads, target: str) -> list[Statement]:
        script = self.script

        def fn(heads: Any, context: MigrationContext) -> Any:
            del heads, context
            for step in script._upgrade_revs(target, start):  # type: ignore[arg-type]
                impl.revision = step.revision.revision
                if "as_sql" in Path(step.revision.path).read_text(encoding="utf-8"):
                    raise _NeedsConnectionError("it asks for the offline mode")
                yield step

        offline: dict[str, Any] = {"fn": fn, "as_sql": True, "starting_rev": start or None}
        with self._translated(), _CompilingEnvironment(self.config, script, **offline) as environment:
            environment.configure(
                dialect_name="postgresql",
                # `named` leaves percent signs alone.
                dialect_opts={"paramstyle": "named"},
                output_buffer=io.StringIO(),
                version_table=self.version_table,
                literal_binds=True,
            )
            # The class is exchanged on the object: Alembic picks it by dialect, for the whole process.
            environment.get_context().impl.__class__ = _CollectingImpl
            impl = cast("_CollectingImpl", environment.get_context().impl)
            impl.collected, impl.revision = [], None
            try:
                environment.run_migrations()
            except MigrationError:
                raise
            except Exception as error:
                # Without a connection, what needs one fails in whichever way it does. It is then run
                # online, where a real fault shows again.
                raise _NeedsConnectionError(f"{type(error).__name__}: {error}") from error
        return impl.collected

    def _heads_after(self, start: Heads, target: str) -> Heads:
        heads = set(start)
        with self._translated():
            for step in self.script._upgrade_revs(target, start):  # type: ignore[arg-type]
                heads -= set(step.from_revisions_no_deps)
                heads |= set(step.to_revisions_no_deps)
        return tuple(sorted(heads))

    def run_online(self, connection: Connection, schema: str, target: str = "heads") -> None:
        """Let Alembic run the upgrade itself, in the connection's transaction and search path.

        Raises:
            MigrationError: a revision raised; names it.
        """
        script = self.script
        running: str | None = None

        def fn(heads: Any, context: MigrationContext) -> Any:
            del context
            nonlocal running
            for step in script._upgrade_revs(target, heads):
                running = str(step.revision.revision)
                yield step

        with ALEMBIC_LOCK, EnvironmentContext(self.config, script, fn=fn) as environment:
            environment.configure(
                connection=connection, version_table=self.version_table, version_table_schema=schema
            )
            try:
                environment.run_migrations()
            except MigrationError:
                raise
            except Exception as error:
                raise MigrationError(f"{type(error).__name__}: {error}", revision=running) from error

    def plan_stamp(self, start: Heads) -> MigrationPlan:
        """The plan that records the newest revisions as applied, without running anything."""
        name = quote_ident(self.version_table)
        try:
            pending = self.pending(start)
        except MigrationError:  # at a revision that is not here: that is what this may mend
            pending = self.revisions()
        statements = [
            f"CREATE TABLE IF NOT EXISTS {name} (version_num varchar(32) NOT NULL, "
            f"CONSTRAINT {quote_ident(self.version_table + '_pkc')} PRIMARY KEY (version_num))",
            f"DELETE FROM {name}",
        ]
        end = self.heads()
        statements += [f"INSERT INTO {name} (version_num) VALUES ({quote_literal(head)})" for head in end]
        return MigrationPlan(start, end, tuple(pending), tuple(map(Statement, statements)))

    def _translated(self) -> _Translated:
        return _Translated(self)


class _NeedsConnectionError(Exception):
    pass


class _Translated:
    """Alembic's errors, and those of a broken revision file, as `MigrationError`."""

    def __init__(self, history: History) -> None:
        self.history = history

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, CommandError):
            raise MigrationError(f"{error} (in {self.history.directory})") from error
        if isinstance(error, UserWarning | KeyError):
            raise MigrationError(
                f"the revisions in {self.history.directory} do not connect: {error}"
            ) from error
        if isinstance(error, SyntaxError | ImportError | NameError):
            raise MigrationError(
                f"a revision in {self.history.directory} cannot be loaded: {type(error).__name__}: {error}"
            ) from error


def _revision(script: Script) -> Revision:
    message = (script.doc or "").strip().splitlines()
    return Revision(str(script.revision), message[0] if message else "", Path(script.path).name)
