"""Creating and migrating many tenants: ours against the same SQL, sent raw over as many connections."""

from __future__ import annotations

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

from .database import connect, make_config
from .report import Report, compare
from .rounds import Samples, Variant, measure

ROUNDS, TENANTS, CONCURRENCY, BATCH = 8, 100, 4, 12


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

    def messages(self, start: tuple[str, ...], schemas: Sequence[str]) -> list[str]:
        """What the upgrade from `start` comes to: for each schema one message, which is one transaction.
        From nothing, it creates the schema, too."""
        with Migrator(self._config) as migrator:
            plan = migrator.tenant_history.plan_upgrade(start)
        assert plan.statements, plan.online
        body = "; ".join(statement.sql for statement in plan.statements)
        create = "" if start else "CREATE SCHEMA {0}; "
        opening = f"BEGIN; {create}SET LOCAL search_path TO {{0}}, public; "
        return [f"{opening.format(schema)}{body}; COMMIT" for schema in schemas]


def _measure_creation(url: URL, config: TenantConfig, revisions: Revisions, rounds: int) -> Samples:
    """Connections are open, as they are in a server process."""
    numbers = count()

    def make_names(_: Random) -> list[str]:
        return [f"t{next(numbers)}" for _ in range(BATCH)]

    with (
        raw_connections(url) as send,
        TenantManager(config) as manager,
        ThreadPoolExecutor(CONCURRENCY) as threads,
    ):

        def create(names: Sequence[str]) -> None:
            assert len(list(threads.map(manager.create_tenant, names))) == len(names)

        def create_raw(names: Sequence[str]) -> None:
            send(revisions.messages((), [f"raw_{name}" for name in names]))

        return measure([Variant("ours", create), Variant("raw", create_raw)], rounds, make_names, BATCH)
