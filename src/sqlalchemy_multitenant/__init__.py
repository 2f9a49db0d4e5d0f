"""Multi-tenancy for SQLAlchemy 2 and PostgreSQL.

Names are loaded when they are first used: importing the package loads neither Alembic nor a framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog.records import TenantRecord as TenantRecord
    from .catalog.records import TenantStatus as TenantStatus
    from .config import Connection as Connection
    from .config import Isolation as Isolation
    from .config import Metrics as Metrics
    from .config import Migrations as Migrations
    from .config import Schemas as Schemas
    from .config import TenantConfig as TenantConfig
    from .context import CurrentTenant as CurrentTenant
    from .context import TenantContext as TenantContext
    from .crossschema.aggregate import aggregate_all as aggregate_all
    from .crossschema.all_tenants import for_all_tenants as for_all_tenants
    from .crossschema.lookup import with_shared_lookup as with_shared_lookup
    from .crossschema.optional import optional as optional
    from .crossschema.query import AsyncCrossSchemaQuery as AsyncCrossSchemaQuery
    from .crossschema.query import CrossSchemaQuery as CrossSchemaQuery
    from .crossschema.raw import cross_schema_raw as cross_schema_raw
    from .database import TenantDb as TenantDb
    from .database_async import AsyncTenantDb as AsyncTenantDb
    from .errors import ConfigurationError as ConfigurationError
    from .errors import InvalidTenantIdError as InvalidTenantIdError
    from .errors import InvalidTokenError as InvalidTokenError
    from .errors import MigrationError as MigrationError
    from .errors import MissingExtraError as MissingExtraError
    from .errors import MultitenantError as MultitenantError
    from .errors import NoTenantError as NoTenantError
    from .errors import ProvisioningError as ProvisioningError
    from .errors import TenantBusyError as TenantBusyError
    from .errors import TenantCollisionError as TenantCollisionError
    from .errors import TenantConflictError as TenantConflictError
    from .errors import TenantError as TenantError
    from .errors import TenantExistsError as TenantExistsError
    from .errors import TenantNotFoundError as TenantNotFoundError
    from .errors import TenantQueryError as TenantQueryError
    from .errors import TenantSuspendedError as TenantSuspendedError
    from .events import CrossTenantQuery as CrossTenantQuery
    from .events import Hooks as Hooks
    from .events import MigrationHooks as MigrationHooks
    from .manager import TenantManager as TenantManager
    from .manager_async import AsyncTenantManager as AsyncTenantManager
    from .migrations.catalogue import Difference as Difference
    from .migrations.migrator import Migrator as Migrator
    from .migrations.report import MigrationInterrupted as MigrationInterrupted
    from .migrations.report import MigrationReport as MigrationReport
    from .migrations.verify import TenantVerification as TenantVerification
    from .provisioning.report import CreationReport as CreationReport
    from .provisioning.spares import SpareStock as SpareStock

__version__: str

_HOMES = {
    "catalog.records": ("TenantRecord", "TenantStatus"),
    "config": ("Connection", "Isolation", "Metrics", "Migrations", "Schemas", "TenantConfig"),
    "context": ("CurrentTenant", "TenantContext"),
    "crossschema.aggregate": ("aggregate_all",),
    "crossschema.all_tenants": ("for_all_tenants",),
    "crossschema.lookup": ("with_shared_lookup",),
    "crossschema.optional": ("optional",),
    "crossschema.query": ("AsyncCrossSchemaQuery", "CrossSchemaQuery"),
    "crossschema.raw": ("cross_schema_raw",),
    "database": ("TenantDb",),
    "database_async": ("AsyncTenantDb",),
    "errors": (
        "ConfigurationError",
        "InvalidTenantIdError",
        "InvalidTokenError",
        "MigrationError",
        "MissingExtraError",
        "MultitenantError",
        "NoTenantError",
        "ProvisioningError",
        "TenantBusyError",
        "TenantCollisionError",
        "TenantConflictError",
        "TenantError",
        "TenantExistsError",
        "TenantNotFoundError",
        "TenantQueryError",
        "TenantSuspendedError",
    ),
    "events": ("CrossTenantQuery", "Hooks", "MigrationHooks"),
    "manager": ("TenantManager",),
    "manager_async": ("AsyncTenantManager",),
    "migrations.catalogue": ("Difference",),
    "migrations.migrator": ("Migrator",),
    "migrations.report": ("MigrationInterrupted", "MigrationReport"),
    "migrations.verify": ("TenantVerification",),
    "provisioning.report": ("CreationReport",),
    "provisioning.spares": ("SpareStock",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncCrossSchemaQuery",
    "AsyncTenantDb",
    "AsyncTenantManager",
    "ConfigurationError",
    "Connection",
    "CreationReport",
    "CrossSchemaQuery",
    "CrossTenantQuery",
    "CurrentTenant",
    "Difference",
    "Hooks",
    "InvalidTenantIdError",
    "InvalidTokenError",
    "Isolation",
    "Metrics",
    "MigrationError",
    "MigrationHooks",
    "MigrationInterrupted",
    "MigrationReport",
    "Migrations",
    "Migrator",
    "MissingExtraError",
    "MultitenantError",
    "NoTenantError",
    "ProvisioningError",
    "Schemas",
    "SpareStock",
    "TenantBusyError",
    "TenantCollisionError",
    "TenantConfig",
    "TenantConflictError",
    "TenantContext",
    "TenantDb",
    "TenantError",
    "TenantExistsError",
    "TenantManager",
    "TenantNotFoundError",
    "TenantQueryError",
    "TenantRecord",
    "TenantStatus",
    "TenantSuspendedError",
    "TenantVerification",
    "__version__",
    "aggregate_all",
    "cross_schema_raw",
    "for_all_tenants",
    "optional",
    "with_shared_lookup",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("sqlalchemy-multitenant")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME_OF]
