"""A server, a database of our own on it, and tenants in that."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_multitenant import Connection, Migrations, Schemas, TenantConfig, TenantManager, devserver

TENANTS, ROWS = 200, 100


class Base(DeclarativeBase):
    """What each tenant has."""


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    age: Mapped[int]


@contextmanager
def server_url() -> Iterator[URL]:
    """The server in `$MULTITENANT_TEST_DATABASE_URL`, or an embedded one with PostgreSQL's own defaults."""
    if url := os.environ.get("MULTITENANT_TEST_DATABASE_URL"):
        yield make_url(url)
        return
    folder = Path(tempfile.mkdtemp(prefix="multitenant-bench-"))
    folder.chmod(0o711)  # under root, PostgreSQL runs as another user
    try:
        with devserver.start(folder) as server:
            yield make_url(server.url())
    finally:
        if devserver.find(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)


def connect(url: URL) -> psycopg.Connection[Any]:
    """A psycopg connection in autocommit mode, outside of SQLAlchemy and of the toolkit."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True, prepare_threshold=None)


@contextmanager
def own_database(server: URL) -> Iterator[URL]:
    """A new database, which is dropped afterwards."""
    name = f"bench_{secrets.token_hex(6)}"
    with connect(server) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    try:
        yield server.set(drivername="postgresql+psycopg", database=name)
    finally:
        with connect(server) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@dataclass(frozen=True)
class World:
    """A database with tenants, each of which has `ROWS` users."""

    url: URL
    folder: Path
    tenants: Sequence[str]
    schemas: Sequence[str]

    def config(self, driver: str = "psycopg", **connection: Any) -> TenantConfig:
        """The configuration of the toolkit, with a pool of one connection."""
        return make_config(self.url.set(drivername=f"postgresql+{driver}"), self.folder, Base, **connection)


def make_config(url: URL, folder: Path, models: type[DeclarativeBase], **connection: Any) -> TenantConfig:
    """A configuration whose migrations are in `folder`; a pool of one connection unless told otherwise."""
    return TenantConfig(
        connection=Connection(url=url, **{"pool_size": 1, **connection}),
        schemas=Schemas(tenant=models),
        migrations=Migrations(tenant_dir=folder / "tenant", shared_dir=folder / "shared"),
    )


def populate(url: URL, folder: Path, progress: Callable[[str], object]) -> World:
    """Create the tenants and their rows."""
    progress(f"creating {TENANTS} tenants of {ROWS} rows ...")
    names = [f"t{number}" for number in range(TENANTS)]
    with TenantManager(make_config(url, folder, Base)) as manager:
        schemas = [str(manager.create_tenant(name).schema) for name in names]
    with connect(url) as connection:
        for name, schema in zip(names, schemas, strict=True):
            rows = f"SELECT n, '{name}-' || n, n || '@example.com', n FROM generate_series(1, {ROWS}) AS n"
            connection.execute(f"INSERT INTO {schema}.users (id, name, email, age) {rows}".encode())
        connection.execute("VACUUM ANALYZE")
    return World(url, folder, names, schemas)
