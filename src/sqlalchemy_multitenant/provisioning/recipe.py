"""Recipes: what fills a new tenant's schema."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Connection

from ..migrations.apply import apply_plan
from ..migrations.batch import Batch, settings_sql
from ..migrations.history import History
from ..migrations.plan import Destination, MigrationPlan, SegmentKind, Timeouts
from ..naming import quote_ident

_DDL = re.compile(r"\s*(?:ALTER|COMMENT|CREATE(?!\s+CAST)|DROP)\b(?!\s+PUBLICATION)", re.IGNORECASE)
# The time, the schema's own name, what else there is in the database, and what lies outside of the schema.
_CIRCUMSTANCES = re.compile(
    r"\b(?:current_(?:date|time|timestamp|schemas?)|localtime(?:stamp)?|now|today|utcnow|age"
    r"|(?:clock|statement|transaction)_timestamp|inspect|has_table|get_table_names|get_columns"
    r"|publication|cast\s*\(\s*\w+\s+as\s+\w+\s*\)\s+with)\b",
    re.IGNORECASE,
)

_LONG = 100
"""From how many statements on replaying a history is slow."""


@dataclass(frozen=True)
class Recipe:
    """The revisions from the first on; or, where a project has none yet, the tables of its models.

    Attributes:
        plan: from nothing to the newest revision; None where there are no revisions.
        history: whose the plan is.
        statements: the DDL of the models, where there is no plan.
        search_path: what follows the schema itself on its path.
    """

    plan: MigrationPlan | None
    history: History
    statements: tuple[str, ...] = ()
    search_path: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """The same for two recipes that make the same: a SHA-256, hexadecimal."""
        parts = [*self.search_path, *self.statements]
        if self.plan is not None:
            parts += [self.plan.sql, *self.plan.end, self.history.environment_hash]
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

    @cached_property
    def depends_on_circumstances(self) -> bool:
        """Whether what it writes may be something else tomorrow, or for another name: what it makes is then
        not to be kept, even where it is twice the same today."""
        if self.plan is None:
            return False
        texts = [
            self.history.read_source(str(segment.revision))
            for segment in self.plan.segments
            if segment.kind is SegmentKind.ONLINE
        ]
        texts += [s.sql for s in self.plan.statements if not _DDL.match(s.sql)]
        return any(_CIRCUMSTANCES.search(text) for text in texts)

    def make(
        self,
        connection: Connection,
        to: Destination,
        timeouts: Timeouts,
        *,
        batch: Batch | None = None,
        commits: bool = False,
    ) -> None:
        """Create the schema and what is in it, in the connection's transaction.

        Args:
            batch, commits: see `apply_plan`.

        Raises:
            MigrationError: a revision fails.
            psycopg.Error: the server refuses, for example because there is such a schema.
        """
        batch = batch or Batch.within(connection, to.tenant)
        batch.add(f"CREATE SCHEMA {quote_ident(to.schema)}")
        if self.plan is not None:
            into = (connection, self.plan, self.history, to, timeouts)
            apply_plan(*into, is_new=True, batch=batch, commits=commits)
            return
        batch.add(settings_sql(to.search_path, timeouts))
        for statement in self.statements:
            batch.add(statement)
        if commits:
            batch.add("COMMIT")
        batch.send()
