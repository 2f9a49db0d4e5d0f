"""Prepares the database and starts the server: `python start.py`."""

import os

import uvicorn
from tenant_config import config

from sqlalchemy_multitenant import Migrator, TenantManager


def prepare() -> None:
    """What a deployment does before the new version starts."""
    with Migrator(config) as migrator:
        migrator.migrate_shared()
        migrator.migrate_all()
    with TenantManager(config) as tenants:
        tenants.create_tenants(["acme", "globex"])  # those that exist stay as they are


if __name__ == "__main__":
    prepare()
    uvicorn.run("app:app", port=int(os.environ.get("PORT", "8000")))
