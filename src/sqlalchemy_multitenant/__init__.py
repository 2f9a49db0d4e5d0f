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
    from .database import TenantDb as TenantDb
    from .database_async import AsyncTenantDb as AsyncTenantDb
    from .errors import ConfigurationError as ConfigurationError
    from .errors import InvalidTenantIdError as InvalidTenantIdError
    from .errors import MigrationError as MigrationError
    from .errors import MissingExtraError as MissingExtraError
    from .errors import MultitenantError as MultitenantError
    from .errors import NoTenantError as NoTenantError
    from .errors import ProvisioningError as ProvisioningError
    from .errors import TenantBusyError as TenantBusyError
    from .errors import TenantCollisionError as TenantCollisionError
    from .errors import TenantExistsError as TenantExistsError
    from .errors import TenantNotFoundError as TenantNotFoundError
    from .errors import TenantSuspendedError as TenantSuspendedError
    from .events import Hooks as Hooks
    from .events import MigrationHooks as MigrationHooks
    from .manager import TenantManager as TenantManager
    from .manager_async import AsyncTenantManager as AsyncTenantManager
    from .migrations.catalogue import Difference as Difference
    from .migrations.migrator import Migrator as Migrator
    from .migrations.report import MigrationReport as MigrationReport
    from .migrations.verify import TenantVerification as TenantVerification
    from .provisioning.report import CreationReport as CreationReport
    from .provisioning.spares import SpareStock as SpareStock

__version__: str

_HOMES = {
    "catalog.records": ("TenantRecord", "TenantStatus"),
    "config": ("Connection", "Isolation", "Metrics", "Migrations", "Schemas", "TenantConfig"),
    "context": ("CurrentTenant", "TenantContext"),
    "database": ("TenantDb",),
    "database_async": ("AsyncTenantDb",),
    "errors": (
        "ConfigurationError",
        "InvalidTenantIdError",
        "MigrationError",
        "MissingExtraError",
        "MultitenantError",
        "NoTenantError",
        "ProvisioningError",
        "TenantBusyError",
        "TenantCollisionError",
        "TenantExistsError",
        "TenantNotFoundError",
        "TenantSuspendedError",
    ),
    "events": ("Hooks", "MigrationHooks"),
    "manager": ("TenantManager",),
    "manager_async": ("AsyncTenantManager",),
    "migrations.catalogue": ("Difference",),
    "migrations.migrator": ("Migrator",),
    "migrations.report": ("MigrationReport",),
    "migrations.verify": ("TenantVerification",),
    "provisioning.report": ("CreationReport",),
    "provisioning.spares": ("SpareStock",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncTenantDb",
    "AsyncTenantManager",
    "ConfigurationError",
    "Connection",
    "CreationReport",
    "CurrentTenant",
    "Difference",
    "Hooks",
    "InvalidTenantIdError",
    "Isolation",
    "Metrics",
    "MigrationError",
    "MigrationHooks",
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
    "TenantContext",
    "TenantDb",
    "TenantExistsError",
    "TenantManager",
    "TenantNotFoundError",
    "TenantRecord",
    "TenantStatus",
    "TenantSuspendedError",
    "TenantVerification",
    "__version__",
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
