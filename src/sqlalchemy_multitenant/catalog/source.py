"""Scope sources: what a process knows about one tenant, checked by the server at each BEGIN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..config import Schemas, TenantConfig
from ..errors import ConfigurationError, TenantNotFoundError, TenantSuspendedError
from ..isolation.scope import STALE_SQLSTATES, Scope, plan_scope
from ..naming import SchemaName, SchemaNaming, TenantId, quote_ident, quote_literal
from ..placement import Placement, Target
from .claims import SchemaClaims
from .records import TenantStatus
from .table import lookup_sql, qualified, usable_sql


@dataclass(frozen=True, slots=True)
class Layout:
    """What of the configuration decides where tenants live."""

    schemas: Schemas
    naming: SchemaNaming
    pool_per_tenant: bool

    @classmethod
    def of(cls, config: TenantConfig) -> Layout:
        return cls(config.schemas, config.naming, config.isolation.pool_per_tenant)

    @property
    def shared_schema(self) -> str:
        return self.schemas.shared_schema

    def target(self, tenant: TenantId | None) -> Target:
        """The pool that serves `tenant`."""
        return Target(owner=tenant if self.pool_per_tenant else None)

    def place(self, tenant: TenantId, schema: SchemaName) -> Placement:
        """The placement of `tenant` in `schema`."""
        return Placement(tenant, self.target(tenant), schema, self.schemas.search_path(schema))

    def shared(self) -> Placement:
        """The placement of the shared data."""
        return Placement(None, Target(), SchemaName(self.shared_schema), self.schemas.search_path())


def _may_use(usable: str | None, tenant: str, schema: str) -> None:
    """Refuse a schema that PostgreSQL would pass over."""
    if usable != "true":
        raise ConfigurationError(
            "connection.url",
            f"tenant {tenant!r}",
            f"its role may not use the schema: GRANT USAGE ON SCHEMA {quote_ident(schema)} TO the role",
        )


class SharedSource:
    """The scope of the shared schema; it never changes."""

    __slots__ = ("_scope", "layout", "lookup_sql", "tenant")

    def __init__(self, layout: Layout) -> None:
        self.tenant = None
        self.layout = layout
        self._scope = plan_scope(layout.shared())
        self.lookup_sql = usable_sql(quote_literal(layout.shared_schema))

    def current(self) -> Scope:
        return self._scope

    def refresh(self, row: Sequence[str | None] | None) -> Scope:
        if row is None:
            raise TenantNotFoundError(
                "shared",
                f"schema {self._scope.placement.schema!r} does not exist; run `multitenant migrate --shared`",
            )
        return self._scope

    def explain(self, sqlstate: str | None) -> Exception | None:  # noqa: ARG002
        return None

    def blocking_step(self) -> None:
        return None


class _TenantSource:
    """What the two kinds of tenant sources share: the scope that was found last."""

    __slots__ = ("_scope", "layout", "tenant")

    def __init__(self, layout: Layout, tenant: TenantId) -> None:
        self.tenant = tenant
        self.layout = layout
        self._scope: Scope | None = None

    def current(self) -> Scope | None:
        return self._scope

    def explain(self, sqlstate: str | None) -> Exception | None:  # noqa: ARG002
        return None

    def blocking_step(self) -> Callable[[], object] | None:
        return None


class CatalogSource(_TenantSource):
    """Reads the tenant's record in the catalog's table."""

    __slots__ = ()

    @property
    def lookup_sql(self) -> str:
        return lookup_sql(self.layout.shared_schema, self.tenant)

    def refresh(self, row: Sequence[str | None] | None) -> Scope:
        self._scope = None
        if row is None:
            self.layout.naming.schema_for(self.tenant)  # raises for an id that no tenant can have by itself
            raise TenantNotFoundError(self.tenant)
        status, schema, epoch, usable = row
        if status == TenantStatus.SUSPENDED:
            raise TenantSuspendedError(self.tenant)
        if status != TenantStatus.ACTIVE or schema is None:
            raise TenantNotFoundError(self.tenant, "dropped")
        if epoch is None:
            raise TenantNotFoundError(
                self.tenant, "the catalog is damaged: run `multitenant migrate --shared` to mend it"
            )
        if usable is None:
            raise TenantNotFoundError(self.tenant, f"its schema {schema!r} is gone from the database")
        _may_use(usable, self.tenant, schema)
        placement = self.layout.place(self.tenant, self.layout.naming.check(self.tenant, schema))
        scope = plan_scope(placement, qualified(self.layout.shared_schema, epoch))
        self._scope = scope
        return scope

    def explain(self, sqlstate: str | None) -> Exception | None:
        if sqlstate not in STALE_SQLSTATES:
            return None
        return TenantNotFoundError(
            self.tenant,
            f"schema {self.layout.shared_schema!r} has no catalog of tenants yet; create a tenant, or run "
            "`multitenant migrate --shared`",
        )


class DiscoveredSource(_TenantSource):
    """Trusts the mapping from id to schema, and asks the database whether the schema is there, and still the
    same. `claims` makes sure that no other id has been given it.
    """

    __slots__ = ("_claims", "_oid", "_schema")

    def __init__(self, layout: Layout, tenant: TenantId, schema: SchemaName, claims: SchemaClaims) -> None:
        super().__init__(layout, tenant)
        self._schema, self._claims = schema, claims
        self._oid: str | None = None

    @property
    def lookup_sql(self) -> str:
        return usable_sql(quote_literal(self._schema))

    def blocking_step(self) -> Callable[[], object] | None:
        return self._claims.relearn if self._claims.is_open(self.tenant, self._schema) else None

    def refresh(self, row: Sequence[str | None] | None) -> Scope:
        self._scope = None
        if row is None:
            self._claims.forget(self._schema)
            raise TenantNotFoundError(self.tenant, f"there is no schema {quote_ident(self._schema)}")
        usable, oid = row
        _may_use(usable, self.tenant, self._schema)
        if self._claims.may_collide and self._oid not in (None, oid):
            # It was dropped and made again, for another id perhaps: the next transaction learns whose it is.
            self._oid = None
            self._claims.forget(self._schema)
            raise TenantNotFoundError(self.tenant, "its schema was dropped and made again; try again")
        self._claims.check(self.tenant, self._schema)
        self._oid = oid
        scope = plan_scope(self.layout.place(self.tenant, self._schema), oid=oid)
        self._scope = scope
        return scope
