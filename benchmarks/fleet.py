"""Creating and migrating many tenants: ours against the same SQL, sent raw over as many connections."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any

import psycopg
from sqlalchemy import URL, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_multitenant import Migrator, TenantConfig, TenantManager

from .database import connect, make_config, own_database
from .report import Report, compare
from .rounds import Samples, Variant, measure

ROUNDS, TENANTS, CONCURRENCY, CREATED = 8, 100, 4, 200


class Base(DeclarativeBase):
    """What each tenant has."""


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Product(Base):
    __tablename__ = "products"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id), index=True)
    product_id: Mapped[int] = mapped_column(ForeignKey(Product.id))


CREATION_NOTE = "aim: 0.95 of raw for create_tenants, 0.80 for the whole command, which starts Python"
COMMAND_CONFIG = """
from benchmarks.database import make_config
from benchmarks.fleet import Base, CONCURRENCY
from pathlib import Path
from sqlalchemy import make_url

config = make_config(make_url({url!r}), Path({folder!r}), Base, pool_size=CONCURRENCY)
"""
SECOND_REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "second"
down_revision = "{first}"


def upgrade() -> None:
    op.add_column("customers", sa.Column("email", sa.Text()))
    op.add_column("orders", sa.Column("note", sa.Text()))
"""
UNDO = (
    "ALTER TABLE {schema}.customers DROP COLUMN IF EXISTS email; "
    "ALTER TABLE {schema}.orders DROP COLUMN IF EXISTS note; "
    "UPDATE {schema}.alembic_version SET version_num = '{first}'"
)


Send = Callable[[Sequence[str]], None]


@contextmanager
def raw_connections(url: URL) -> Iterator[Send]:
    """What sends messages over `CONCURRENCY` connections, each message as soon as one of them is free."""
    connections = [connect(url) for _ in range(CONCURRENCY)]
    free: SimpleQueue[psycopg.Connection[Any]] = SimpleQueue()
    for connection in connections:
        free.put(connection)

    def send_one(message: str) -> None:
        taken = free.get()
        taken.execute(message.encode())
        free.put(taken)

    with ThreadPoolExecutor(CONCURRENCY) as threads:
        yield lambda messages: list(threads.map(send_one, messages)).clear()
    for connection in connections:
        connection.close()


class Revisions:
    """The tenants' history, and what it comes to in SQL."""

    def __init__(self, config: TenantConfig) -> None:
        self._config = config
        with Migrator(config) as migrator:
            (written,) = migrator.generate("first", "tenant")
        self.first = written.revision
        self._folder = written.path.parent

    def add_second(self) -> None:
        """Write the revision that the fleet is to be migrated to."""
        (self._folder / "second.py").write_text(SECOND_REVISION.format(first=self.first))

    def message(self, start: tuple[str, ...]) -> Callable[[str], str]:
        """What turns a schema's name into the upgrade from `start`: one message, which is one transaction.
        From nothing, it creates the schema, too."""
        with Migrator(self._config) as migrator:
            plan = migrator.tenant_history.plan_upgrade(start)
        assert plan.statements, plan.online
        body = "; ".join(statement.sql for statement in plan.statements)

        def render(schema: str) -> str:
            create = "" if start else f"CREATE SCHEMA {schema}; "
            return f"BEGIN; {create}SET LOCAL search_path TO {schema}, public; {body}; COMMIT"

        return render


