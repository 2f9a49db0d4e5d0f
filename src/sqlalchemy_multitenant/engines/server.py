"""Which server a configuration means: the URL it names, `$DATABASE_URL`, or the embedded one."""

from __future__ import annotations

import os

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
