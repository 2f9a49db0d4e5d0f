"""A folder of Alembic's revisions: reads it, plans ways through it, runs one of them.

Alembic's `op` and `context` are process-wide, so everything here happens under one lock, and once per
distinct pair of revisions instead of once per tenant.
"""

from __future__ import annotations

import hashlib
import threading
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import RevisionStep
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect

from ..config import TenantConfig
from ..errors import MigrationError
from .compile import compile_steps, make_environment
from .environment import read_environment
from .inside import everything_inside, no_failed_commits
from .plan import Heads, MigrationPlan, Revision, Segment, SegmentKind, plan_versions
from .revision_file import RevisionFile, SourceHash

ALEMBIC_LOCK = threading.RLock()
"""Held while Alembic's process-wide proxies are set."""


def plain_dialect() -> Dialect:
    """PostgreSQL's, of no version in particular. `named` leaves percent signs alone."""
    return postgresql.dialect(paramstyle="named")


def dialect_of(connection: Connection) -> Dialect:
    """PostgreSQL's dialect as it is for the server of `connection`, with percent signs as they are."""
    dialect = plain_dialect()
    dialect.initialize(connection)
    return dialect


class History:
    """The revisions in one folder.

    Args:
        directory: the folder that holds `versions/`.
        version_table: name of Alembic's version table, as in the configuration.
        label: `"tenant"` or `"shared"`, for messages.
        make_dialect: makes the dialect of the server that the SQL is for, with named parameters; what
            SQLAlchemy writes for some columns depends on the server's version.
    """

    def __init__(
        self,
        directory: Path,
        version_table: str,
        label: str,
        make_dialect: Callable[[], Dialect] = plain_dialect,
    ) -> None:
        self.directory, self.version_table, self.label = directory, version_table, label
        self.config = Config(cmd_opts=Namespace(quiet=True, x=None))
        self.config.set_main_option("script_location", str(directory).replace("%", "%%"))
        self.config.set_main_option("path_separator", "os")
        self.config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
        self._make_dialect = make_dialect
        self._files: dict[str, RevisionFile] = {}
        self._plans: dict[tuple[Heads, str, bool], MigrationPlan] = {}
        self._script: ScriptDirectory | None = None
        self.options: Mapping[str, Any] = {}
        """What an env.py in the folder gives to `context.configure()`, once the folder was read."""

    @classmethod
    def of(
        cls, config: TenantConfig, label: str, make_dialect: Callable[[], Dialect] = plain_dialect
    ) -> Self:
        """The history `"tenant"` or `"shared"` of a configuration."""
        settings = config.migrations
        folder = settings.shared_dir if label == "shared" else settings.tenant_dir
        history = cls(Path(folder), settings.version_table, label, make_dialect)
        history.config.set_main_option("file_template", settings.file_template.replace("%", "%%"))
        return history

    @property
    def exists(self) -> bool:
        """Whether there is a folder with at least one revision."""
        versions = self.directory / "versions"
        return versions.is_dir() and any(path.name != "__init__.py" for path in versions.glob("*.py"))

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
                for revision in script.walk_revisions():
                    # Before the file can change: what is noted is to be what is run.
                    self._files[revision.revision] = RevisionFile.read(revision.path)
            with ALEMBIC_LOCK:
                self.options = read_environment(self.config, script, self.version_table)
            self._script = script
        return self._script

    def reload(self) -> None:
        """Read the folder anew."""
        self._script = None
        self._plans.clear()
        self._files.clear()

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
        return str(self.script_of(target).revision)

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
            MigrationError: a revision is unknown or cannot work.
        """
        return self._plan(start, target, is_downgrade=False)

    def plan_downgrade(self, start: Heads, target: str) -> MigrationPlan:
        """The plan from `start` back to `target`: a revision, a symbol such as `base`, or `-2` for two steps.

        Raises:
            MigrationError: `target` is unknown or not below `start`, or a revision on the way has no
                downgrade.
        """
        return self._plan(start, target, is_downgrade=True)

    def plan_back_to(self, start: Heads, target: str) -> MigrationPlan:
        """As `plan_downgrade`; a schema that does not have `target`, or nothing above it, stays as it is.

        Args:
            target: a full id, or `base`.
        """
        if target != "base" and target not in {revision.id for revision in self.applied(start)}:
            return MigrationPlan(start, start, (), ())
        return self.plan_downgrade(start, target)

    def is_one_way(self, revision: str) -> bool:
        """Whether it cannot be undone."""
        return not _has_downgrade(self.script_of(revision))

    def required_shared(self, revision: str) -> str | None:
        """The shared revision that a tenants' one builds on: its attribute `requires_shared`."""
        needed = getattr(self.script_of(revision).module, "requires_shared", None)
        return None if needed is None else str(needed)

    def _plan(self, start: Heads, target: str, *, is_downgrade: bool) -> MigrationPlan:
        key = (start, target, is_downgrade)
        with ALEMBIC_LOCK:
            if key not in self._plans:
                self._plans[key] = self._compile(start, target, is_downgrade=is_downgrade)
            return self._plans[key]

    def _steps(self, start: Heads, target: str, *, is_downgrade: bool) -> list[RevisionStep]:
        with self._translated():
            if is_downgrade:
                for script in self.script.walk_revisions():
                    # Whether one of those on the way cannot be undone is told by name, later.
                    script.module.__dict__.setdefault("downgrade", _no_downgrade)
                return list(self.script._downgrade_revs(target, start))  # type: ignore[arg-type]
            return list(self.script._upgrade_revs(target, start))  # type: ignore[arg-type]

    def _compile(self, start: Heads, target: str, *, is_downgrade: bool) -> MigrationPlan:
        if not is_downgrade and not self.pending(start, target):
            return MigrationPlan(start, start, (), ())
        steps = self._steps(start, target, is_downgrade=is_downgrade)
        if is_downgrade:
            self._refuse_one_way([step.revision for step in steps])
        with self._translated():
            segments, end = compile_steps(
                make_environment(self.config, self.script, start),
                steps,
                start,
                version_table=self.version_table,
                dialect=self._make_dialect(),
            )
        revisions = tuple(_revision(step.revision) for step in steps)
        return MigrationPlan(start, end, revisions, tuple(segments), is_downgrade)

    def _refuse_one_way(self, scripts: Iterable[Script]) -> None:
        one_way = [str(script.revision) for script in scripts if not _has_downgrade(script)]
        if one_way:
            raise MigrationError(
                f"{self.label} revision{'s' if len(one_way) > 1 else ''} {', '.join(one_way)} cannot be "
                "undone: write downgrade(), or roll back to a later revision. Nothing was changed"
            )

    def run_online(
        self,
        connection: Connection,
        schema: str,
        revision: str,
        *,
        is_downgrade: bool = False,
        leaves_transaction: bool = False,
        is_unused: bool = False,
    ) -> None:
        """Let Alembic run one revision on the connection, in its transaction and search path. The version
        table is left alone.

        Args:
            leaves_transaction: the connection is in no transaction; Alembic begins, ends and begins them.
            is_unused: nobody uses the schema yet: what asks to run outside of transactions is run inside.

        Raises:
            MigrationError: the revision raised; names it.
        """
        with ALEMBIC_LOCK, self._translated(), EnvironmentContext(self.config, self.script) as environment:
            script = self.script_of(revision)
            environment.configure(
                connection=connection, version_table=self.version_table, version_table_schema=schema
            )
            context = environment.get_context()
            with Operations.context(context):
                try:
                    function = script.module.downgrade if is_downgrade else script.module.upgrade
                    if leaves_transaction:
                        with no_failed_commits(connection), context.begin_transaction():
                            function()
                    elif is_unused:
                        with everything_inside(connection, context):
                            function()
                    else:
                        function()
                except MigrationError:
                    raise
                except Exception as error:
                    raise MigrationError(f"{type(error).__name__}: {error}", revision=revision) from error

    def plan_stamp(self, start: Heads) -> MigrationPlan:
        """The plan that records the newest revisions as applied, without running anything."""
        try:
            pending = self.pending(start)
        except MigrationError:  # at a revision that is not here: that is what this may mend
            pending = self.revisions()
        end = self.heads()
        segment = Segment(SegmentKind.COMPILED, tuple(plan_versions(self.version_table, start, end)))
        segments = (segment,) if start != end else ()
        return MigrationPlan(start, end, tuple(pending), segments, is_stamp=True)

    def script_of(self, revision: str) -> Script:
        """The revision of this id.

        Raises:
            MigrationError: there is none.
        """
        if not revision:
            raise MigrationError("the name of the revision is empty")
        with self._translated():
            script = self.script.get_revision(revision)
        if script is None:
            raise MigrationError(f"there is no {self.label} revision {revision!r} in {self.directory}")
        return script

    def file_of(self, revision: str) -> RevisionFile:
        """The file of a revision as it was when the folder was read.

        Raises:
            MigrationError: there is no such revision.
        """
        self.script_of(revision)
        return self._files[revision]

    @property
    def environment_hash(self) -> str:
        """Of an env.py in the folder: SHA-256, hexadecimal; empty where there is none."""
        path = self.directory / "env.py"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

    def is_edited(self, revision: str, then: SourceHash) -> bool:
        """Whether a revision does something else than it did."""
        file = RevisionFile.read(self.script_of(revision).path)
        return file.file_hash != then.file and file.hash.code != then.code

    def applied(self, heads: Heads) -> list[Revision]:
        """The revisions that a schema at `heads` has, oldest first.

        Raises:
            MigrationError: `heads` names a revision that is not in this folder.
        """
        pending = {revision.id for revision in self.pending(heads)}
        return [revision for revision in self.revisions() if revision.id not in pending]

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Make Alembic's errors, and those of a broken revision file, a `MigrationError`."""
        try:
            yield
        except (CommandError, RevisionError) as error:
            raise MigrationError(f"{error} (in {self.directory})") from error
        except (UserWarning, KeyError) as error:
            raise MigrationError(f"the revisions in {self.directory} do not connect: {error}") from error
        except (SyntaxError, ImportError, NameError, AttributeError, TypeError) as error:
            place = self._place_of(error)
            raise MigrationError(f"{place} cannot be loaded: {type(error).__name__}: {error}") from error

    def _place_of(self, error: BaseException) -> str:
        """The file of this folder, and the line, that an error came from."""
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if Path(f.filename).is_relative_to(self.directory.resolve())]
        ours = ours or [f for f in frames if Path(f.filename).is_relative_to(self.directory)]
        return f"{ours[-1].filename}, line {ours[-1].lineno}," if ours else f"a revision in {self.directory}"


def _revision(script: Script) -> Revision:
    message = (script.doc or "").strip().splitlines()
    return Revision(str(script.revision), message[0] if message else "", Path(script.path).name)


def _no_downgrade() -> None:
    """Stands for the downgrade of a revision that has none."""


def _has_downgrade(script: Script) -> bool:
    """Whether a revision can be undone: its downgrade() does something, or its upgrade() does nothing."""
    file = RevisionFile.read(script.path)
    function = getattr(script.module, "downgrade", _no_downgrade)
    if function is not _no_downgrade and (file.does_something("downgrade") or not file.defines("downgrade")):
        return True
    return not file.does_something("upgrade")
