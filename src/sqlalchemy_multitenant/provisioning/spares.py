"""Spares: schemas made ahead, which a new tenant is given by renaming one."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, text

from ..catalog.table import OWN_PREFIX, make_schema_sql, qualified
from ..errors import MigrationError
from ..isolation.run import run_sql
from ..migrations.catalogue import CatalogueReader
from ..naming import SchemaName, quote_ident, quote_literal

SPARE_PREFIX = f"{OWN_PREFIX}spare_"
_IS_THERE = "to_regnamespace(quote_ident(schema_name)) IS NOT NULL"


@dataclass(frozen=True, slots=True)
class SpareStock:
    """What `keep_spares` left.

    Attributes:
        ready: how many there are now.
        made: how many of them are new.
        discarded: how many were dropped: too many, or made by revisions that are not the newest any more.
    """

    ready: int
    made: int = 0
    discarded: int = 0


class SpareStore:
    """The spare schemas, in a table of the shared schema."""

    def __init__(self, shared_schema: str) -> None:
        self._shared_schema = shared_schema
        self._table = qualified(shared_schema, f"{OWN_PREFIX}spares")

    def install(self, connection: Connection) -> None:
        """Make the table where it is missing. To be called under a lock."""
        run_sql(connection, make_schema_sql(self._shared_schema))
        run_sql(
            connection,
            f"CREATE TABLE IF NOT EXISTS {self._table} (schema_name text PRIMARY KEY, recipe text NOT NULL, "
            "created_at timestamptz NOT NULL DEFAULT now())",
        )

    @property
    def installed_sql(self) -> str:
        """A SELECT of one boolean: whether any spares were ever made."""
        return f"SELECT to_regclass({quote_literal(self._table)}) IS NOT NULL"

    def is_installed(self, connection: Connection) -> bool:
        """Whether any spares were ever made."""
        return bool(run_sql(connection, self.installed_sql).scalar())

    def count(self, connection: Connection, recipe: str) -> int:
        """How many there are of this recipe."""
        statement = text(f"SELECT count(*) FROM {self._table} WHERE recipe = :recipe AND {_IS_THERE}")
        return int(connection.scalar(statement, {"recipe": recipe}) or 0)

    def add(self, connection: Connection, schema: SchemaName, recipe: str) -> None:
        """Put a schema that was just made among the spares.

        Raises:
            MigrationError: it holds its own name.
        """
        _refuse_own_name(connection, schema)
        connection.execute(
            text(f"INSERT INTO {self._table} (schema_name, recipe) VALUES (:schema, :recipe)"),
            {"schema": schema, "recipe": recipe},
        )

    def take(self, connection: Connection, recipe: str) -> SchemaName | None:
        """One of the spares, for the transaction alone; None where there is none that nobody else takes."""
        found = connection.scalar(
            text(
                f"DELETE FROM {self._table} WHERE schema_name = (SELECT schema_name FROM {self._table} "
                f"WHERE recipe = :recipe AND {_IS_THERE} "
                "ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING schema_name"
            ),
            {"recipe": recipe},
        )
        return None if found is None else SchemaName(found)

    def take_surplus(self, connection: Connection, recipe: str, keep: int) -> SchemaName | None:
        """One that is not of this recipe, or is beyond the first `keep` of it; None where there is none."""
        found = connection.scalar(
            text(
                f"DELETE FROM {self._table} WHERE schema_name = (SELECT schema_name FROM {self._table} "
                f"WHERE recipe <> :recipe OR NOT {_IS_THERE} OR schema_name NOT IN (SELECT schema_name "
                f"FROM {self._table} WHERE recipe = :recipe ORDER BY created_at LIMIT :keep) "
                "LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING schema_name"
            ),
            {"recipe": recipe, "keep": keep},
        )
        return None if found is None else SchemaName(found)


def spare_name() -> SchemaName:
    """A name that no tenant has."""
    return SchemaName(f"{SPARE_PREFIX}{secrets.token_hex(8)}")


def _refuse_own_name(connection: Connection, schema: SchemaName) -> None:
    """Look for the random part of the name, since what is derived from the name holds it as well."""
    token = schema.removeprefix(SPARE_PREFIX)
    with CatalogueReader.over(connection) as reader:
        objects = reader.read(schema).objects
    for (kind, name), definition in objects.items():
        if token in name or token in definition:
            raise _cannot_rename(f"{kind} {name}")
    settings = text(
        "SELECT EXISTS (SELECT FROM pg_proc WHERE strpos(array_to_string(proconfig, ' '), :token) > 0)"
    )
    if connection.scalar(settings, {"token": token}):
        raise _cannot_rename("the search path of a function")
    comments = text("SELECT EXISTS (SELECT FROM pg_description WHERE strpos(description, :token) > 0)")
    if connection.scalar(comments, {"token": token}):
        raise _cannot_rename("a comment")
    tables = connection.scalars(
        text(
            "SELECT c.oid::regclass::text FROM pg_catalog.pg_class c "
            "WHERE c.relnamespace = CAST(:schema AS regnamespace) AND c.relkind IN ('r', 'm')"
        ),
        {"schema": quote_ident(schema)},
    )
    # Rows that a policy would hide are an error now.
    run_sql(connection, "SET LOCAL row_security = off")
    for table in tables.all():
        statement = text(f"SELECT EXISTS (SELECT FROM {table} AS t WHERE strpos(t::text, :token) > 0)")
        if connection.scalar(statement, {"token": token}):
            raise _cannot_rename(f"a row of {table}")


def _cannot_rename(what: str) -> MigrationError:
    return MigrationError(
        f"no schema can be made ahead: {what} holds the schema's own name, which renaming leaves as it is"
    )
