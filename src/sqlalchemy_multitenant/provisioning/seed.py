"""Seeds: the first rows of a new tenant, in the transaction that creates it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..errors import ConfigurationError, ProvisioningError
from ..isolation.run import run_sql
from ..isolation.sqltext import find_transaction_control

Seed: TypeAlias = "Callable[[Session], object] | Path"
"""A callable, which is given a session of the new tenant's; or a file of SQL. Neither commits."""


def check_seed(seed: object) -> None:
    """Find what is wrong with a seed before anything is created.

    Raises:
        ConfigurationError: it is neither a callable nor a file of SQL that can be read.
    """
    if seed is None or callable(seed):
        return
    if not isinstance(seed, Path):
        raise ConfigurationError(
            "seed", seed, "a callable that takes a Session, or the Path of a file of SQL"
        )
    try:
        sql = seed.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("seed", str(seed), f"it cannot be read: {error}") from error
    if command := find_transaction_control(sql):
        raise ConfigurationError("seed", str(seed), f"{command} would split the creation in two: take it out")


def run_seed(connection: Connection, seed: Seed, tenant: str) -> None:
    """Run a seed in the connection's transaction, whose search path is the new tenant's.

    Raises:
        ProvisioningError: it raised; nothing of the tenant is kept, unless it has committed by itself.
    """
    before = _transaction_id(connection)
    try:
        _run(connection, seed)
    except Exception as error:
        what = f"raised {type(error).__name__}: {error}"
        if isinstance(error, DBAPIError):
            what = f"failed: {str(error.orig).strip()}"
        if _has_ended(connection, before):
            raise ProvisioningError(tenant, f"{_ENDED}. It {what}") from error
        raise ProvisioningError(tenant, f"nothing was created: the seed {what}") from error
    if _has_ended(connection, before):
        raise ProvisioningError(tenant, _ENDED)


_ENDED = "its seed has ended the transaction by itself; what was created before that stays: drop the tenant"


def _run(connection: Connection, seed: Seed) -> None:
    if isinstance(seed, Path):
        run_sql(connection, seed.read_text(encoding="utf-8-sig"))
        return
    # As a savepoint: a commit() in it ends that alone.
    with Session(connection, join_transaction_mode="create_savepoint") as session:
        seed(session)
        session.commit()


def _transaction_id(connection: Connection) -> object:
    return connection.scalar(text("SELECT pg_current_xact_id_if_assigned()::text"))


def _has_ended(connection: Connection, before: object) -> bool:
    """Whether the transaction is not the one that it was. Where there was an error, another may have begun
    since: it is rolled back, to see."""
    if connection.invalidated:
        return False  # lost, and with it what was not committed
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    if driver.closed:
        return False
    status = driver.info.transaction_status
    if status == psycopg.pq.TransactionStatus.INERROR:
        driver.rollback()
        told = driver.execute("SELECT pg_xact_status(%s::text::xid8)", (before,)).fetchone()
        driver.rollback()
        return told is not None and told[0] == "committed"
    ended = not connection.in_transaction() or status != psycopg.pq.TransactionStatus.INTRANS
    return ended or _transaction_id(connection) != before
