"""Who belongs to the fleet: the tenants and their schemas, from the catalog or from `discover`."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from ..config import TenantConfig
from ..errors import TenantNotFoundError
from ..naming import SchemaName, TenantId, parse_tenant_id, quote_ident
from .claims import SchemaClaims, call_discover
from .records import TenantStatus
from .store import CatalogStore


@dataclass(frozen=True, slots=True)
class Member:
    """A tenant and its schema."""

    id: TenantId
    schema: SchemaName
    status: TenantStatus = TenantStatus.ACTIVE


class Membership:
    """Answers for one configuration who the tenants are."""

    def __init__(self, config: TenantConfig) -> None:
        self._config = config
        self.store = CatalogStore(config.schemas.shared_schema)
        # Whoever lists the members learns their claims; nobody else has made any before that.
        self.claims = SchemaClaims(config.naming)

    @property
    def uses_catalog(self) -> bool:
        return self._config.migrations.discover is None

    def list(self, connection: Connection) -> list[Member]:
        """All tenants, suspended ones included, in a stable order. Leaves no transaction open.

        Raises:
            InvalidTenantIdError: `discover` returned something that is no id.
            TenantCollisionError: it returned two ids that map to one schema.
        """
        discover = self._config.migrations.discover
        try:
            if discover is not None:
                path = quote_ident(self._config.schemas.shared_schema)
                connection.execute(text("SELECT set_config('search_path', :path, true)"), {"path": path})
                ids = self.claims.learn(call_discover(discover, connection))
                return [Member(tenant, self._config.naming.schema_for(tenant)) for tenant in ids]
            if not self.store.is_installed(connection):
                return []
            records = self.store.list(connection)
            return [Member(r.id, r.schema, r.status) for r in records if r.schema is not None]
        finally:
            connection.rollback()

    def find(self, connection: Connection, tenant: str) -> Member | None:
        """The tenant of this id, or None."""
        wanted = parse_tenant_id(tenant)
        if not self.uses_catalog:
            return next((m for m in self.list(connection) if m.id == wanted), None)
        try:
            if not self.store.is_installed(connection):
                return None
            record = self.store.find(connection, wanted)
        finally:
            connection.rollback()
        if record is None or record.schema is None or record.status is TenantStatus.DROPPED:
            return None
        return Member(record.id, record.schema, record.status)

    def lock(self, connection: Connection, tenant: TenantId) -> Member:
        """The tenant, its record locked until the connection's transaction ends.

        Raises:
            TenantNotFoundError: there is none, or it was dropped.
        """
        record = self.store.find(connection, tenant, lock=True)
        if record is None or record.schema is None or record.status is TenantStatus.DROPPED:
            raise TenantNotFoundError(tenant)
        return Member(record.id, record.schema, record.status)
