"""Compiles revisions to SQL, once, with Alembic's offline mode; finds out which of them cannot be.

A revision runs online where it asks for a connection, where a value of it has no literal, where it does
something else when it is offline, and where compiling it twice gives two texts (uuid4(), now()): each
tenant is to get a value of its own. What cannot compile is detected, never guessed.
"""

from __future__ import annotations

import copy
import io
import sys
from dataclasses import replace
from typing import Any, NoReturn, cast

from alembic.ddl.postgresql import PostgresqlImpl
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import HeadMaintainer, MigrationContext, RevisionStep
from sqlalchemy import text
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import DDLElement

from ..errors import MigrationError
from ..isolation.sqltext import find_transaction_control, split_statements
from .pacing import LockOrder
from .plan import Heads, Segment, SegmentKind, Statement, plan_versions
from .revision_file import RevisionFile

COMPILED, ONLINE, AUTOCOMMIT = SegmentKind.COMPILED, SegmentKind.ONLINE, SegmentKind.AUTOCOMMIT

Part = tuple[SegmentKind, str, int]
"""A statement, whether it is in the transaction, and the line of the revision that it came from."""


class NeedsConnectionError(Exception):
    """The revision cannot be compiled; says why."""


_OFFLINE = "it asks for the offline mode"


def _is_asked_by_alembic() -> bool:
    """Whether who reads the property that calls this is Alembic itself."""
    return str(sys._getframe(2).f_globals.get("__name__")).partition(".")[0] == "alembic"


class _CollectingImpl(PostgresqlImpl):
    """Alembic's offline mode, except that statements are kept as values instead of written to a text (in
    which tabs become spaces, inside of data as well), and that nobody gets a stand-in for a connection."""

    collected: list[Part]
    kind: SegmentKind
    path = ""
    """The file of the revision that is being compiled; none where Alembic moves its own record."""
    refused: str | None = None
    """Why the revision cannot be compiled, whatever it makes of the error."""

    def refuse(self, reason: str) -> NoReturn:
        self.refused = reason
        raise NeedsConnectionError(reason)

    @property
    def bind(self) -> Any:
        self.refuse("it calls op.get_bind()")

    @property
    def as_sql(self) -> bool:
        if not _is_asked_by_alembic():
            self.refuse(_OFFLINE)
        return True

    @as_sql.setter
    def as_sql(self, _value: bool) -> None: ...

    def emit_commit(self) -> None:
        # Called by autocommit_block() alone, at its beginning ...
        self.kind = AUTOCOMMIT

    def emit_begin(self) -> None:
        # ... and at its end.
        self.kind = COMPILED

    def _exec(self, construct: Any, *_: Any, multiparams: Any = None, params: Any = None, **__: Any) -> None:
        if multiparams or params:
            self.refuse("a statement is executed with parameters")
        if isinstance(construct, str):
            construct = text(construct)
        literal = {} if isinstance(construct, DDLElement) else {"literal_binds": True}
        compiled = construct.compile(dialect=self.dialect, compile_kwargs=literal)
        if getattr(compiled, "insert_prefetch", ()) or getattr(compiled, "update_prefetch", ()):
            self.refuse("a column has a default in Python")
        sql = str(compiled)
        if command := find_transaction_control(sql):
            raise MigrationError(f"{command} would split the migration in two: take it out")
        line = self._line()
        self.collected += [(self.kind, part, line) for part in split_statements(sql)]

    def _line(self) -> int:
        frame = sys._getframe(1)
        while frame.f_code.co_filename != self.path:
            if frame.f_back is None:
                return 0
            frame = frame.f_back
        return frame.f_lineno


class _CompilingContext(MigrationContext):
    """A revision that asks whether it runs offline is about to do less than it would online."""

    @property
    def as_sql(self) -> bool:
        if not _is_asked_by_alembic():
            cast("_CollectingImpl", self.impl).refuse(_OFFLINE)
        return True

    @as_sql.setter
    def as_sql(self, _value: bool) -> None: ...


class _CompilingEnvironment(EnvironmentContext):
    def is_offline_mode(self) -> bool:
        cast("_CollectingImpl", self.get_context().impl).refuse(_OFFLINE)


def compile_steps(
    environment: EnvironmentContext,
    steps: list[RevisionStep],
    start: Heads,
    *,
    version_table: str,
    dialect: Dialect,
) -> tuple[list[Segment], Heads]:
    """The segments that take a schema through `steps`, and the heads after them. Needs Alembic's lock.

    Args:
        environment: of the class that `make_environment` returns, not entered yet.
        dialect: of the server that the SQL is for, with named parameters.

    Raises:
        MigrationError: a revision cannot work; names it.
    """
    with environment:
        environment.configure(
            dialect_name="postgresql",
            output_buffer=io.StringIO(),
            version_table=version_table,
            literal_binds=True,
        )
        context = environment.get_context()
        # Classes are exchanged on the objects: Alembic picks them by dialect, for the whole process.
        context.__class__ = _CompilingContext
        context.impl.__class__ = _CollectingImpl
        impl = cast("_CollectingImpl", context.impl)
        context.dialect = impl.dialect = dialect
        with Operations.context(context):
            return _collect(steps, start, impl, context, version_table)


