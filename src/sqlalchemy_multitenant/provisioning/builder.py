"""Builds the schemas of new tenants: by a recipe, or from a snapshot of what it makes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError

from ..catalog.members import Membership
from ..config import TenantConfig
from ..errors import MigrationError, ProvisioningError
from ..migrations.fleet import read_heads
from ..migrations.history import History
from ..migrations.plan import Destination, Heads, Timeouts
from ..migrations.requirements import require_shared
from ..naming import SchemaName
from .models import plan_tables
from .recipe import Recipe
from .snapshot import Snapshot, SnapshotError, take_snapshot

_WORTH_A_SNAPSHOT = 3
"""How many tenants a process has to create for it to be quicker with a snapshot, which takes two of them."""


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
        settings = config.migrations
        self._history = History(Path(settings.tenant_dir), settings.version_table, "tenant", make_dialect)
        self._shared_history = History(
            Path(settings.shared_dir), settings.version_table, "shared", make_dialect
        )
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
        if not self._history.exists:
            self._refuse_lost_history(tenant)
            return Recipe(None, self._history, tuple(plan_tables(self._config.schemas.tenant)))
        try:
            plan = self._history.plan_upgrade(())
            require_shared([plan], self._history, self._shared_history, self._read_shared_heads)
        except MigrationError as error:
            raise ProvisioningError(tenant, f"nothing was created: {error}") from error
        return Recipe(plan, self._history)

    def prepare(self, recipe: Recipe, count: int = 1) -> None:
        """Before `count` schemas are made, outside of any transaction: see to a snapshot, where that pays."""
        with self._lock:
            self._made += count
            if self._made < _WORTH_A_SNAPSHOT or not recipe.is_slow or not self._may_have_snapshot:
                return
            if self._snapshot is None:
                self._snapshot = take_snapshot(
                    self._config,
                    self._get_engine(),
                    self._url,
                    lambda connection, to: recipe.make(connection, to, self._timeouts),
                )
            self._may_have_snapshot = self._snapshot is not None

    def make(self, connection: Connection, recipe: Recipe, to: Destination) -> None:
        """Create a schema and what is in it, in the connection's transaction.

        Raises:
            MigrationError: a revision fails.
            DBAPIError: the server refuses, for example because there is such a schema.
        """
        snapshot = self._snapshot
        if snapshot is None or not Snapshot.can_name(to.schema):
            recipe.make(connection, to, self._timeouts)
            return
        savepoint = connection.begin_nested()
        try:
            snapshot.make(connection, to, self._timeouts)
            savepoint.commit()
        except (DBAPIError, SnapshotError):
            # The shared schema is not what it was, perhaps. The revisions decide.
            savepoint.rollback()
            self._snapshot, self._may_have_snapshot = None, False
            recipe.make(connection, to, self._timeouts)

    def _read_shared_heads(self) -> Heads:
        name = SchemaName(self._config.schemas.shared_schema)
        with self._get_engine().connect() as connection:
            return read_heads(connection, [name], self._history.version_table)[name] or ()

    def _refuse_lost_history(self, tenant: str) -> None:
        """A project without a folder of revisions gets its tables from the models. But where there is a
        folder, or where other tenants were migrated, there ought to be revisions."""
        folder = self._history.directory
        mend = "run `multitenant generate --name first`, or give migrations.tenant_dir as an absolute path"
        if folder.exists():
            raise ProvisioningError(
                tenant, f"nothing was created: {folder.resolve()} holds no revisions; {mend}"
            )
        with self._get_engine().connect() as connection:
            schemas = [member.schema for member in self._members.list(connection)]
            heads = read_heads(connection, schemas, self._history.version_table)
        for schema, at in heads.items():
            if at:
                raise ProvisioningError(
                    tenant,
                    f"there is no folder {folder.resolve()}, yet schema {schema!r} has been migrated; {mend}",
                )
