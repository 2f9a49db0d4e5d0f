"""Scratch schemas: built from the revisions, looked at, and gone with their transaction."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from sqlalchemy import Connection, Engine, text

from ..catalog.table import OWN_PREFIX
from ..config import TenantConfig
from ..isolation.run import run_sql
from ..naming import SchemaName, path_sql, quote_ident
from .apply import apply_plan
from .history import History
from .plan import Destination, Heads, Timeouts
from .report import SHARED


def scratch_name(what: str) -> SchemaName:
    """A name that no tenant has."""
    return SchemaName(f"{OWN_PREFIX}scratch_{what}_{secrets.token_hex(6)}")


class Scratch:
    """Scratch schemas in the transaction of `connection`, which the caller rolls back."""

    def __init__(self, connection: Connection, timeouts: Timeouts) -> None:
        self._connection, self._timeouts = connection, timeouts
        self._built: set[SchemaName] = set()

    def build(
        self,
        history: History,
        schema: SchemaName,
        search_path: Sequence[str],
        *,
        target: Heads | None = None,
    ) -> None:
        """Bring `schema` to the newest revision, or to `target`; create it first where it is not there.

        Raises:
            MigrationError: a revision fails.
        """
        if schema not in self._built:
            run_sql(self._connection, f"CREATE SCHEMA {quote_ident(schema)}")
            self._built.add(schema)
        run_sql(self._connection, f"SET LOCAL search_path TO {path_sql(search_path)}")
        if not history.exists:
            return
        to = Destination(f"the scratch schema of {history.label}", schema, tuple(search_path))
        for goal in ("heads",) if target is None else target:
            plan = history.plan_upgrade(self._heads(history, schema), goal)
            if not plan.is_empty:
                apply_plan(self._connection, plan, history, to, self._timeouts)

    def _heads(self, history: History, schema: SchemaName) -> tuple[str, ...]:
        table = f"{quote_ident(schema)}.{quote_ident(history.version_table)}"
        if not self._connection.scalar(text("SELECT to_regclass(:name) IS NOT NULL"), {"name": table}):
            return ()
        return tuple(self._connection.scalars(text(f"SELECT version_num FROM {table} ORDER BY 1")))


def time_plan(
    config: TenantConfig, engine: Engine, tenant_history: History, shared_history: History, start: Heads
) -> float:
    """How long the upgrade from `start` takes in a schema without rows, in seconds; leaves nothing behind.

    Raises:
        MigrationError: a revision fails.
    """
    shared, tenant = scratch_name(SHARED), scratch_name("tenant")
    shared_path = config.schemas.search_path(shared=shared)
    tenant_path = config.schemas.search_path(tenant, shared=shared)
    with engine.connect() as connection:
        scratch = Scratch(connection, Timeouts.of(config))
        try:
            scratch.build(shared_history, shared, shared_path)
            # Down from the newest would need downgrades: up to `start` first, and then the part to be timed.
            scratch.build(tenant_history, tenant, tenant_path, target=start)
            started = time.perf_counter()
            scratch.build(tenant_history, tenant, tenant_path)
            return time.perf_counter() - started
        finally:
            connection.rollback()
