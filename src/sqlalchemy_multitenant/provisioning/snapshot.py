"""Snapshots: what a slow recipe makes, as the text that makes it at once.

A reference schema is built twice and dumped. Where the two texts differ (a revision inserts a random key, or
the time) or the revisions have read shared tables (whose rows may be others tomorrow), each tenant must have
its own, and there is no snapshot: the recipe is followed anew for each.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from ..catalog.table import OWN_PREFIX
from ..config import TenantConfig
from ..engines.pipeline import StatementError
from ..errors import MultitenantError
from ..isolation.run import run_sql
from ..migrations.batch import settings_sql
from ..migrations.catalogue import CatalogueReader
from ..migrations.plan import Destination, Timeouts
from ..naming import SchemaName, quote_ident
from .others import OtherTables
from .pg_dump import run_pg_dump

logger = logging.getLogger("sqlalchemy_multitenant")

_MAX_BYTES = 16_000_000
_LIFE_S = 600.0
_STALE_AFTER_S = 3600.0
_REFERENCE = re.compile(rf"{OWN_PREFIX}reference-(?P<made>\d{{10}})-[0-9a-f]{{8}}")

Make = Callable[[Connection, Destination], None]


class SnapshotError(MultitenantError):
    """There can be no snapshot; or what one has made is not what it says."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The text of a schema, with a name in it that nothing else has.

    Attributes:
        name: the name of the reference schema. It needs quotes as an identifier, and has none elsewhere.
        script: the statements.
        catalogue: a hash of the catalogue that they make.
        privileges: a hash of who owns what, and may do what.
        taken_at: `time.monotonic()`.
    """

    name: SchemaName
    script: str
    catalogue: str
    privileges: str
    taken_at: float

    @property
    def is_old(self) -> bool:
        """Whether it has to be taken anew: what it depends on without our knowing may have changed."""
        return time.monotonic() - self.taken_at > _LIFE_S

    def make(self, connection: Connection, to: Destination, timeouts: Timeouts) -> None:
        """Create the schema with all that is in it, in the connection's transaction.

        Raises:
            SnapshotError: it has become something else.
            DBAPIError: the server refused a statement.
        """
        script = self.script.replace(quote_ident(self.name), quote_ident(to.schema))
        # The names in a dump are qualified, and a function may come before what it uses.
        run_sql(connection, "SET LOCAL search_path TO ''; SET LOCAL check_function_bodies TO off")
        run_sql(connection, script.replace(self.name, to.schema))
        run_sql(connection, "SET LOCAL check_function_bodies TO DEFAULT")
        run_sql(connection, settings_sql(to.search_path, timeouts))
        if self.catalogue != _catalogue(connection, to.schema):
            raise SnapshotError("the new schema is not what the revisions make")
        if self.privileges != _privileges(connection, to.schema):
            raise SnapshotError("the new schema's owners or privileges are not those that the revisions give")

    @staticmethod
    def can_name(schema: str) -> bool:
        """Whether the name can stand in a literal as it stands in an identifier."""
        return not set(schema) & set("'\"\\$")


def take_snapshot(config: TenantConfig, engine: Engine, url: URL, make: Make) -> Snapshot | None:
    """What `make` makes; None where each schema needs something of its own, or it cannot be dumped.

    Args:
        make: creates a schema and what is in it, in the connection's transaction.
    """
    _drop_stale(engine)
    try:
        first, second = (_build_and_dump(config, engine, url, make) for _ in range(2))
        if first.script.replace(first.name, second.name) != second.script:
            raise SnapshotError("two of them differ, each has to be made by the revisions")
        # A dump may make something else: it spells definitions its own way, and knows no default privileges.
        name = _new_name()
        trial = Destination("the reference", name, config.schemas.search_path(name))
        with engine.connect() as connection:
            try:
                first.make(connection, trial, Timeouts.of(config))
            finally:
                connection.rollback()
        return first
    except (MultitenantError, DBAPIError, psycopg.Error, StatementError) as error:
        logger.info("no snapshot of a new tenant: %s", error)
        return None


def _new_name() -> SchemaName:
    return SchemaName(f"{OWN_PREFIX}reference-{int(time.time())}-{secrets.token_hex(4)}")


def _build_and_dump(config: TenantConfig, engine: Engine, url: URL, make: Make) -> Snapshot:
    name = _new_name()
    try:
        with engine.begin() as connection:
            others = OtherTables(connection, name)
            make(connection, Destination("the reference", name, config.schemas.search_path(name)))
            if others.were_touched():
                raise SnapshotError("its revisions read or write tables of other schemas")
            hashes = _catalogue(connection, name), _privileges(connection, name)
            version = connection.scalar(text("SHOW server_version_num"))
        options = (f'--schema="{name}"', "--rows-per-insert=500")
        script = run_pg_dump(config, url, int(version) // 10_000, *options)
        if len(script) > _MAX_BYTES:
            raise SnapshotError(f"it has {len(script)} bytes")
        return Snapshot(name, _without_settings(script, name), *hashes, time.monotonic())
    finally:
        with engine.begin() as connection:
            run_sql(connection, f"DROP SCHEMA IF EXISTS {quote_ident(name)} CASCADE")


def _without_settings(script: str, name: SchemaName) -> str:
    """The dump without its settings, which are not those of a live server, and without the commands for psql
    around it. Nothing else is touched: what looks like one may be in a row."""
    start = script.index(f"CREATE SCHEMA {quote_ident(name)}")
    body, marker, end = script[start:].rpartition("\n\\unrestrict ")
    return body if marker and end.strip().isalnum() else script[start:]


def _drop_stale(engine: Engine) -> None:
    """Drop the reference schemas of processes that were killed. Those of other roles are theirs to drop."""
    with suppress(DBAPIError), engine.begin() as connection:
        names = connection.scalars(
            text("SELECT nspname FROM pg_catalog.pg_namespace WHERE pg_has_role(nspowner, 'USAGE')")
        )
        for name in names.all():
            match = _REFERENCE.fullmatch(name)
            if match and int(match["made"]) < time.time() - _STALE_AFTER_S:
                run_sql(connection, f"DROP SCHEMA IF EXISTS {quote_ident(name)} CASCADE")


def _catalogue(connection: Connection, schema: SchemaName) -> str:
    with CatalogueReader.over(connection) as reader:
        return reader.read_hash(schema)


_PRIVILEGES = """
SELECT md5(string_agg(part, ',' ORDER BY part)) FROM (
  SELECT concat_ws(' ', 'schema', nspowner, nspacl) FROM pg_namespace
  WHERE oid = CAST(:schema AS regnamespace)
  UNION ALL
  SELECT concat_ws(' ', relkind, quote_ident(relname), relowner, relacl) FROM pg_class
  WHERE relnamespace = CAST(:schema AS regnamespace) AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
  UNION ALL
  SELECT concat_ws(' ', 'column', quote_ident(c.relname), quote_ident(a.attname), a.attacl)
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  WHERE c.relnamespace = CAST(:schema AS regnamespace) AND a.attacl IS NOT NULL
  UNION ALL
  SELECT concat_ws(' ', 'function', quote_ident(proname), pg_get_function_identity_arguments(oid), proowner,
    proacl)
  FROM pg_proc WHERE pronamespace = CAST(:schema AS regnamespace)
  UNION ALL
  SELECT concat_ws(' ', 'type', quote_ident(typname), typowner, typacl) FROM pg_type
  WHERE typnamespace = CAST(:schema AS regnamespace) AND typtype IN ('e', 'd', 'r')
) AS parts(part)
"""


def _privileges(connection: Connection, schema: SchemaName) -> str:
    return str(connection.scalar(text(_PRIVILEGES), {"schema": quote_ident(schema)}))
