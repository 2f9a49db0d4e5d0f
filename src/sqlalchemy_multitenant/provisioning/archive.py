"""Archives: everything that a tenant has, in a file for `pg_restore`, before it is dropped."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import URL, Connection, text

from ..catalog.members import Member
from ..config import TenantConfig
from ..errors import ConfigurationError, ProvisioningError, TenantBusyError
from ..isolation.run import run_sql
from ..naming import quote_ident
from .pg_dump import DumpError, run_pg_dump


def write_archive(connection: Connection, config: TenantConfig, url: URL, member: Member, file: Path) -> None:
    """Dump the tenant's schema into a new file. Its tables can be read, but not changed, until the
    connection's transaction ends: the file holds what is dropped, to the last row.

    Raises:
        ConfigurationError: the file is there already, or cannot be written.
        ProvisioningError: pg_dump is not there, or failed; no file is left.
        TenantBusyError: somebody waits for a table of it, so that pg_dump would wait, too.
    """
    tables = connection.scalars(
        text(
            "SELECT quote_ident(relname) FROM pg_catalog.pg_class "
            "WHERE relnamespace = CAST(:schema AS regnamespace) AND relkind IN ('r', 'p')"
        ),
        {"schema": quote_ident(member.schema)},
    ).all()
    if tables:
        qualified = ", ".join(f"{quote_ident(member.schema)}.{table}" for table in tables)
        run_sql(connection, f"LOCK TABLE {qualified} IN SHARE MODE")
    version = int(connection.scalar(text("SHOW server_version_num")) or 0) // 10_000
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise ConfigurationError("archive", str(file), f"a new file cannot be made: {error}") from error
    try:
        # The pattern is quoted, so that nothing in the name means another.
        schema = '"' + member.schema.replace('"', '""') + '"'
        run_pg_dump(config, url, version, "--format=custom", f"--schema={schema}", f"--file={file}")
    except BaseException as error:
        file.unlink(missing_ok=True)
        if isinstance(error, DumpError) and "LOCK TABLE" in str(error):
            raise TenantBusyError(member.id, f"nothing was dropped, try again ({error})") from error
        if isinstance(error, DumpError):
            raise ProvisioningError(member.id, f"nothing was dropped: {error}") from error
        raise
