"""Recipes: what fills a new tenant's schema."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Connection

from ..migrations.apply import apply_plan
from ..migrations.batch import Batch, settings_sql
from ..migrations.history import History
from ..migrations.plan import Destination, MigrationPlan, SegmentKind, Timeouts
from ..migrations.revision_file import RevisionFile
from ..naming import quote_ident

_DDL = re.compile(r"\s*(?:ALTER|COMMENT|CREATE(?!\s+CAST)|DROP)\b(?!\s+PUBLICATION)", re.IGNORECASE)
# The time, the schema's own name, what else there is in the database, and what lies outside of the schema.
_CIRCUMSTANCES = re.compile(
    r"\b(?:current_(?:date|time|timestamp|schemas?)|localtime(?:stamp)?|now|today|utcnow|age"
    r"|(?:clock|statement|transaction)_timestamp|inspect|has_table|get_table_names|get_columns"
    r"|current_setting|information_schema|last_value"
    r"|pg_(?:attribute|class|database|namespace|proc|roles|sequences?|settings|stat\w*|tables|type|views)"
    r"|publication|cast\s*\(\s*\w+\s+as\s+\w+\s*\)\s+with)\b",
    re.IGNORECASE,
)

_STABLE = sys.stdlib_module_names | {"alembic", "psycopg", "sqlalchemy", "sqlalchemy_multitenant"}
"""What a new version of the application does not change."""

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
            parts += [file.hash.code for file in self._online.values()]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def _online(self) -> Mapping[str, RevisionFile]:
        """The revisions that are run by Alembic."""
        if self.plan is None:
            return {}
        online = [str(s.revision) for s in self.plan.segments if s.kind is SegmentKind.ONLINE]
        return {revision: self.history.file_of(revision) for revision in online}

    @property
    def imports(self) -> Mapping[str, frozenset[str]]:
        """What the revisions that are run by Alembic import and what may be another tomorrow, by revision."""
        found = {revision: file.imports - _STABLE for revision, file in self._online.items()}
        return {revision: names for revision, names in found.items() if names}

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
        texts = [file.content.decode() for file in self._online.values()]
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
