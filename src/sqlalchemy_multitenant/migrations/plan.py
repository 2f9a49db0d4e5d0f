"""Plans: what is to be sent to a schema to bring it from one revision to another. Values, no I/O."""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache

from ..config import TenantConfig
from ..naming import SchemaName, quote_ident, quote_literal

Heads = tuple[str, ...]
"""The revisions a schema is at, sorted; empty at the base. More than one while branches are open."""


_DEFINITION = re.compile(
    r"\s*(?:"
    # An empty table: its defaults and constraints are not evaluated.
    r"CREATE\s+TABLE\b(?!.*\b(?:pg_temp\w*|AS(?!\s+IDENTITY\b)|OF|WITH|EXECUTE)\b)"
    # Of columns, not of expressions, whose functions may do anything.
    r"|CREATE\s+(?:UNIQUE\s+)?INDEX\b[^()]*\([^()]*\)\s*$"
    r"|ALTER\s+TABLE\b(?!.*\bpg_temp)(?!.*\b(?:USING|DEFAULT|\w*SERIAL\d?)\b)(?:[^()]|\([\s\w,\"]*\))*$"
    r"|CREATE\s+SEQUENCE\b|CREATE\s+TYPE\b|COMMENT\s+ON\b|DROP\s+(?:TABLE|INDEX|SEQUENCE|TYPE)\b"
    r")",
    re.IGNORECASE | re.DOTALL,
)
"""What certainly calls no function, and leaves nothing in the session: an allow-list, and a short one."""

_ROLE = re.compile(
    r"\bSET\s+(?:LOCAL\s+|SESSION\s+)?(?:ROLE|SESSION\s+AUTHORIZATION)\b"
    r"|\bset_config\s*\(\s*'(?:role|session_authorization)'",
    re.IGNORECASE,
)


@lru_cache(maxsize=1000)  # the same statements for each tenant
def changes_role(sql: str) -> bool:
    """Whether what follows a statement seems to be run by another role, which may see other schemas."""
    return _ROLE.search(sql) is not None


@dataclass(frozen=True, slots=True)
class Destination:
    """A schema that a plan is applied to.

    Attributes:
        name: whose it is: a tenant's id, or `shared`.
        schema: its name.
        search_path: the schemas that the statements see, its own first.
        tenant: the tenant whose it is; None for the shared schema, and for a scratch one.
    """

    name: str
    schema: SchemaName
    search_path: tuple[str, ...]
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a statement waits for a lock, and how long it runs, in seconds; None for no limit."""

    lock_s: float
    statement_s: float | None

    @classmethod
    def of(cls, config: TenantConfig) -> Timeouts:
        return cls(config.migrations.lock_timeout_s, config.migrations.statement_timeout_s)


@dataclass(frozen=True, slots=True)
class Revision:
    """One Alembic revision.

    Attributes:
        id: its identifier.
        message: the first line of its docstring.
        name: its file's name, without folder.
    """

    id: str
    message: str
    name: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement of a plan.

    Attributes:
        revision: the one that it came from; None for bookkeeping.
        line: where in that revision's file; 0 where that is not known.
        may_wait: whether it may wait for a lock while those before it in the transaction hold others.
    """

    sql: str
    revision: str | None = None
    line: int = 0
    may_wait: bool = False


class SegmentKind(StrEnum):
    """How a part of a plan is run."""

    COMPILED = "compiled"
    """SQL that was compiled once, in the transaction."""
    ONLINE = "online"
    """By Alembic on the connection, in the transaction."""
    AUTOCOMMIT = "autocommit"
    """SQL that runs outside of transactions: the one before it ends, and another begins after it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a plan.

    Attributes:
        statements: the SQL; empty where it is online.
        revision: the revision that is run online.
        reason: why that one could not be compiled.
        leaves_transaction: whether it has an autocommit_block().
        recorded: the heads that the version table has when it begins.
        commits: whether it is committed before anything follows: the record of a revision that has ended
            transactions by itself, and must not be run again.
    """

    kind: SegmentKind
    statements: tuple[Statement, ...] = ()
    revision: str | None = None
    reason: str = ""
    leaves_transaction: bool = False
    recorded: Heads = ()
    commits: bool = False

    @property
    def is_border(self) -> bool:
        """Whether a transaction ends before it, and another begins after it."""
        return self.kind is SegmentKind.AUTOCOMMIT or self.leaves_transaction


