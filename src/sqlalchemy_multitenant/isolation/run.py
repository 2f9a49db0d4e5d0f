"""Runs SQL text as it is, over a SQLAlchemy `Connection`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, CursorResult


def run_sql(connection: Connection, sql: str) -> CursorResult[Any]:
    """Execute `sql` without parameters, so that a percent sign in it is a percent sign."""
    return connection.exec_driver_sql(sql, execution_options={"no_parameters": True})
