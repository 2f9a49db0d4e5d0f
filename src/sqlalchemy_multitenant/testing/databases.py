"""`TestDatabases`: throw-away databases, each a copy of one that was made ready once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from sqlalchemy import URL, Connection, create_engine, text

from ..checks import check
from ..config import TenantConfig, parse_url
from ..engines.url import psycopg_url
from ..manager import TenantManager
from ..migrations.migrator import Migrator
from ..naming import quote_ident

_SERVER = "postgres"
"""The database that others are made from: each server has it."""


class TestDatabases:
    """Databases for the tests of one run, on a server that the tests may do anything to.

    Not where the configuration points to: of that the URL is not even read, but for its driver.

    Attributes:
        config: the application's own configuration.
    """

    __test__ = False  # pytest collects classes that are called so

    def __init__(self, config: TenantConfig, server: str | URL, *, run: str | None = None) -> None:
        """
        Args:
            config: the application's own configuration.
            server: the URL of the server; its role may create databases.
            run: those that give the same name share the template, such as the workers of pytest-xdist.
        """
        self.config = config
        url = parse_url(server, "server")
        given = config.connection.url
        self._url = url if given is None else url.set(drivername=parse_url(given).drivername)
        self._run = secrets.token_hex(4) if run is None else run
        self._template = f"multitenant_template_{self._run}"[:63]

    @contextmanager
    def template(self, fill: Callable[[TenantManager], object]) -> Iterator[None]:
        """Have a template: a shared schema at its newest revision, and what `fill` puts beside it. Whoever
        comes first makes it; it is dropped with the last.

        Args:
            fill: called with a manager of the template's; creates tenants, and rows that all tests begin
                with.
        """
        check(callable(fill), "fill_template", fill, "a function that is given a TenantManager")
        with self._admin() as connection:
            lock = _Lock(connection, self._template)
            lock.take()
            try:
                if not _exists(connection, self._template):
                    self._make_template(connection, fill)
                lock.share()
            finally:
                lock.release()
            try:
                yield
            finally:
                lock.release_share()
                if lock.try_to_take():  # nobody else shares it
                    _drop(connection, self._template)
                    lock.release()

    @contextmanager
    def database(self) -> Iterator[TenantConfig]:
        """A copy of the template, for as long as the block; yields the configuration for it."""
        name = f"multitenant_test_{secrets.token_hex(6)}"
        with self._admin() as connection:
            connection.exec_driver_sql(
                f"CREATE DATABASE {quote_ident(name)} TEMPLATE {quote_ident(self._template)}"
            )
            try:
                yield self._config_for(name)
            finally:
                _drop(connection, name)

    def _make_template(self, connection: Connection, fill: Callable[[TenantManager], object]) -> None:
        making = f"{self._template}_new"[:63]
        _drop(connection, making)
        connection.exec_driver_sql(f"CREATE DATABASE {quote_ident(making)}")
        config = self._config_for(making)
        try:
            _fill_shared_schema(config)
            with TenantManager(config) as tenants:
                fill(tenants)
        except BaseException:
            _drop(connection, making)
            raise
        connection.exec_driver_sql(
            f"ALTER DATABASE {quote_ident(making)} RENAME TO {quote_ident(self._template)}"
        )

    def _config_for(self, database: str) -> TenantConfig:
        url = self._url.set(database=database)
        return replace(self.config, connection=replace(self.config.connection, url=url))

    @contextmanager
    def _admin(self) -> Iterator[Connection]:
        url = psycopg_url(self._url).set(database=self._url.database or _SERVER)
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()


class _Lock:
    """Who shares the template, across processes
    (https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS)."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self._name = connection, f"sqlalchemy_multitenant.testing {name}"

    def _call(self, function: str) -> bool:
        statement = text(f"SELECT {function}(hashtextextended(:name, 0))")
        return bool(self._connection.scalar(statement, {"name": self._name}))

    def take(self) -> None:
        self._call("pg_advisory_lock")

    def try_to_take(self) -> bool:
        return self._call("pg_try_advisory_lock")

    def release(self) -> None:
        self._call("pg_advisory_unlock")

    def share(self) -> None:
        self._call("pg_advisory_lock_shared")

    def release_share(self) -> None:
        self._call("pg_advisory_unlock_shared")


def _exists(connection: Connection, database: str) -> bool:
    statement = text("SELECT EXISTS (SELECT FROM pg_database WHERE datname = :name)")
    return bool(connection.scalar(statement, {"name": database}))


def _drop(connection: Connection, database: str) -> None:
    connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {quote_ident(database)} WITH (FORCE)")


def _fill_shared_schema(config: TenantConfig) -> None:
    """At its newest revision; or, where there are none yet, with the tables of the models."""
    with Migrator(config) as migrator:
        migrator.migrate_shared()
        if migrator.shared_history.heads():
            return
        schema = quote_ident(config.schemas.shared_schema)
        with migrator.engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {schema}")
            connection.exec_driver_sql(f"SET LOCAL search_path TO {schema}")
            for metadata in config.schemas.shared:
                metadata.create_all(connection)
