"""Tenants for tests of migrations."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, text

from sqlalchemy_multitenant import TenantConfig, TenantManager
from sqlalchemy_multitenant.provisioning.pg_dump import find_pg_dump

Write = Callable[..., None]

tenant_models = MetaData()
Table("items", tenant_models, Column("id", Integer, primary_key=True), Column("name", String))


FIRST = (
    'op.create_table("items", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String))'
)


def fleet(config: TenantConfig, count: int) -> list[str]:
    """Create so many tenants at the newest revision."""
    names = [f"t{i:02d}" for i in range(count)]
    with TenantManager(config) as manager:
        for name in names:
            manager.create_tenant(name)
    return names


def rows(db: Engine, tenant: str, sql: str) -> list[object]:
    with db.connect() as connection:
        connection.exec_driver_sql(f"SET LOCAL search_path TO tenant_{tenant}")
        return list(connection.execute(text(sql)).scalars())


def restore(db: Engine, file: Path) -> None:
    """Bring an archive back."""
    url = db.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with db.connect() as connection:
        version = int(connection.scalar(text("SHOW server_version_num")) or 0) // 10_000
    program = find_pg_dump(version).with_name("pg_restore")
    subprocess.run([program, f"--dbname={url}", str(file)], check=True)
