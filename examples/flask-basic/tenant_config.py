"""Where the tenants are. Used by the application, and by the command `multitenant`."""

from pathlib import Path

from models import SharedBase, TenantBase

from sqlalchemy_multitenant import Connection, Migrations, Schemas, TenantConfig

here = Path(__file__).parent

config = TenantConfig(
    # Without a url: $DATABASE_URL, or else this database on the embedded server.
    # Each worker process has a pool of its own: with two of them, ten connections at most.
    connection=Connection(embedded_database="flask-basic", pool_size=5),
    schemas=Schemas(tenant=TenantBase, shared=SharedBase),
    migrations=Migrations(tenant_dir=here / "migrations/tenant", shared_dir=here / "migrations/shared"),
)
