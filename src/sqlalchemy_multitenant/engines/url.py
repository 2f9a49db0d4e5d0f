"""URLs: the one that a configuration means, and what each driver makes of it."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from psycopg import pq
from sqlalchemy import URL

from ..config import Connection, parse_url
from ..errors import ConfigurationError, MissingExtraError


def resolve_url(connection: Connection) -> URL:
    """The URL to connect to. Starts the embedded server where nothing else is configured; it stops
    with the last process that uses it.

    Raises:
        ConfigurationError: there is no URL, and the extra `[embedded]` is not installed.
    """
    if connection.url is not None:
        return parse_url(connection.url)
    if url := os.environ.get("DATABASE_URL"):
        return parse_url(url, "$DATABASE_URL")
    from .. import devserver

    try:
        server = devserver.start()
    except MissingExtraError as error:
        raise ConfigurationError(
            "connection.url",
            None,
            "set it, or $DATABASE_URL, or install the embedded server: "
            "pip install 'sqlalchemy-multitenant[embedded]'",
        ) from error
    server.ensure_database(connection.embedded_database)
    return parse_url(server.url(connection.embedded_database))


def scoped_url(url: URL, *, is_async: bool) -> URL:
    """`url` with the scoped dialect of its driver. Threads always use psycopg.

    Raises:
        MissingExtraError: asyncpg is not installed.
    """
    driver = url.drivername.partition("+")[2] if is_async else "psycopg"
    if driver == "asyncpg" and importlib.util.find_spec("asyncpg") is None:
        raise MissingExtraError("postgresql+asyncpg://", "asyncpg")
    return url.set(drivername=f"postgresql+multitenant_{driver}")


def psycopg_url(url: URL) -> URL:
    """`url` for psycopg: of an asyncpg URL's options, those that libpq has, and `ssl` as `sslmode`
    (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS)."""
    if not url.drivername.endswith("asyncpg"):
        return url.set(drivername="postgresql+psycopg")
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    query = {("sslmode" if key == "ssl" else key): value for key, value in url.query.items()}
    return url.set(
        drivername="postgresql+psycopg", query={key: value for key, value in query.items() if key in known}
    )


def psycopg_args(connection: Connection, url: URL) -> dict[str, Any]:
    """The connect arguments for psycopg: none, where they are meant for asyncpg."""
    return {} if url.drivername.endswith("asyncpg") else dict(connection.connect_args)
