"""Builds the schemas of new tenants: by a recipe, or from a snapshot of what it makes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError

from ..catalog.members import Membership
from ..config import TenantConfig
from ..errors import MigrationError, ProvisioningError
from ..migrations.batch import Batch
from ..migrations.fleet import read_heads
from ..migrations.history import History
from ..migrations.plan import Destination, Heads, Timeouts
from ..migrations.requirements import require_shared
from ..naming import SchemaName
from .models import plan_tables
from .others import OtherTables
from .recipe import Recipe
from .snapshot import Snapshot, SnapshotError, take_snapshot

logger = logging.getLogger("sqlalchemy_multitenant")

_WORTH_A_SNAPSHOT = 3
"""How many tenants a process has to create for it to be quicker with a snapshot, which takes two of them."""


# The schema is there already; a lock timeout, a cancelled statement, a serialization failure, a deadlock.
_NO_FAULTS = frozenset({"42P06", "55P03", "57014", "40001", "40P01"})


def _is_no_fault(error: DBAPIError) -> bool:
    """Whether the revisions would have failed with the same error."""
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _NO_FAULTS


class SchemaBuilder:
    """Makes schemas by the newest recipe.

    Args:
        get_engine: an engine for looking, and for making reference schemas.
        make_dialect: as for `History`.
    """

    def __init__(
        self,
        config: TenantConfig,
        url: URL,
        members: Membership,
        get_engine: Callable[[], Engine],
        make_dialect: Callable[[], Dialect],
    ) -> None:
        self._config, self._url, self._members, self._get_engine = config, url, members, get_engine
        self.history = History.of(config, "tenant", make_dialect)
        self._shared_history = History.of(config, "shared", make_dialect)
        self._timeouts = Timeouts.of(config)
        self._lock = threading.Lock()
        self._made = 0
        self._snapshot: Snapshot | None = None
        self._may_have_snapshot = True

    def recipe(self, tenant: str) -> Recipe:
        """What a new schema is made of now; compiled once.

        Args:
            tenant: for messages.

        Raises:
            ProvisioningError: there ought to be revisions, and are none; or they need a shared revision that
                is not there.
        """
        if not self.history.exists:
            self._refuse_lost_history(tenant)
            statements = tuple(plan_tables(self._config.schemas.tenant))
            return Recipe(None, self.history, statements, self._config.schemas.search_path())
        try:
            plan = self.history.plan_upgrade(())
            require_shared([plan], self.history, self._shared_history, self._read_shared_heads)
        except MigrationError as error:
            raise ProvisioningError(tenant, f"nothing was created: {error}") from error
        return Recipe(plan, self.history, search_path=self._config.schemas.search_path())

    def prepare(self, recipe: Recipe, count: int = 1) -> None:
        """Before `count` schemas are made, outside of any transaction: see to a snapshot, where that pays."""
        with self._lock:
            self._made += count
            if self._snapshot is not None and self._snapshot.is_old:
                self._snapshot = None
            if self._made < _WORTH_A_SNAPSHOT or not recipe.is_slow or not self._may_have_snapshot:
                return
            if recipe.depends_on_circumstances:
                self._may_have_snapshot = False
                return
            if self._snapshot is None:
                self._snapshot = take_snapshot(
                    self._config,
                    self._get_engine(),
                    self._url,
                    lambda connection, to: recipe.make(connection, to, self._timeouts),
                )
            self._may_have_snapshot = self._snapshot is not None

    def make(
        self, connection: Connection, recipe: Recipe, to: Destination, batch: Batch, *, commits: bool = False
    ) -> None:
        """Create a schema and what is in it, in the connection's transaction.

        Args:
            batch: what is to be sent before.
            commits: the transaction may be committed with it, or is left to the caller.

        Raises:
            MigrationError: a revision fails.
            DBAPIError, psycopg.Error: the server refuses, for example because there is such a schema.
        """
        snapshot = self._snapshot
        if snapshot is None or snapshot.is_old or not Snapshot.can_name(to.schema):
            recipe.make(connection, to, self._timeouts, batch=batch, commits=commits)
            return
        batch.send()
        savepoint = connection.begin_nested()
        try:
            snapshot.make(connection, to, self._timeouts)
            savepoint.commit()
        except (DBAPIError, SnapshotError) as error:
            if isinstance(error, DBAPIError) and _is_no_fault(error):
                raise
            # The shared schema is not what it was, perhaps. The revisions decide.
            logger.info("a snapshot of a new tenant is given up: %s", error)
            savepoint.rollback()
            self._snapshot, self._may_have_snapshot = None, False
            recipe.make(connection, to, self._timeouts)

    def make_for_anybody(self, connection: Connection, recipe: Recipe, to: Destination) -> None:
        """As `make`, of a schema that is kept for a tenant to come.

        Raises:
            MigrationError: a revision fails, or what it makes depends on something that may change.
        """
        for revision, names in recipe.imports.items():
            raise MigrationError(
                f"no schema can be made ahead: it imports {', '.join(sorted(names))}, which may do something "
                "else tomorrow; copy what it uses into it",
                revision=revision,
            )
        others = OtherTables(connection, to.schema)
        self.make(connection, recipe, to, Batch.within(connection, to.tenant))
        if recipe.depends_on_circumstances or others.were_touched():
            raise MigrationError(
                "no schema can be made ahead: the revisions read or write outside of it, or write the time "
                "or the schema's name, which would be another for another tenant"
            )

    def _read_shared_heads(self) -> Heads:
        name = SchemaName(self._config.schemas.shared_schema)
        with self._get_engine().connect() as connection:
            return read_heads(connection, [name], self.history.version_table)[name] or ()

    def _refuse_lost_history(self, tenant: str) -> None:
        """A project without a folder of revisions gets its tables from the models. But where there is a
        folder, or where other tenants were migrated, there ought to be revisions."""
        folder = self.history.directory
        mend = "run `multitenant generate --name first`, or give migrations.tenant_dir as an absolute path"
        if folder.exists():
            raise ProvisioningError(
                tenant, f"nothing was created: {folder.resolve()} holds no revisions; {mend}"
            )
        with self._get_engine().connect() as connection:
            schemas = [member.schema for member in self._members.list(connection)]
            heads = read_heads(connection, schemas, self.history.version_table)
        for schema, at in heads.items():
            if at:
                raise ProvisioningError(
                    tenant,
                    f"there is no folder {folder.resolve()}, yet schema {schema!r} has been migrated; {mend}",
                )
