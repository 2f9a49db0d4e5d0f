"""Where the tenants are. Used by the application, and by the command `multitenant`."""

import os
from pathlib import Path

from models import SharedBase, TenantBase
from sqlalchemy import URL, make_url

from sqlalchemy_multitenant import Connection, Migrations, Schemas, TenantConfig

here = Path(__file__).parent


def asyncpg_url() -> URL | None:
    """$DATABASE_URL, to be reached with asyncpg. Migrations and the command use psycopg all the same."""
    url = os.environ.get("DATABASE_URL")
    return make_url(url).set(drivername="postgresql+asyncpg") if url else None


config = TenantConfig(
    # Without a url: this database on the embedded server, with psycopg.
    connection=Connection(url=asyncpg_url(), embedded_database="litestar-basic", pool_size=10),
    schemas=Schemas(tenant=TenantBase, shared=SharedBase),
    migrations=Migrations(tenant_dir=here / "migrations/tenant", shared_dir=here / "migrations/shared"),
)
