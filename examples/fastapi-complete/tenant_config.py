"""Where the tenants are. Used by the application, and by the command `multitenant`."""

from pathlib import Path

from models import SharedBase, TenantBase

from sqlalchemy_multitenant import Connection, Migrations, Schemas, TenantConfig

here = Path(__file__).parent

config = TenantConfig(
    # Without a url: $DATABASE_URL, or else this database on the embedded server.
    # In a rush, a request waits so long for a connection before the answer is 503.
    connection=Connection(embedded_database="fastapi-complete", pool_size=10, pool_timeout_s=20),
    schemas=Schemas(tenant=TenantBase, shared=SharedBase),
    migrations=Migrations(tenant_dir=here / "migrations/tenant", shared_dir=here / "migrations/shared"),
)
