"""What queries ask of the handles that they are given."""

from __future__ import annotations

from typing import cast

from sqlalchemy.ext.asyncio import AsyncEngine

from ..catalog.source import Layout
from ..config import Schemas
from ..database import TenantDb
from ..database_async import AsyncTenantDb
from ..errors import ConfigurationError
from ..isolation.scope import SCOPE_OPTION

AnyDb = TenantDb | AsyncTenantDb


def layout_of(db: AnyDb) -> Layout:
    """Where the tenants of the handle's manager live."""
    engine = db.engine.sync_engine if isinstance(db.engine, AsyncEngine) else db.engine
    return cast("Layout", engine.get_execution_options()[SCOPE_OPTION].layout)


def check_pair(tenant_db: AnyDb, shared_db: AnyDb, kind: type[AnyDb]) -> Schemas:
    """Make sure that they are a tenant's and the shared handle of one manager; returns its models.

    Raises:
        ConfigurationError: they are not.
    """
    for name, db in (("tenant_db", tenant_db), ("shared_db", shared_db)):
        if not isinstance(db, kind):
            other = "an AsyncTenantManager's" if kind is TenantDb else "a TenantManager's"
            raise ConfigurationError(
                name, db, f"it must be a {kind.__name__} here, as the other one; not {other}"
            )
    if tenant_db.tenant is None:
        raise ConfigurationError("tenant_db", tenant_db, "the handle of a tenant: tenants.get_db(...)")
    if shared_db.tenant is not None:
        raise ConfigurationError("shared_db", shared_db, "the shared handle: tenants.get_shared_db()")
    layout = layout_of(tenant_db)
    if layout is not layout_of(shared_db):
        raise ConfigurationError(
            "shared_db", shared_db, "it must come from the manager that tenant_db is from"
        )
    return layout.schemas
