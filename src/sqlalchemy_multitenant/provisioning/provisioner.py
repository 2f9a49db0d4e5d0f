"""Creates and drops tenants: each in one transaction, so that nothing half-made is ever seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError

from ..catalog.members import Member, Membership
from ..catalog.records import TenantRecord, TenantStatus
from ..config import TenantConfig
from ..engines.admin import make_admin_engine
from ..errors import (
    ConfigurationError,
    InvalidTenantIdError,
    MigrationError,
    MultitenantError,
    ProvisioningError,
    TenantBusyError,
    TenantCollisionError,
    TenantExistsError,
    TenantNotFoundError,
)
from ..isolation.run import run_sql
from ..migrations.apply import apply_plan
from ..migrations.batch import lock_key, settings_sql
from ..migrations.fleet import read_heads
from ..migrations.history import History, dialect_of
from ..migrations.plan import Destination, Heads, MigrationPlan, Timeouts
from ..migrations.requirements import require_shared
from ..naming import SchemaName, TenantId, parse_tenant_id, quote_ident
from .models import plan_tables

_DUPLICATE_SCHEMA, _UNIQUE_VIOLATION, _LOCK_NOT_AVAILABLE = "42P06", "23505", "55P03"


class Provisioner:
    """Creates and drops tenants, and keeps the catalog."""

    def __init__(self, config: TenantConfig, url: URL) -> None:
        self.config = config
        self.members = Membership(config, lambda: self.engine)
        self._url = url
        self._lock = Lock()
        self._engine: Engine | None = None
        self._closed = False
        folder, table = Path(config.migrations.tenant_dir), config.migrations.version_table
        self._history = History(folder, table, "tenant", lambda: self._dialect)
        shared = Path(config.migrations.shared_dir)
        self._shared_history = History(shared, table, "shared", lambda: self._dialect)
        self._installed = False

    @property
    def engine(self) -> Engine:
        with self._lock:
            if self._closed:
                raise RuntimeError("this manager is closed; build a new one")
            if self._engine is None:
                self._engine = make_admin_engine(
                    self.config, self._url, pool_size=max(self.config.connection.pool_size, 2)
                )
            return self._engine

    @cached_property
    def _dialect(self) -> Dialect:
        with self.engine.connect() as connection:
            return dialect_of(connection)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        with self._lock:
            self._closed = True
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None

    def create(
        self, tenant: str, *, schema: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> TenantRecord:
        """See `TenantManager.create_tenant`."""
        parsed = parse_tenant_id(tenant)
        name = self._schema(parsed, schema)
        try:
            json.dumps(dict(metadata or {}))
        except (TypeError, ValueError) as error:
            raise ConfigurationError("metadata", metadata, f"a dict that JSON can hold: {error}") from error
        if self.members.uses_catalog:
            self._install()
        else:
            self.list()  # the ids that the application lists have the first claim to their schemas
        plan = self._plan(parsed)  # before the transaction: to compile takes a connection as well
        try:
            with self.engine.begin() as connection:
                return self._create(connection, parsed, name, metadata or {}, plan)
        except MigrationError as error:
            raise ProvisioningError(parsed, f"nothing was created: {error}") from error
        except DBAPIError as error:
            raise self._explain(error, parsed, name) from error

    def _schema(self, tenant: TenantId, override: str | None) -> SchemaName:
        if override is None:
            return self.config.naming.schema_for(tenant)
        if not self.members.uses_catalog:
            raise ConfigurationError(
                "schema", override, "only the catalog can hold it; `discover` is configured"
            )
        return self.config.naming.check(tenant, override)

    def _install(self) -> None:
        if self._installed:
            return
        with self.engine.begin() as connection:
            self.members.store.install(connection)
        self._installed = True

    def _plan(self, tenant: TenantId) -> MigrationPlan | None:
        """What builds a new tenant's tables; None where that is left to the models."""
        if not self._history.exists:
            self._refuse_lost_history(tenant)
            return None
        try:
            plan = self._history.plan_upgrade(())
            require_shared([plan], self._history, self._shared_history, self._read_shared_heads)
        except MigrationError as error:
            raise ProvisioningError(tenant, f"nothing was created: {error}") from error
        return plan

    def _read_shared_heads(self) -> Heads:
        name = SchemaName(self.config.schemas.shared_schema)
        with self.engine.connect() as connection:
            return read_heads(connection, [name], self._history.version_table)[name] or ()

    def _create(
        self,
        connection: Connection,
        tenant: TenantId,
        schema: SchemaName,
        metadata: Mapping[str, Any],
        plan: MigrationPlan | None,
    ) -> TenantRecord:
        timeouts = Timeouts.of(self.config)
        if self.members.uses_catalog:
            # First, so that a second creation of the same id waits here and then finds it taken.
            record = self.members.store.add(connection, tenant, schema, metadata)
        else:
            self.members.claims.grant(tenant, schema)
            record = TenantRecord(id=tenant, status=TenantStatus.ACTIVE, schema=schema)
        run_sql(connection, f"CREATE SCHEMA {quote_ident(schema)}")
        path = self.config.schemas.search_path(schema)
        if plan is not None:
            to = Destination(tenant, schema, path, tenant)
            apply_plan(connection, plan, self._history, to, timeouts, is_new=True)
            return record
        run_sql(connection, settings_sql(path, timeouts))
        for statement in plan_tables(self.config.schemas.tenant):
            run_sql(connection, statement)
        return record

    def _refuse_lost_history(self, tenant: TenantId) -> None:
        """A project without a folder of revisions gets its tables from the models. But where there is a
        folder, or where other tenants were migrated, there ought to be revisions."""
        folder = self._history.directory
        mend = "run `multitenant generate --name first`, or give migrations.tenant_dir as an absolute path"
        if folder.exists():
            raise ProvisioningError(
                tenant, f"nothing was created: {folder.resolve()} holds no revisions; {mend}"
            )
        with self.engine.connect() as connection:
            schemas = [member.schema for member in self.members.list(connection)]
            heads = read_heads(connection, schemas, self._history.version_table)
        for schema, at in heads.items():
            if at:
                raise ProvisioningError(
                    tenant,
                    f"there is no folder {folder.resolve()}, yet schema {schema!r} has been migrated; {mend}",
                )

    def _explain(self, error: DBAPIError, tenant: TenantId, schema: SchemaName) -> MultitenantError:
        sqlstate = getattr(error.orig, "sqlstate", None)
        if sqlstate == _DUPLICATE_SCHEMA:
            if not self.members.uses_catalog:
                return TenantExistsError(tenant, f"schema {schema!r} exists already")
            return TenantExistsError(
                tenant,
                f"schema {schema!r} exists already, with data that belongs to no tenant of the catalog; "
                "nothing was changed. Drop or rename the schema, or choose another id",
            )
        if sqlstate == _UNIQUE_VIOLATION:
            with self.engine.connect() as connection:
                others = [m for m in self.members.list(connection) if m.schema == schema]
            if others and others[0].id != tenant:
                return TenantCollisionError(tenant, schema, others[0].id)
            return TenantExistsError(tenant)
        return ProvisioningError(tenant, f"nothing was created: {str(error.orig).strip()}")

    def drop(self, tenant: str) -> None:
        """See `TenantManager.drop_tenant`."""
        member = self._member(tenant)
        timeouts = Timeouts(self.config.migrations.lock_timeout_s, None)
        try:
            with self.engine.begin() as connection:
                run_sql(connection, settings_sql((self.config.schemas.shared_schema,), timeouts))
                if self.members.uses_catalog:
                    member = self.members.lock(connection, member.id)
                if not connection.scalar(
                    text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": lock_key(member.schema)}
                ):
                    raise TenantBusyError(member.id, "it is being migrated; nothing was dropped, try again")
                run_sql(connection, f"DROP SCHEMA IF EXISTS {quote_ident(member.schema)} CASCADE")
                if self.members.uses_catalog:
                    self.members.store.mark_dropped(connection, member.id)
        except DBAPIError as error:
            reason = str(error.orig).strip()
            if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                raise TenantBusyError(
                    member.id, f"its tables are in use; nothing was dropped, try again ({reason})"
                ) from error
            raise ProvisioningError(member.id, f"nothing was dropped: {reason}") from error

    def _member(self, tenant: str) -> Member:
        with self.engine.connect() as connection:
            member = self.members.find(connection, tenant)
        if member is None:
            raise TenantNotFoundError(parse_tenant_id(tenant))
        return member

    def exists(self, tenant: str) -> bool:
        """See `TenantManager.tenant_exists`."""
        try:
            self.get(tenant)
        except (TenantNotFoundError, InvalidTenantIdError):  # such as one that meets another's
            return False
        return True

    def get(self, tenant: str) -> TenantRecord:
        """See `TenantManager.get_tenant`."""
        parsed = parse_tenant_id(tenant)
        with self.engine.connect() as connection:
            if self.members.uses_catalog:
                store = self.members.store
                record = store.find(connection, parsed) if store.is_installed(connection) else None
                if record is None or record.status is TenantStatus.DROPPED:
                    raise TenantNotFoundError(parsed)
                return record
            schema = self.config.naming.schema_for(parsed)
            if not connection.scalar(
                text("SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = :name"), {"name": schema}
            ):
                raise TenantNotFoundError(parsed)
            if self.members.claims.is_open(parsed, schema):
                self.members.list(connection)
            self.members.claims.check(parsed, schema)
            return TenantRecord(id=parsed, status=TenantStatus.ACTIVE, schema=schema)

    def list(self) -> Sequence[TenantRecord]:
        """See `TenantManager.list_tenants`."""
        with self.engine.connect() as connection:
            if not self.members.uses_catalog:
                members = self.members.list(connection)
                return [TenantRecord(id=m.id, status=m.status, schema=m.schema) for m in members]
            store = self.members.store
            return store.list(connection) if store.is_installed(connection) else []

    def set_status(self, tenant: str, status: TenantStatus | str) -> None:
        """See `TenantManager.set_tenant_status`."""
        parsed = parse_tenant_id(tenant)
        try:
            wanted = TenantStatus(status)
        except ValueError as error:
            raise ConfigurationError("status", status, "'active' or 'suspended'") from error
        if wanted is TenantStatus.DROPPED:
            raise ConfigurationError("status", status, "use drop_tenant(), which drops the data, too")
        if not self.members.uses_catalog:
            raise ConfigurationError(
                "status", status, "the catalog keeps it, and `discover` is configured in its stead"
            )
        with self.engine.begin() as connection:
            if not self.members.store.is_installed(connection):
                raise TenantNotFoundError(parsed)
            self.members.store.set_status(connection, parsed, wanted)
