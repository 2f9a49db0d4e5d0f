"""Every error of the toolkit: one tree, rooted in `MultitenantError`.

Each error also inherits the builtin that fits it, keeps its data in attributes, survives
pickling (so that it crosses process borders), and its message says what to do next.
"""

from __future__ import annotations

from typing import Any


class MultitenantError(Exception):
    """Root of all errors raised on purpose by this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException rebuilds from `args`, which are the constructor's arguments here; the
        # dictionary carries what was added later (`__notes__`).
        return type(self), self.args, self.__dict__


class ConfigurationError(MultitenantError, ValueError):
    """A setting is wrong: names the field, the value and the mend."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        # repr() at once: the value may be a callable or an engine, which cannot be pickled.
        shown = value if isinstance(value, _Shown) else _Shown(repr(value))
        super().__init__(field, shown, reason)
        self.field, self.value, self.reason = field, str(shown), reason

    def __str__(self) -> str:
        return f"{self.field} = {self.value}: {self.reason}"


class _Shown(str):
    """Text that is the repr of a value already."""

    __slots__ = ()


class MissingExtraError(MultitenantError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(feature, extra)
        self.feature, self.extra = feature, extra

    def __str__(self) -> str:
        return f"{self.feature} needs an extra: pip install 'sqlalchemy-multitenant[{self.extra}]'"


class NoTenantError(MultitenantError, LookupError):
    """Something would have run without a tenant."""

    def __init__(self, reason: str = "no tenant is set: wrap the call in context.use_tenant(...)") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class TenantConflictError(MultitenantError, ValueError):
    """A request, or a job, names more than one tenant."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}; it is for one tenant"


class InvalidTokenError(MultitenantError, ValueError):
    """A token that was to tell the tenant is not valid."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the token is not valid: {self.reason}"


class TenantError(MultitenantError):
    """An error about one tenant, whose id is in `tenant`."""

    default_reason = "something is wrong with this tenant"

    def __init__(self, tenant: str, reason: str | None = None) -> None:
        reason = self.default_reason if reason is None else reason
        super().__init__(tenant, reason)
        self.tenant, self.reason = tenant, reason

    def __str__(self) -> str:
        return f"tenant {self.tenant!r}: {self.reason}"


class InvalidTenantIdError(TenantError, ValueError):
    """A tenant id that can never be used; `reason` says which rule it breaks."""

    default_reason = "not a valid tenant id"


class TenantNotFoundError(TenantError, LookupError):
    """No such tenant: it was never created, or it was dropped."""

    default_reason = "not found; `multitenant tenant list` shows who is there"


class TenantExistsError(TenantError, ValueError):
    """The id, or the schema it maps to, is taken."""

    default_reason = "exists already"


class TenantCollisionError(TenantExistsError, InvalidTenantIdError):
    """The id maps to a schema that belongs to another tenant, `owner`."""

    def __init__(self, tenant: str, schema: str, owner: str) -> None:
        super().__init__(
            tenant, f"it would share schema {schema!r} with tenant {owner!r}; change schema_name"
        )
        self.args = (tenant, schema, owner)
        self.schema, self.owner = schema, owner


# Not PermissionError and TimeoutError: those are OSErrors, and psycopg takes an OSError that is raised
# while it waits for the server as the end of the connection.


class TenantSuspendedError(TenantError, RuntimeError):
    """The tenant is suspended: it exists, but nothing runs for it."""

    default_reason = (
        "suspended; `multitenant tenant activate --id ...` lets it work again, as does "
        "set_tenant_status(..., 'active')"
    )


class TenantBusyError(TenantError, RuntimeError):
    """The tenant, or the connections it needs, stayed in use for too long. Trying again may help."""

    default_reason = "busy; try again"


class ProvisioningError(TenantError, RuntimeError):
    """Creating or dropping a tenant failed; nothing of it is left behind."""

    default_reason = "could not be provisioned"


class TenantQueryError(TenantError, RuntimeError):
    """A query over many tenants failed for this one; the database's own error is its `__cause__`."""

    default_reason = "the query failed"


class MigrationError(MultitenantError, RuntimeError):
    """Migrations are wrong in themselves, or failed for a tenant.

    Attributes:
        reason: what is wrong and what to do.
        tenant: the tenant's id, or None where it concerns all.
        revision: the Alembic revision, or None.
    """

    def __init__(self, reason: str, tenant: str | None = None, revision: str | None = None) -> None:
        super().__init__(reason, tenant, revision)
        self.reason, self.tenant, self.revision = reason, tenant, revision

    def __str__(self) -> str:
        where = [f"tenant {self.tenant!r}"] if self.tenant else []
        where += [f"revision {self.revision!r}"] if self.revision else []
        return f"{', '.join(where)}: {self.reason}" if where else self.reason
