"""What the traffic of a tenant feels of its migration."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import Engine

from sqlalchemy_multitenant import Migrator, TenantConfig
from tests.integration.fleet import Write, fleet

TABLES = "\n".join(f"op.execute('CREATE TABLE t{n} (id int)')" for n in range(1, 4))
LOCK_TIMEOUT_S, MARGIN_S = 1.0, 0.5
"""As the fixtures configure it; and what may be added to it."""


@contextmanager
def reading(db: Engine, table: str, for_s: float) -> Iterator[None]:
    """Somebody reads a table in a long transaction."""
    with db.connect() as connection:
        connection.exec_driver_sql(f"SELECT * FROM tenant_t00.{table}")
        timer = threading.Timer(for_s, connection.rollback)
        timer.start()
        yield
        timer.join()


@pytest.mark.parametrize("online", ["", "op.get_bind()\n"], ids=["compiled", "online"])
def test_waiting_for_several_tables_takes_no_longer_than_for_one(
    config: TenantConfig, write: Write, db: Engine, online: str
) -> None:
    write("0001", None, TABLES)
    fleet(config, 1)
    write("0002", "0001", online + TABLES.replace("CREATE", "ALTER").replace("(id int)", "ADD x int"))
    longest, stop = 0.0, threading.Event()

    def insert() -> None:
        nonlocal longest
        while not stop.is_set():
            started = time.monotonic()
            with db.begin() as connection:
                connection.exec_driver_sql("INSERT INTO tenant_t00.t1 VALUES (1)")
            longest = max(longest, time.monotonic() - started)

    with ExitStack() as stack:
        stack.enter_context(reading(db, "t2", LOCK_TIMEOUT_S * 0.9))
        stack.enter_context(reading(db, "t3", LOCK_TIMEOUT_S * 1.8))
        writer = threading.Thread(target=insert)
        writer.start()
        try:
            with Migrator(config) as migrator:
                report = migrator.migrate_all()
        finally:
            stop.set()
            writer.join()
    assert report.succeeded == 1
    assert report.details[0].retries["lock timeout"] >= 1
    assert longest < LOCK_TIMEOUT_S + MARGIN_S
