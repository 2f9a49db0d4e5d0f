"""Plain engines for the toolkit's own work."""

from __future__ import annotations

import os
import weakref
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event

from ..config import TenantConfig
from .pipeline import send_all
from .url import psycopg_args, psycopg_url

CLEAN = "multitenant_clean"
"""A key of `Connection.info`: nothing has changed the session since the connection was taken."""

_admin_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_in_child() -> None:
    for engine in list(_admin_engines):
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    # https://docs.sqlalchemy.org/en/21/core/pooling.html#using-connection-pools-with-multiprocessing-or-os-fork
    os.register_at_fork(after_in_child=_forget_in_child)


def make_admin_engine(
    config: TenantConfig,
    url: URL,
    *,
    pool_size: int = 1,
    pre_ping: bool = True,
    application_name: str | None = None,
) -> Engine:
    """A plain engine for the toolkit's own work: provisioning, migrations. No tenant's code gets it.

    Args:
        pre_ping: test each connection when it is taken: such work is rare, and they may have died meanwhile.
        application_name: what its connections call themselves in `pg_stat_activity`.
    """
    named = {} if application_name is None else {"application_name": application_name}
    engine = create_engine(
        psycopg_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=max(config.connection.pool_timeout_s, 60.0),
        pool_pre_ping=pre_ping,
        pool_reset_on_return=None,
        # The toolkit writes its SQL as UTF-8, whatever the database's own encoding is.
        connect_args={
            **psycopg_args(config.connection, url),
            **named,
            "prepare_threshold": None,
            "client_encoding": "utf8",
        },
        echo=config.connection.echo,
    )

    @event.listens_for(engine, "reset")
    def clean(dbapi_connection: Any, record: Any, state: Any) -> None:
        # What a revision sets must not reach the next tenant's transaction.
        if not state.terminate_only:
            dbapi_connection.rollback()
            if not record.info.pop(CLEAN, False):
                send_all(dbapi_connection, [b"DISCARD ALL"])

    _admin_engines.add(engine)
    return engine
