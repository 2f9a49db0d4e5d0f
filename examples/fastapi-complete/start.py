"""Prepares the database and starts the server, with a worker in it: `python start.py`."""

import logging
import os
import sys

import uvicorn
from accounts import DEVELOPMENT_KEY, SECRET_KEY
from admin import ADMIN_TOKEN
from context import context
from jobs import jobs
from models import Plan
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from tenant_config import config

from sqlalchemy_multitenant import Migrator, TenantManager
from sqlalchemy_multitenant.integrations.logging import TenantFilter

PLANS = [{"name": "free", "max_projects": 3}, {"name": "team", "max_projects": 1000}]


def prepare() -> None:
    """What a deployment does before the new version starts."""
    with Migrator(config) as migrator:
        migrator.migrate_shared()
        report = migrator.migrate_all()
    if report.failed:
        sys.exit(f"not migrated: {[result.tenant for result in report.failures]}")
    with TenantManager(config) as tenants, tenants.get_shared_db().begin() as session:
        session.execute(text("SELECT pg_advisory_xact_lock(1)"))  # one deployment at a time
        session.execute(insert(Plan).values(PLANS).on_conflict_do_nothing())
        # Once. Newer versions of procrastinate say what they change.
        if session.scalar(text("SELECT to_regclass('procrastinate_jobs')")) is None:
            with jobs.open():
                jobs.schema_manager.apply_schema()


def start_logging() -> None:
    """To the terminal, the tenant in each line."""
    handler = logging.StreamHandler()
    handler.addFilter(TenantFilter(context))
    handler.setFormatter(logging.Formatter("%(levelname)s [%(tenant)s] %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if DEVELOPMENT_KEY in (SECRET_KEY, ADMIN_TOKEN):
        logging.warning("set $SECRET_KEY and $ADMIN_TOKEN: what stands in for them is known to everybody")


if __name__ == "__main__":
    start_logging()
    prepare()
    uvicorn.run(
        "app:app",
        port=int(os.environ.get("PORT", "8000")),
        log_config=None,  # that of start_logging
        timeout_graceful_shutdown=3,  # for answers that are on their way
    )
