"""The configuration: frozen values, checked when they are built.

Nothing here reads the environment or opens a connection; `engines.url.resolve_url` does, when the
first engine is made.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL, MetaData, make_url
from sqlalchemy.exc import ArgumentError

from .checks import check, is_count, is_finite, is_number
from .errors import ConfigurationError
from .events import Hooks, MigrationHooks
from .naming import SchemaNaming, parse_schema_name

DRIVERS = {"postgresql": "psycopg", "postgres": "psycopg"}
"""Which driver a URL without one means."""

SUPPORTED_DRIVERS = ("psycopg", "asyncpg")


def _check_flags(value: object, section: str, *names: str) -> None:
    for name in names:
        flag = getattr(value, name)
        check(isinstance(flag, bool), f"{section}.{name}", flag, "True or False")


def show_url(url: URL) -> str:
    """`url` as text without its secrets, wherever in it they are."""
    hidden = {key: "***" for key in url.query if "password" in key.lower()}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def parse_url(value: str | URL, name: str = "connection.url") -> URL:
    """`value` as a PostgreSQL URL with one of the supported drivers.

    Raises:
        ConfigurationError: not a URL, not PostgreSQL, or another driver. The password is not shown.
    """
    try:
        url = make_url(value)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            name, "***", "not a database URL; it looks like postgresql://user:password@host:5432/database"
        ) from error
    backend, _, driver = url.drivername.partition("+")
    driver = driver or DRIVERS.get(backend, "")
    shown = show_url(url)
    check(backend in DRIVERS, name, shown, "only PostgreSQL is supported: postgresql://...")
    check(
        driver in SUPPORTED_DRIVERS,
        name,
        shown,
        f"driver {driver!r} is not supported; use postgresql+psycopg:// or postgresql+asyncpg://",
    )
    return url.set(drivername=f"postgresql+{driver}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach the server, and how many connections a pool may hold.

    Attributes:
        url: `postgresql://...` (psycopg) or `postgresql+asyncpg://...`; None takes `$DATABASE_URL`,
            or else the embedded server where the extra `[embedded]` is installed.
        embedded_database: the database on the embedded server, made where it is missing: projects share the
            server, and must not share their tenants. Without effect where a URL is given.
        pool_size: the most connections a pool holds; there is no overflow.
        pool_timeout_s: seconds to wait for a connection before giving up.
        idle_timeout_s: seconds after which a pool that nobody uses closes its connections.
        pre_ping: test each connection when it is taken from the pool, at the cost of a round trip.
        connect_args: passed on to the driver.
        echo: log every statement, as SQLAlchemy's `echo`.
    """

    url: str | URL | None = field(default=None, repr=False)
    embedded_database: str = "postgres"
    pool_size: int = 10
    pool_timeout_s: float = 5.0
    idle_timeout_s: float = 30.0
    pre_ping: bool = False
    connect_args: Mapping[str, Any] = field(default_factory=dict, repr=False)
    echo: bool = False

    def __post_init__(self) -> None:
        if self.url is not None:
            if not isinstance(self.url, str | URL):
                raise ConfigurationError("connection.url", self.url, "a str or sqlalchemy.URL")
            object.__setattr__(self, "url", parse_url(self.url))
        name = self.embedded_database
        ok = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,63}", name) is not None
        check(ok, "connection.embedded_database", name, "1 to 63 ASCII letters, digits, '_' and '-'")
        size, wait, idle = self.pool_size, self.pool_timeout_s, self.idle_timeout_s
        check(is_count(size) and size >= 1, "connection.pool_size", size, "a whole number, at least 1")
        check(is_finite(wait) and wait > 0, "connection.pool_timeout_s", wait, "seconds, more than 0")
        check(is_number(idle) and idle > 0, "connection.idle_timeout_s", idle, "seconds, more than 0")
        args = self.connect_args
        check(isinstance(args, Mapping), "connection.connect_args", args, "a dict")
        object.__setattr__(self, "connect_args", dict(args))
        _check_flags(self, "connection", "pre_ping", "echo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How tenants are kept apart.

    Attributes:
        strategy: `"schema"`: a schema per tenant, over one shared pool.
        schema_name: a template with `{id}`, or a callable from a tenant's id to the name.
        pool_per_tenant: give each tenant a pool of its own. Connections are then at most
            (max_pools + 1) x pool_size, as the shared data keeps its pool; else pool_size in all.
        max_pools: the most tenants' pools that hold connections at one time; the one used least
            recently gives up its own when another needs the place. A pool in use never does.
        pool_ttl_s: seconds after which a pool that nobody uses is evicted.
    """

    strategy: str = "schema"
    schema_name: str | Callable[[str], str] = "tenant_{id}"
    pool_per_tenant: bool = False
    max_pools: int = 50
    pool_ttl_s: float = 3600.0

    def __post_init__(self) -> None:
        check(
            self.strategy == "schema",
            "isolation.strategy",
            self.strategy,
            "this version supports 'schema'",
        )
        check(
            isinstance(self.schema_name, str) or callable(self.schema_name),
            "isolation.schema_name",
            self.schema_name,
            "a template such as 'tenant_{id}', or a callable from id to name",
        )
        _check_flags(self, "isolation", "pool_per_tenant")
        pools, ttl = self.max_pools, self.pool_ttl_s
        check(is_count(pools) and pools >= 1, "isolation.max_pools", pools, "a whole number, at least 1")
        check(is_number(ttl) and ttl > 0, "isolation.pool_ttl_s", ttl, "seconds, more than 0")


def _metadata_of(models: object, name: str) -> tuple[MetaData, ...]:
    if models is None:
        return ()
    if isinstance(models, MetaData):
        return (models,)
    metadata = getattr(models, "metadata", None)
    if isinstance(metadata, MetaData):
        return (metadata,)
    if isinstance(models, Iterable) and not isinstance(models, str):
        return tuple(dict.fromkeys(m for item in models for m in _metadata_of(item, name)))
    raise ConfigurationError(name, models, "a MetaData, a declarative base, or a list of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schemas:
    """The models: what each tenant has, and what all share.

    Attributes:
        tenant: a MetaData, a declarative base, or a list of them.
        shared: the same for the data that all tenants see.
        shared_schema: the schema that holds the shared tables and the catalog of tenants.
        extra_search_path: further schemas every tenant sees after the shared one (extensions, say).
    """

    tenant: Any
    shared: Any = None
    shared_schema: str = "public"
    extra_search_path: Sequence[str] = ()

    def __post_init__(self) -> None:
        tenant, shared = (
            _metadata_of(self.tenant, "schemas.tenant"),
            _metadata_of(self.shared, "schemas.shared"),
        )
        check(
            bool(tenant), "schemas.tenant", self.tenant, "a MetaData, a declarative base, or a list of them"
        )
        object.__setattr__(self, "tenant", tenant)
        object.__setattr__(self, "shared", shared)
        extra = self.extra_search_path
        if isinstance(extra, str) or not isinstance(extra, Iterable):
            raise ConfigurationError("schemas.extra_search_path", extra, "a list of names")
        object.__setattr__(self, "extra_search_path", tuple(self.extra_search_path))
        for label, schema in [
            ("schemas.shared_schema", self.shared_schema),
            *(("schemas.extra_search_path", name) for name in self.extra_search_path),
        ]:
            try:
                parse_schema_name(schema)
            except ValueError as error:
                raise ConfigurationError(label, schema, str(error)) from error
            own = schema.startswith("pg_") or schema == "information_schema"
            check(not own, label, schema, "PostgreSQL's own schemas are no place for data")
        self._check_tables()

    def _check_tables(self) -> None:
        for metadata in self.tenant:
            for table in metadata.tables.values():
                check(
                    table.schema is None,
                    "schemas.tenant",
                    table.fullname,
                    "a tenant's table names no schema, since the transaction decides; take out `schema=`",
                )
        for label, metadatas in (("schemas.tenant", self.tenant), ("schemas.shared", self.shared)):
            names = Counter(t.fullname for m in metadatas for t in m.tables.values())
            twice = [name for name, count in names.items() if count > 1]
            check(not twice, label, ", ".join(twice), "two of the MetaData have a table of this name")
        both = sorted(self.tenant_tables & self.shared_tables)
        check(
            not both,
            "schemas",
            ", ".join(both),
            "these tables are in both the tenant's and the shared models; a query could not tell which "
            "one it means: rename one of each",
        )

    def search_path(self, tenant: str | None = None, *, shared: str | None = None) -> tuple[str, ...]:
        """What a transaction sees in the schema `tenant`, or in the shared schema alone, in this order.

        Args:
            tenant: the tenant's schema.
            shared: what stands in for the shared schema, such as a scratch copy of it.
        """
        path = (self.shared_schema if shared is None else shared, *self.extra_search_path)
        return path if tenant is None else (tenant, *path)

    @property
    def tenant_tables(self) -> frozenset[str]:
        """The names of all tables that a tenant has."""
        return frozenset(t.name for m in self.tenant for t in m.tables.values())

    @property
    def shared_tables(self) -> frozenset[str]:
        """The names of all shared tables."""
        return frozenset(t.name for m in self.shared for t in m.tables.values())


def _is_template(template: str) -> bool:
    known = {
        "rev": "",
        "slug": "",
        "epoch": 0,
        **dict.fromkeys(("year", "month", "day", "hour", "minute", "second"), 0),
    }
    try:
        name = template % known
    except (KeyError, TypeError, ValueError):
        return False
    return "/" not in name and "\\" not in name


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrations:
    """Where the Alembic revisions are, and who the tenants are.

    Attributes:
        tenant_dir: folder of the tenants' history. The command line takes a relative one from the
            configuration file's folder, an application from its working folder: better absolute,
            `Path(__file__).parent / "migrations/tenant"`.
        shared_dir: folder of the shared schema's history.
        version_table: name of Alembic's version table, one in each schema.
        file_template: how the files of new revisions are named, as in an alembic.ini: with `%(rev)s`, and
            `%(slug)s`, `%(year)d`, `%(month).2d`, `%(day).2d`, `%(hour).2d`, `%(minute).2d`, `%(second).2d`.
        revision_ids: those of new revisions: `"number"` (0001, 0002), `"random"` (twelve digits, as Alembic
            makes them), or `"auto"`: random where those in the folder are no numbers.
        discover: a callable that returns the ids of all tenants; it may take one argument, a
            SQLAlchemy `Connection` in the shared schema. None uses the catalog.
        lock_timeout_s: seconds a migration waits for a lock before it lets the traffic pass and
            tries again.
        statement_timeout_s: seconds one statement of a migration may take; None for no limit.
        hooks: what is told of migrations.
    """

    tenant_dir: str | Path = "migrations/tenant"
    shared_dir: str | Path = "migrations/shared"
    version_table: str = "alembic_version"
    file_template: str = "%(rev)s_%(slug)s"
    revision_ids: Literal["auto", "number", "random"] = "auto"
    discover: Callable[..., Iterable[str]] | None = None
    lock_timeout_s: float = 3.0
    statement_timeout_s: float | None = None
    hooks: MigrationHooks = field(default_factory=MigrationHooks)

    def __post_init__(self) -> None:
        for name in ("tenant_dir", "shared_dir"):
            folder = getattr(self, name)
            ok = isinstance(folder, str | Path) and str(folder)
            check(bool(ok), f"migrations.{name}", folder, "a folder, as str or Path")
        try:
            parse_schema_name(self.version_table)
        except ValueError as error:
            raise ConfigurationError("migrations.version_table", self.version_table, str(error)) from error
        template, ids = self.file_template, self.revision_ids
        check(
            isinstance(template, str) and "%(rev)s" in template and _is_template(template),
            "migrations.file_template",
            template,
            "a name with %(rev)s, and %(slug)s, %(year)d and the like, as in an alembic.ini",
        )
        kinds = ("auto", "number", "random")
        check(ids in kinds, "migrations.revision_ids", ids, "'auto', 'number' or 'random'")
        check(
            self.discover is None or callable(self.discover),
            "migrations.discover",
            self.discover,
            "a callable that returns tenant ids",
        )
        check(
            not inspect.iscoroutinefunction(self.discover),
            "migrations.discover",
            self.discover,
            "a plain function: it is given a Connection, and runs in a thread where needed",
        )
        hooks = self.hooks
        check(isinstance(hooks, MigrationHooks), "migrations.hooks", hooks, "a MigrationHooks(...)")
        lock, statement = self.lock_timeout_s, self.statement_timeout_s
        check(is_finite(lock) and lock > 0, "migrations.lock_timeout_s", lock, "seconds, more than 0")
        check(
            statement is None or (is_finite(statement) and statement > 0),
            "migrations.statement_timeout_s",
            statement,
            "seconds, more than 0, or None",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Whether `manager.metrics()` reports, and the prefix of the names in it."""

    enabled: bool = True
    prefix: str = "multitenant"

    def __post_init__(self) -> None:
        _check_flags(self, "metrics", "enabled")
        ok = isinstance(self.prefix, str) and re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", self.prefix)
        check(bool(ok), "metrics.prefix", self.prefix, "letters, digits and '_', as in a metric's name")


@dataclass(frozen=True, kw_only=True)
class TenantConfig:
    """Everything the toolkit needs to know. Only `schemas` is required.

    Raises:
        ConfigurationError: a value is wrong; the error names the field, the value and the mend.
    """

    schemas: Schemas
    connection: Connection = field(default_factory=Connection)
    isolation: Isolation = field(default_factory=Isolation)
    migrations: Migrations = field(default_factory=Migrations)
    hooks: Hooks = field(default_factory=Hooks)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        for name, kind in (
            ("schemas", Schemas),
            ("connection", Connection),
            ("isolation", Isolation),
            ("migrations", Migrations),
            ("hooks", Hooks),
            ("metrics", Metrics),
        ):
            value = getattr(self, name)
            check(isinstance(value, kind), name, value, f"a {kind.__name__}(...)")
        table = self.migrations.version_table
        taken = self.schemas.tenant_tables | self.schemas.shared_tables
        check(table not in taken, "migrations.version_table", table, "a model has a table of this name")
        _ = self.naming  # checks the template

    @cached_property
    def naming(self) -> SchemaNaming:
        """The mapping from tenant id to schema name."""
        reserved = {self.schemas.shared_schema, *self.schemas.extra_search_path}
        return SchemaNaming(self.isolation.schema_name, frozenset(reserved))
