"""Plans: what is to be sent to a schema to bring it from one revision to another. Values, no I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from ..config import TenantConfig
from ..naming import SchemaName

Heads = tuple[str, ...]
"""The revisions a schema is at, sorted; empty at the base. More than one while branches are open."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A schema that a plan is applied to.

    Attributes:
        name: whose it is: a tenant's id, or `shared`.
        schema: its name.
        search_path: the schemas that the statements see, its own first.
    """

    name: str
    schema: SchemaName
    search_path: tuple[str, ...]


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
    """One SQL statement of a plan, and the revision that it came from (None: bookkeeping)."""

    sql: str
    revision: str | None = None


@dataclass(frozen=True)
class MigrationPlan:
    """From `start` to `end`: either compiled, or (`online`) to be run by Alembic on the connection,
    because a revision reads the database while it runs.

    Attributes:
        start, end: the heads before and after.
        revisions: the revisions applied, oldest first (newest first in a downgrade).
        statements: the SQL, version table included; empty where `online`.
        online: why the plan could not be compiled, or None.
    """

    start: Heads
    end: Heads
    revisions: tuple[Revision, ...]
    statements: tuple[Statement, ...]
    online: str | None = None

    @property
    def is_empty(self) -> bool:
        return self.start == self.end

    @cached_property
    def sql(self) -> str:
        """The whole text, for people."""
        return ";\n".join(s.sql for s in self.statements) + (";\n" if self.statements else "")

    @cached_property
    def sql_hash(self) -> str:
        """SHA-256 of the text, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()
