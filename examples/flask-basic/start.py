"""Prepares the database and starts the server: `python start.py`."""

import os
import sys

from gunicorn.app.wsgiapp import run
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
    bind = f"127.0.0.1:{os.environ.get('PORT', '8000')}"
    # As on gunicorn's command line. It runs in this process, which keeps the embedded server until the end.
    sys.argv[1:] = ["--bind", bind, "--workers", "2", "--threads", "8", "app:app"]
    run()
