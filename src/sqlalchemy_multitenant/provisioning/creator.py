"""Creates one tenant, in one transaction, and says what became of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from ..catalog.members import Membership
from ..catalog.records import TenantRecord, TenantStatus
from ..catalog.store import to_record
from ..catalog.table import TABLE
from ..config import TenantConfig
from ..engines.pipeline import StatementError
from ..errors import (
    MigrationError,
    MultitenantError,
    ProvisioningError,
    TenantCollisionError,
    TenantExistsError,
)
from ..isolation.run import run_sql
from ..migrations.batch import Batch, failed_guard, guard_sql, settings_sql
from ..migrations.plan import Destination, Timeouts
from ..migrations.runner import LOST, MAX_ATTEMPTS, transient_reason
from ..naming import SchemaName, TenantId, quote_ident
from .builder import SchemaBuilder
from .recipe import Recipe
from .seed import Seed, run_seed
from .spares import SpareStore

_TAKEN = "taken"
"""The guard of an id that is to be a new one."""

_DUPLICATE_SCHEMA, _UNIQUE_VIOLATION = "42P06", "23505"


class Creator:
    """Creates tenants one by one; safe to use from several threads.

    Args:
        get_engine: an engine for looking at who is there.
    """

    def __init__(
        self,
        config: TenantConfig,
        members: Membership,
        builder: SchemaBuilder,
        spares: SpareStore,
        get_engine: Callable[[], Engine],
    ) -> None:
        self._config, self._members, self._builder = config, members, builder
        self._spares, self._get_engine = spares, get_engine

    def create(
        self,
        engine: Engine,
        tenant: TenantId,
        schema: SchemaName,
        recipe: Recipe,
        *,
        metadata: Mapping[str, Any] | None = None,
        seed: Seed | None,
        spares: bool = True,
        waits: bool = True,
    ) -> TenantRecord:
        """Create one tenant, over a connection of `engine`; try again where others were in the way, and no
        seed has been called.

        Args:
            spares: whether there may be any.
            waits: whether the commit waits for the disk; else the caller has to see to that in the end.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return self._try(engine, tenant, schema, recipe, metadata, seed, spares, waits)
            except ProvisioningError as error:
                reason = transient_reason(error)
                if seed is not None or reason in (None, LOST) or attempt == MAX_ATTEMPTS:
                    raise
            time.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311 - no secret
        raise AssertionError

    def _try(
        self,
        engine: Engine,
        tenant: TenantId,
        schema: SchemaName,
        recipe: Recipe,
        metadata: Mapping[str, Any] | None,
        seed: Seed | None,
        spares: bool,
        waits: bool,
    ) -> TenantRecord:
        path = self._config.schemas.search_path(schema)
        records = [TenantRecord(id=tenant, status=TenantStatus.ACTIVE, schema=schema)]
        timeouts = Timeouts.of(self._config)
        try:
            with engine.begin() as connection:
                # All that can goes in one message: nothing else costs a new tenant as much as round trips.
                batch = Batch.within(connection, tenant)
                # Before anything that may wait for others.
                batch.add(f"SET LOCAL lock_timeout = {max(round(timeouts.lock_s * 1000), 1)}")
                if not waits:
                    batch.add("SET LOCAL synchronous_commit = off")
                if self._members.uses_catalog:
                    # First, so that a second creation of the same id waits here and then finds it taken.
                    self.record(batch, tenant, schema, metadata or {}, records)
                else:
                    self._members.claims.grant(tenant, schema)
                if not (spares and self._take_spare(connection, recipe, schema, batch)):
                    to = Destination(tenant, schema, path, tenant)
                    self._builder.make(connection, recipe, to, batch, commits=seed is None)
                if seed is not None:
                    run_sql(connection, settings_sql(path, timeouts))
                    run_seed(connection, seed, tenant)
            return records[-1]
        except TenantCollisionError:
            raise
        except BaseException as error:
            self._members.claims.forget(schema)  # it may be another's; whose it is will be learned anew
            if isinstance(error, MigrationError):
                raise ProvisioningError(tenant, f"nothing was created: {error}") from error
            if isinstance(error, DBAPIError | StatementError | psycopg.Error):
                raise self.explain(error, tenant, schema) from error
            raise

    def record(
        self,
        batch: Batch,
        tenant: TenantId,
        schema: SchemaName,
        metadata: Mapping[str, Any],
        records: list[TenantRecord],
    ) -> None:
        """Have the tenant put into the catalog; its record is appended to `records` when that is done."""
        added = self._members.store.add_sql(tenant, schema, metadata)
        is_new = guard_sql("added.id IS NOT NULL", _TAKEN)
        # One row, always: where none was added, the guard must be evaluated nevertheless.
        rows = f"SELECT added.*, {is_new} FROM (VALUES (1)) AS one LEFT JOIN added ON true"
        batch.add(
            f"WITH added AS ({added}) {rows}",
            read=lambda found: records.extend(to_record(row[:-1]) for row in found),
        )

    def _take_spare(self, connection: Connection, recipe: Recipe, schema: SchemaName, batch: Batch) -> bool:
        installed: list[tuple[bool]] = []
        batch.add(self._spares.installed_sql, read=installed.extend)
        batch.send()
        if not installed[0][0]:
            return False
        spare = self._spares.take(connection, recipe.key)
        if spare is None:
            return False
        run_sql(connection, f"ALTER SCHEMA {quote_ident(spare)} RENAME TO {quote_ident(schema)}")
        return True

    def explain(
        self, error: DBAPIError | StatementError | psycopg.Error, tenant: TenantId, schema: SchemaName
    ) -> MultitenantError:
        """What an error of the server's means for a tenant that was to be created, or adopted."""
        said: Any = error.orig if isinstance(error, DBAPIError) else getattr(error, "error", error)
        sqlstate = getattr(said, "sqlstate", None)
        if failed_guard(said) == _TAKEN:
            return TenantExistsError(tenant)
        if sqlstate == _DUPLICATE_SCHEMA:
            if not self._members.uses_catalog:
                return TenantExistsError(tenant, f"schema {schema!r} exists already")
            return TenantExistsError(
                tenant,
                f"schema {schema!r} exists already, with data that belongs to no tenant of the catalog; "
                "nothing was changed. Drop or rename the schema, or choose another id",
            )
        # A revision's rows, or a seed's, may be none of the catalog's business.
        is_catalogs = getattr(getattr(said, "diag", None), "table_name", None) in (TABLE, "pg_namespace")
        if sqlstate == _UNIQUE_VIOLATION and is_catalogs:
            with self._get_engine().connect() as connection:
                others = [m for m in self._members.list(connection) if m.schema == schema]
            if others and others[0].id != tenant:
                return TenantCollisionError(tenant, schema, others[0].id)
            return TenantExistsError(tenant)
        outcome = "nothing was created"
        if isinstance(said, psycopg.OperationalError) and sqlstate is None:
            # The commit was sent along: it may have come through, and its answer not.
            outcome = "the connection was lost, and it is not known whether it was created; create it again"
        return ProvisioningError(tenant, f"{outcome}: {str(said).strip()}")