def make_environment(config: Any, script: Any, start: Heads) -> EnvironmentContext:
    """The environment for `compile_steps`."""
    return _CompilingEnvironment(config, script, as_sql=True, starting_rev=start or None)


def _collect(
    steps: list[RevisionStep], start: Heads, impl: _CollectingImpl, context: Any, version_table: str
) -> tuple[list[Segment], Heads]:
    plan = _Segments(version_table, start)
    maintainer = HeadMaintainer(context, start)
    for step in steps:
        revision = str(step.revision.revision)
        try:
            parts = _compile(step, impl)
        except NeedsConnectionError as reason:
            plan.add_online(revision, str(reason), leaves_transaction=_leaves_transaction(step))
        except MigrationError as error:
            raise MigrationError(error.reason, revision=revision) from error
        else:
            plan.add(revision, parts)
        impl.collected, impl.kind = [], COMPILED
        maintainer.update_to_step(step)
        plan.complete(tuple(sorted(maintainer.heads)))
    plan.record_heads()
    return plan.segments, plan.heads


def _file(step: RevisionStep) -> RevisionFile:
    return RevisionFile.read(step.revision.path)


def _leaves_transaction(step: RevisionStep) -> bool:
    return b"autocommit_block" in _file(step).content


def _compile(step: RevisionStep, impl: _CollectingImpl) -> list[Part]:
    """What one revision sends.

    Raises:
        NeedsConnectionError: it has to run online.
    """
    impl.path = step.revision.path
    # What was created by the revisions before: an enum type that two tables have is created once.
    memo = copy.deepcopy(impl.memo)
    texts = []
    for _ in range(2):
        impl.collected, impl.kind, impl.memo = [], COMPILED, copy.deepcopy(memo)
        impl.refused = None
        try:
            step.migration_fn()
        except (MigrationError, NeedsConnectionError):
            raise
        except Exception as error:
            # Without a connection, what needs one fails in whichever way it does. It is then run
            # online, where a real fault shows again.
            raise NeedsConnectionError(f"{type(error).__name__}: {error}") from error
        if impl.refused is not None:  # and the revision has caught the error
            raise NeedsConnectionError(impl.refused)
        texts.append(impl.collected)
    if texts[0] != texts[1]:
        raise NeedsConnectionError("its SQL differs from run to run")
    if not texts[0] and _file(step).does_something("upgrade" if step.is_upgrade else "downgrade"):
        raise NeedsConnectionError("it sends nothing while it is compiled")
    return texts[0]


class _Segments:
    """Puts segments together. Where a transaction ends, the revisions that are complete are recorded."""

    def __init__(self, version_table: str, start: Heads) -> None:
        self.segments: list[Segment] = []
        self.heads = start
        self._recorded = start
        self._version_table = version_table
        self._locks = LockOrder()

    def _append(self, kind: SegmentKind, statements: list[Statement]) -> None:
        if not statements:
            return
        if self.segments and self.segments[-1].kind is kind is not ONLINE and not self.segments[-1].commits:
            last = self.segments.pop()
            self.segments.append(replace(last, statements=(*last.statements, *statements)))
            return
        self.segments.append(Segment(kind, tuple(statements), recorded=self._recorded))

    def complete(self, heads: Heads) -> None:
        """A revision is complete."""
        self.heads = heads
        if self.segments and self.segments[-1].kind is ONLINE and self.segments[-1].leaves_transaction:
            self.record_heads()
            self.segments[-1] = replace(self.segments[-1], commits=True)

    def record_heads(self) -> None:
        """Add what moves the record to the revisions that are complete."""
        if self.heads != self._recorded:
            self._append(COMPILED, plan_versions(self._version_table, self._recorded, self.heads))
            self._recorded = self.heads

    def add(self, revision: str, parts: list[Part]) -> None:
        """A compiled revision."""
        for kind, sql, line in parts:
            if kind is AUTOCOMMIT:
                self._locks = LockOrder()  # the transaction ends
                self.record_heads()
            may_wait = self._locks.may_wait(sql) and kind is COMPILED
            self._append(kind, [Statement(sql, revision, line, may_wait)])

    def add_online(self, revision: str, reason: str, *, leaves_transaction: bool) -> None:
        """A revision that Alembic runs. It finds the record where plain Alembic would have it."""
        self.record_heads()
        self.segments.append(
            Segment(
                ONLINE,
                revision=revision,
                reason=reason,
                leaves_transaction=leaves_transaction,
                recorded=self._recorded,
            )
        )