@dataclass(frozen=True)
class MigrationPlan:
    """From `start` to `end`, in segments of compiled SQL and of revisions that need Alembic while they run,
    because they read the database.

    Attributes:
        start, end: the heads before and after.
        revisions: the revisions applied, oldest first (newest first in a downgrade).
        segments: what is run, in order, version table included.
        is_downgrade: whether `end` is the older one.
        is_stamp: whether it moves the record alone, and whoever asks for it vouches for the rest.
    """

    start: Heads
    end: Heads
    revisions: tuple[Revision, ...]
    segments: tuple[Segment, ...]
    is_downgrade: bool = False
    is_stamp: bool = False

    @property
    def is_empty(self) -> bool:
        return self.start == self.end

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """All compiled SQL."""
        return tuple(statement for segment in self.segments for statement in segment.statements)

    @cached_property
    def online(self) -> str | None:
        """Why a part of it could not be compiled, or None where all of it was."""
        return next((s.reason for s in self.segments if s.kind is SegmentKind.ONLINE), None)

    @cached_property
    def has_borders(self) -> bool:
        """Whether a part of it runs outside of transactions, so that it takes several of them."""
        return any(segment.is_border for segment in self.segments)

    @cached_property
    def spares_session(self) -> bool:
        """Whether all that the revisions do is to define tables and the like, so that nothing of it lasts in
        the session: no setting, no temporary table, no lock, and no function that was called."""
        if self.online or self.has_borders:
            return False
        return all(s.revision is None or _DEFINITION.match(s.sql) for s in self.statements)

    def applied_at(self, heads: Heads) -> tuple[Revision, ...]:
        """The revisions that have been run when the record says `heads`, somewhere on the way."""
        if heads == self.end:
            return self.revisions
        if heads == self.start:
            return ()
        first = next((i for i, segment in enumerate(self.segments) if segment.recorded == heads), None)
        if first is None:
            return ()
        rest = self.segments[first:]
        left = {segment.revision for segment in rest}
        left |= {statement.revision for segment in rest for statement in segment.statements}
        passed = itertools.takewhile(lambda revision: revision.id not in left, self.revisions)
        return tuple(passed)

    @cached_property
    def is_plain(self) -> bool:
        """Whether its compiled statements need nothing between them."""
        return not any(s.may_wait or changes_role(s.sql) for s in self.statements)

    @cached_property
    def sql(self) -> str:
        """The whole text, for people."""
        return "".join(map(_segment_text, self.segments))

    @cached_property
    def sql_hash(self) -> str:
        """SHA-256 of the text, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def _closed(sql: str) -> str:
    """A statement with its semicolon, which a comment at the end must not swallow."""
    return f"{sql}\n;" if "--" in sql.rpartition("\n")[2] else f"{sql};"


def _segment_text(segment: Segment) -> str:
    if segment.kind is SegmentKind.ONLINE:
        return f"-- revision {segment.revision} is run by Alembic on each connection: {segment.reason}\n"
    body = "".join(f"{_closed(statement.sql)}\n" for statement in segment.statements)
    return f"COMMIT;\n{body}BEGIN;\n" if segment.kind is SegmentKind.AUTOCOMMIT else body


def plan_versions(version_table: str, before: Heads, after: Heads) -> list[Statement]:
    """The statements that move the record of a schema's revisions; it is made where there is none."""
    table = quote_ident(version_table)
    statements = []
    if not before:
        # As Alembic makes it: https://alembic.sqlalchemy.org/en/latest/api/runtime.html
        statements.append(
            f"CREATE TABLE IF NOT EXISTS {table} (version_num VARCHAR(32) NOT NULL, "
            f"CONSTRAINT {quote_ident(version_table + '_pkc')} PRIMARY KEY (version_num))"
        )
    gone = [head for head in before if head not in after]
    new = [head for head in after if head not in before]
    for old, head in zip(gone, new, strict=False):
        statements.append(
            f"UPDATE {table} SET version_num = {quote_literal(head)} WHERE version_num = {quote_literal(old)}"
        )
    if len(gone) > len(new):
        rest = ", ".join(map(quote_literal, gone[len(new) :]))
        statements.append(f"DELETE FROM {table} WHERE version_num IN ({rest})")
    if len(new) > len(gone):
        rest = ", ".join(f"({quote_literal(head)})" for head in new[len(gone) :])
        statements.append(f"INSERT INTO {table} (version_num) VALUES {rest}")
    return [Statement(sql) for sql in statements]
