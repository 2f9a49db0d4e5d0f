"""Shadows: tables of a shared schema that a tenant would read in place of its own."""

from __future__ import annotations

from typing import Any

from ..config import TenantConfig
from ..errors import ConfigurationError
from ..naming import quote_literal


def check_shadows(dbapi_connection: Any, config: TenantConfig) -> int:
    """Refuse to serve from a database in which a shared schema has a table of a tenant's name: a tenant whose
    own table is missing (not migrated yet, say) would silently read that one.

    Returns the id of the server's process that has answered.
    """
    schemas = ", ".join(map(quote_literal, config.schemas.search_path()))
    tables = ", ".join(map(quote_literal, sorted(config.schemas.tenant_tables))) or "NULL"
    cursor = dbapi_connection.cursor()
    cursor.execute(
        "SELECT pg_catalog.pg_backend_pid(), (SELECT string_agg(n.nspname || '.' || c.relname, ', ' "
        "ORDER BY n.nspname, c.relname) FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname IN ({schemas}) AND c.relname IN ({tables}) "
        "AND c.relkind IN ('r', 'p', 'v', 'm', 'f'))"
    )
    pid, found = cursor.fetchone()
    cursor.close()
    dbapi_connection.rollback()
    if found:
        raise ConfigurationError(
            "schemas.tenant",
            found,
            "a shared schema has tables of the same names as the tenants': a tenant that lacks its own would "
            "read these; move or rename them, or set schemas.shared_schema to another schema",
        )
    return int(pid)
