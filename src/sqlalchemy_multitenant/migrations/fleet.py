"""Reads the state of the whole fleet in a few queries, never tenant by tenant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import Connection, text

from ..isolation.run import run_sql
from ..naming import SchemaName, quote_ident, quote_literal
from .plan import Heads

CHUNK = 500
"""How many version tables one query reads: each takes an entry of the server's lock table, whose
size is max_locks_per_transaction x connections
(https://www.postgresql.org/docs/current/runtime-config-locks.html)."""


def read_heads(
    connection: Connection, schemas: Sequence[SchemaName], version_table: str
) -> Mapping[SchemaName, Heads | None]:
    """The revisions each schema is at: empty where there is no version table, None where there is no
    schema. The connection is left outside of a transaction."""
    present = set(
        connection.scalars(
            text("SELECT nspname::text FROM pg_catalog.pg_namespace WHERE nspname = ANY(:names)"),
            {"names": list(schemas)},
        )
    )
    with_table = connection.scalars(
        text(
            "SELECT n.nspname::text FROM pg_catalog.pg_class c "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relname = :table AND c.relkind IN ('r', 'p') AND n.nspname = ANY(:names)"
        ),
        {"names": list(schemas), "table": version_table},
    ).all()
    connection.rollback()
    heads: dict[SchemaName, set[str]] = {SchemaName(name): set() for name in present}
    for chunk in _chunks(with_table):
        union = " UNION ALL ".join(
            f"SELECT {quote_literal(schema)}, version_num "
            f"FROM {quote_ident(schema)}.{quote_ident(version_table)}"
            for schema in chunk
        )
        found: list[Any] = list(run_sql(connection, union))
        for schema, revision in found:
            heads[SchemaName(schema)].add(revision)
        connection.rollback()
    return {schema: tuple(sorted(heads[schema])) if schema in heads else None for schema in schemas}


def _chunks(names: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk
