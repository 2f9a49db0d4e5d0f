"""Reading and writing the catalog's table, over a plain SQLAlchemy `Connection`.

The functions are sync; asyncio reaches them through `AsyncConnection.run_sync`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from ..errors import TenantNotFoundError
from ..isolation.run import run_sql
from ..naming import SchemaName, TenantId, quote_literal
from .records import TenantRecord, TenantStatus
from .table import TABLE, installed_epoch_sql, plan_install, qualified

_COLUMNS = "id, status, schema_name, metadata, created_at, updated_at, dropped_at"


def to_record(row: Row[Any] | tuple[Any, ...]) -> TenantRecord:
    """The record from a row of all columns."""
    tenant, status, schema, metadata, created, updated, dropped = tuple[Any, ...](row)
    return TenantRecord(
        id=TenantId(tenant),
        status=TenantStatus(status),
        schema=None if schema is None else SchemaName(schema),
        metadata=metadata,
        created_at=created,
        updated_at=updated,
        dropped_at=dropped,
    )


class CatalogStore:
    """The catalog in one shared schema."""

    def __init__(self, shared_schema: str) -> None:
        self.shared_schema = shared_schema
        self._table = qualified(shared_schema, TABLE)

    def is_installed(self, connection: Connection) -> bool:
        """Whether the table and what belongs to it are there."""
        return self.epoch(connection) is not None

    def epoch(self, connection: Connection) -> str | None:
        """What it is called that the catalog has its present state; None where it is not installed."""
        epoch: str | None = connection.scalar(text(installed_epoch_sql(self.shared_schema)))
        return epoch

    def is_at(self, connection: Connection, epoch: str | None) -> bool:
        """Whether the catalog is in that state now, whatever the transaction's snapshot shows."""
        if epoch is None:
            return False
        name = quote_literal(qualified(self.shared_schema, epoch))
        return bool(run_sql(connection, f"SELECT to_regclass({name}) IS NOT NULL").scalar())

    def install(self, connection: Connection) -> bool:
        """Install what is missing, in the connection's transaction; returns whether anything was."""
        if self.is_installed(connection):
            return False
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('multitenant install'))"))
        if self.is_installed(connection):
            return False
        for statement in plan_install(self.shared_schema):
            run_sql(connection, statement)
        return True

    def find(self, connection: Connection, tenant: TenantId, *, lock: bool = False) -> TenantRecord | None:
        """The tenant's record, dropped ones too, or None; locked for the transaction on request."""
        row = connection.execute(
            text(f"SELECT {_COLUMNS} FROM {self._table} WHERE id = :id {'FOR UPDATE' if lock else ''}"),
            {"id": tenant},
        ).one_or_none()
        return None if row is None else to_record(row)

    def list(self, connection: Connection) -> Sequence[TenantRecord]:
        """All records but those of dropped tenants, by id."""
        rows = connection.execute(
            text(f"SELECT {_COLUMNS} FROM {self._table} WHERE status <> 'dropped' ORDER BY id COLLATE \"C\"")
        )
        return [to_record(row) for row in rows.all()]

    def schemas(self, connection: Connection) -> Sequence[tuple[TenantId, SchemaName, TenantStatus]]:
        """Of each tenant but dropped ones the id, the schema and the status, by id."""
        rows = connection.execute(
            text(
                f"SELECT id, schema_name, status FROM {self._table} "
                "WHERE status <> 'dropped' AND schema_name IS NOT NULL ORDER BY id COLLATE \"C\""
            )
        )
        return [(TenantId(row[0]), SchemaName(row[1]), TenantStatus(row[2])) for row in rows.all()]

    def differing(
        self, connection: Connection, known: Sequence[tuple[TenantId, SchemaName, TenantStatus]]
    ) -> Sequence[tuple[TenantId, TenantStatus | None, bool]]:
        """Those whose schema or status is not what is known of them: with their status, None where there is
        no record, and whether they have another schema."""
        statement = text(
            "SELECT u.id, t.status, t.schema_name IS DISTINCT FROM u.schema "
            "FROM json_to_recordset(CAST(:known AS json)) "
            f"AS u(id text, status text, schema text) LEFT JOIN {self._table} AS t ON t.id = u.id "
            "WHERE (t.status, t.schema_name) IS DISTINCT FROM (u.status, u.schema)"
        )
        rows = [{"id": id_, "schema": schema, "status": status.value} for id_, schema, status in known]
        found = connection.execute(statement, {"known": json.dumps(rows)}).all()
        return [(TenantId(id_), status and TenantStatus(status), moved) for id_, status, moved in found]

    def add_sql(self, tenant: TenantId, schema: SchemaName, metadata: Mapping[str, Any]) -> str:
        """A statement that records a new tenant, or one that was dropped and comes again. It returns the
        row for `to_record`, or none where the id is taken; it fails where another tenant has the schema, and
        waits where another transaction is adding the same id or schema."""
        values = ", ".join(
            map(quote_literal, (tenant, schema, json.dumps(dict(metadata), ensure_ascii=False)))
        )
        return (
            f"INSERT INTO {self._table} AS t (id, schema_name, metadata) VALUES ({values}) "
            "ON CONFLICT (id) DO UPDATE SET status = 'active', schema_name = excluded.schema_name, "
            "metadata = excluded.metadata, created_at = now(), updated_at = now(), dropped_at = NULL "
            f"WHERE t.status = 'dropped' RETURNING {_COLUMNS}"
        )

    def set_status(self, connection: Connection, tenant: TenantId, status: TenantStatus) -> None:
        """Suspend or activate a tenant; in force at the next BEGIN of every process.

        Raises:
            TenantNotFoundError: there is none, or it was dropped.
        """
        done = connection.scalar(
            text(
                f"UPDATE {self._table} SET status = :status, updated_at = now() "
                "WHERE id = :id AND status <> 'dropped' RETURNING id"
            ),
            {"id": tenant, "status": status.value},
        )
        if done is None:
            raise TenantNotFoundError(tenant)

    def mark_dropped(self, connection: Connection, tenant: TenantId) -> None:
        """Leave a note of a tenant whose schema is gone, and free the schema's name."""
        connection.execute(
            text(
                f"UPDATE {self._table} SET status = 'dropped', schema_name = NULL, dropped_at = now(), "
                "updated_at = now() WHERE id = :id"
            ),
            {"id": tenant},
        )