def _measure_creation(url: URL, config: TenantConfig, revisions: Revisions, rounds: int) -> Samples:
    """From cold starts: opening connections counts for all, reading the revisions for ours, and for the whole
    command also the start of Python and what it imports."""
    numbers = count()
    message = revisions.message(())
    folder = Path(config.migrations.tenant_dir).parent
    settings = COMMAND_CONFIG.format(url=url.render_as_string(hide_password=False), folder=str(folder))
    (folder / "tenant_config.py").write_text(settings)
    program = [sys.executable, "-c", "from sqlalchemy_multitenant.cli import main; main()"]
    options = ["--ids-file", "-", "--concurrency", str(CONCURRENCY)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

    def make_names(_: Random) -> list[str]:
        return [f"t{next(numbers)}" for _ in range(CREATED)]

    def command(names: Sequence[str]) -> None:
        subprocess.run(
            [*program, "tenant", "create", *options],
            cwd=folder,
            env=environment,
            input="\n".join(f"c_{name}" for name in names),
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def create(names: Sequence[str]) -> None:
        with TenantManager(config) as manager:
            manager.create_tenants(names, concurrency=CONCURRENCY)

    def create_raw(names: Sequence[str]) -> None:
        with raw_connections(url) as send:
            send([message(f"raw_{name}") for name in names])

    variants = [
        Variant("create_tenants", create),
        Variant("whole command", command),
        Variant("raw", create_raw),
    ]
    return measure(variants, rounds, make_names, CREATED)


def _create_fleet(config: TenantConfig, tenants: int) -> list[str]:
    with TenantManager(config) as manager, ThreadPoolExecutor(CONCURRENCY) as threads:
        records = threads.map(manager.create_tenant, [f"fleet_{number}" for number in range(tenants)])
        return [str(record.schema) for record in records]


def _measure_migration(
    url: URL, config: TenantConfig, revisions: Revisions, schemas: Sequence[str], rounds: int
) -> Samples:
    """From a cold start: reading the revisions and opening the connections count."""
    message = revisions.message((revisions.first,))

    def migrate(_: object) -> None:
        with Migrator(config) as migrator:
            assert migrator.migrate_all(concurrency=CONCURRENCY).succeeded == len(schemas)

    def migrate_raw(_: object) -> None:
        with raw_connections(url) as send:
            send([message(schema) for schema in schemas])

    def undo() -> None:
        with connect(url) as connection:
            for schema in schemas:
                connection.execute(UNDO.format(schema=schema, first=revisions.first).encode())

    variants = [Variant("ours", migrate, undo), Variant("raw", migrate_raw, undo)]
    return measure(variants, rounds, lambda _: None, len(schemas))


def _measure_status(url: URL, config: TenantConfig, schemas: Sequence[str], rounds: int) -> Samples:
    """From a cold start as well."""
    selects = [f"SELECT '{schema}', version_num FROM {schema}.alembic_version" for schema in schemas]

    def query(statements: Sequence[str]) -> None:
        with connect(url) as connection:
            rows = [row for sql in statements for row in connection.execute(sql.encode()).fetchall()]
        assert len(rows) == len(schemas)

    def status(_: object) -> None:
        with Migrator(config) as migrator:
            assert len(migrator.status()) == len(schemas)

    variants: list[Variant[None]] = [
        Variant("ours", status),
        Variant("one_query", lambda _: query([" UNION ALL ".join(selects)])),
        Variant("query_per_tenant", lambda _: query(selects)),
    ]
    return measure(variants, rounds, lambda _: None, len(schemas))


def run(
    server: URL, folder: Path, rounds: int | None, tenants: int, progress: Callable[[str], object]
) -> Iterator[Report]:
    """The reports, one after the other.

    Args:
        folder: a folder for revisions.
        tenants: how many are migrated.
    """
    rounds = rounds or ROUNDS
    progress("creating tenants ...")
    with own_database(server) as url:
        config = make_config(url, folder / "created", Base, pool_size=CONCURRENCY)
        samples = _measure_creation(url, config, Revisions(config), rounds)
    title = f"Creating {CREATED} tenants of three tables, {CONCURRENCY} at a time"
    yield compare(title, "tenant", samples, ["raw"], note=CREATION_NOTE)

    progress(f"migrating {tenants} tenants ...")
    with own_database(server) as url:
        config = make_config(url, folder / "migrated", Base, pool_size=CONCURRENCY)
        revisions = Revisions(config)
        schemas = _create_fleet(config, tenants)
        revisions.add_second()
        samples = _measure_migration(url, config, revisions, schemas, rounds)
        title = f"Adding a column to two tables of each of {tenants} tenants, {CONCURRENCY} at a time"
        yield compare(title, "tenant", samples, ["raw"])

        progress(f"reading the status of {tenants} tenants ...")
        samples = _measure_status(url, config, schemas, rounds * 3)
        yield compare(f"Status of {tenants} tenants", "tenant", samples, ["one_query", "query_per_tenant"])
