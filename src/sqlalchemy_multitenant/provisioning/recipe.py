"""Recipes: what fills a new tenant's schema."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Connection

from ..isolation.run import run_sql
from ..migrations.apply import apply_plan
from ..migrations.batch import settings_sql
from ..migrations.history import History
from ..migrations.plan import Destination, MigrationPlan, SegmentKind, Timeouts
from ..naming import quote_ident

_LONG = 100
"""From how many statements on replaying a history is slow."""


@dataclass(frozen=True)
class Recipe:
    """The revisions from the first on; or, where a project has none yet, the tables of its models.

    Attributes:
        plan: from nothing to the newest revision; None where there are no revisions.
        history: whose the plan is.
        statements: the DDL of the models, where there is no plan.
    """

    plan: MigrationPlan | None
    history: History
    statements: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """The same for two recipes that make the same: a SHA-256, hexadecimal."""
        parts = ["\n".join(self.statements)]
        if self.plan is not None:
            parts = [self.plan.sql, *self.plan.end]
            parts += [
                self.history.source(str(segment.revision)).code
                for segment in self.plan.segments
                if segment.kind is SegmentKind.ONLINE
            ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def is_slow(self) -> bool:
        """Whether it is worth keeping what it makes."""
        return self.plan is not None and (bool(self.plan.online) or len(self.plan.statements) > _LONG)

    def make(self, connection: Connection, to: Destination, timeouts: Timeouts) -> None:
        """Create the schema and what is in it, in the connection's transaction.

        Raises:
            MigrationError: a revision fails.
        """
        run_sql(connection, f"CREATE SCHEMA {quote_ident(to.schema)}")
        if self.plan is not None:
            apply_plan(connection, self.plan, self.history, to, timeouts, is_new=True)
            return
        run_sql(connection, settings_sql(to.search_path, timeouts))
        for statement in self.statements:
            run_sql(connection, statement)
