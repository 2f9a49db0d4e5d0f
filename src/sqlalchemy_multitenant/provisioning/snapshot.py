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
from dataclasses import dataclass

from sqlalchemy import URL, Connection, Engine, text

from ..catalog.table import OWN_PREFIX
from ..config import TenantConfig
from ..errors import MultitenantError
from ..isolation.run import run_sql
from ..migrations.batch import settings_sql
from ..migrations.catalogue import CatalogueReader
from ..migrations.plan import Destination, Timeouts
from ..naming import SchemaName, quote_ident
from .pg_dump import run_pg_dump

logger = logging.getLogger("sqlalchemy_multitenant")

_MAX_BYTES = 16_000_000
_STALE_AFTER_S = 3600.0

# The settings of a restore that are not those of a live server, and the commands of psql in newer dumps.
_NOT_FOR_US = re.compile(
    r"^(SET (statement_timeout|lock_timeout|idle_in_transaction_session_timeout|transaction_timeout) = .*;"
    r"|\\(un)?restrict .*|--.*)?\n",
    re.MULTILINE,
)

Make = Callable[[Connection, Destination], None]


class SnapshotError(MultitenantError):
    """A new schema is not what the snapshot says: it is not to be used again."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The text of a schema, with a name in it that nothing else has.

    Attributes:
        name: the name of the reference schema. It needs quotes as an identifier, and has none elsewhere.
        script: the statements.
        hash: of the catalogue that they make.
    """

    name: SchemaName
    script: str
    hash: str

    def make(self, connection: Connection, to: Destination, timeouts: Timeouts) -> None:
        """Create the schema with all that is in it, in the connection's transaction.

        Raises:
            SnapshotError: it has become something else.
            DBAPIError: the server refused a statement.
        """
        script = self.script.replace(quote_ident(self.name), quote_ident(to.schema))
        run_sql(connection, script.replace(self.name, to.schema))
        run_sql(connection, settings_sql(to.search_path, timeouts))
        if _hash(connection, to.schema) != self.hash:
            raise SnapshotError("the new schema is not what the revisions make")

    @staticmethod
    def can_name(schema: str) -> bool:
        """Whether the name can stand in a literal as it stands in an identifier."""
        return not set(schema) & set("'\"\\$")


def take_snapshot(config: TenantConfig, engine: Engine, url: URL, make: Make) -> Snapshot | None:
    """What `make` makes; None where each schema needs something of its own, or it cannot be dumped.

    Args:
        make: creates a schema and what is in it, in the connection's transaction.
    """
    try:
        first, second = (_build_and_dump(config, engine, url, make) for _ in range(2))
    except MultitenantError as error:
        logger.info("no snapshot of a new tenant: %s", error)
        return None
    if first is None or second is None or first.hash != second.hash:
        return None
    if first.script.replace(first.name, second.name) != second.script:
        logger.info("no snapshot of a new tenant: two of them differ, each has to be made by the revisions")
        return None
    return first


def _build_and_dump(config: TenantConfig, engine: Engine, url: URL, make: Make) -> Snapshot | None:
    name = SchemaName(f"{OWN_PREFIX}reference-{int(time.time())}-{secrets.token_hex(4)}")
    try:
        with engine.begin() as connection:
            _drop_stale(connection)
            make(connection, Destination("the reference", name, config.schemas.search_path(name)))
            if _has_read_shared_tables(connection, config):
                logger.info("no snapshot of a new tenant: its revisions read shared tables")
                return None
            made = _hash(connection, name)
            version = connection.scalar(text("SHOW server_version_num"))
        script = run_pg_dump(
            config, url, int(version) // 10_000, f'--schema="{name}"', "--no-owner", "--rows-per-insert=500"
        )
        if len(script) > _MAX_BYTES:
            return None
        return Snapshot(name, _NOT_FOR_US.sub("", script), made)
    finally:
        with engine.begin() as connection:
            run_sql(connection, f"DROP SCHEMA IF EXISTS {quote_ident(name)} CASCADE")


def _drop_stale(connection: Connection) -> None:
    """Reference schemas of processes that were killed."""
    names = connection.scalars(
        text("SELECT nspname FROM pg_catalog.pg_namespace WHERE starts_with(nspname, :prefix)"),
        {"prefix": f"{OWN_PREFIX}reference-"},
    )
    for name in names.all():
        made = name.split("-")[1]
        if made.isdecimal() and int(made) < time.time() - _STALE_AFTER_S:
            run_sql(connection, f"DROP SCHEMA IF EXISTS {quote_ident(name)} CASCADE")


def _has_read_shared_tables(connection: Connection, config: TenantConfig) -> bool:
    # https://www.postgresql.org/docs/current/monitoring-stats.html: counts of the current transaction.
    found = connection.scalar(
        text(
            "SELECT count(*) FROM pg_catalog.pg_stat_xact_user_tables "
            "WHERE schemaname = ANY(:schemas) AND NOT starts_with(relname, :own) "
            "AND (seq_scan > 0 OR idx_scan > 0)"
        ),
        {"schemas": list(config.schemas.search_path()), "own": OWN_PREFIX},
    )
    return bool(found)


def _hash(connection: Connection, schema: SchemaName) -> str:
    with CatalogueReader.over(connection) as reader:
        return reader.read_hash(schema)
