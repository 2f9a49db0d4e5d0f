"""For a project without revisions yet: the tables of a tenant, straight from the models."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import MetaData, create_mock_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.ddl import ExecutableDDLElement


def plan_tables(metadatas: Sequence[MetaData]) -> list[str]:
    """The DDL of all tables, with their types, sequences and indexes, in the order of dependence. Names
    carry no schema: the search path decides."""
    statements: list[str] = []

    def collect(ddl: ExecutableDDLElement, *_: object, **__: object) -> None:
        statements.append(str(ddl.compile(dialect=named)).strip())

    # `named` leaves percent signs alone, which psycopg's own style doubles.
    named = postgresql.dialect(paramstyle="named")
    engine = create_mock_engine("postgresql+psycopg://", collect)
    for metadata in metadatas:
        metadata.create_all(engine, checkfirst=False)
    return statements
