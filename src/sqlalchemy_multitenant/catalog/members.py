"""Who belongs to the fleet: the tenants and their schemas, from the catalog or from `discover`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from ..config import TenantConfig
from ..errors import TenantNotFoundError, TenantQueryError, TenantSuspendedError
from ..naming import SchemaName, TenantId, parse_tenant_id, path_sql
from .claims import SchemaClaims, call_discover
from .records import TenantStatus
from .store import CatalogStore


@dataclass(frozen=True, slots=True)
class Member:
    """A tenant and its schema."""

    id: TenantId
    schema: SchemaName
    status: TenantStatus = TenantStatus.ACTIVE


@dataclass(frozen=True, slots=True)
class Roster:
    """The tenants as they were at one moment.

    Attributes:
        members: all of them, suspended ones included, in a stable order.
        store: the catalog that they were read from; None where `discover` named them.
        epoch: the catalog's, of no later than that moment; None where there are none.
        any_status: whether it is all the same if one is suspended or activated since.
    """

    members: list[Member]
    store: CatalogStore | None = None
    epoch: str | None = None
    any_status: bool = False

    def check(self, connection: Connection, members: Sequence[Member]) -> None:
        """Make sure that the catalog still has `members` as they are here.

        Raises:
            TenantSuspendedError, TenantNotFoundError: one of them is not what it was.
            TenantQueryError: it is there, in another schema.
        """
        if self.store is None or self.store.is_at(connection, self.epoch):
            return
        known = [(m.id, m.schema, m.status) for m in members]
        for tenant, status, is_moved in self.store.differing(connection, known):
            if status in (None, TenantStatus.DROPPED):
                raise TenantNotFoundError(tenant)
            if status is TenantStatus.SUSPENDED and not self.any_status:
                raise TenantSuspendedError(tenant)
            if is_moved:
                raise TenantQueryError(tenant, "it has moved to another schema meanwhile; ask again")
            if not self.any_status:
                raise TenantNotFoundError(tenant, "it is not suspended any more; ask again")


class Membership:
    """Answers for one configuration who the tenants are."""

    def __init__(self, config: TenantConfig, get_engine: Callable[[], Engine]) -> None:
        """`get_engine` gives an engine of the toolkit's own, for when claims have to be learned anew."""
        self._config, self._get_engine = config, get_engine
        self.store = CatalogStore(config.schemas.shared_schema)
        self.claims = SchemaClaims(config.naming, self._learn)

    def _learn(self) -> None:
        with self._get_engine().connect() as connection:
            self.list(connection)

    @property
    def uses_catalog(self) -> bool:
        return self._config.migrations.discover is None

    def list(self, connection: Connection) -> list[Member]:
        """All tenants, suspended ones included, in a stable order; see `read`."""
        return self.read(connection).members

    def read(self, connection: Connection) -> Roster:
        """The tenants. Leaves no transaction open.

        Raises:
            InvalidTenantIdError: `discover` returned something that is no id.
            TenantCollisionError: it returned two ids that map to one schema.
        """
        discover = self._config.migrations.discover
        try:
            if discover is not None:
                path = path_sql(self._config.schemas.search_path())
                connection.execute(text("SELECT set_config('search_path', :path, true)"), {"path": path})
                ids = self.claims.learn(call_discover(discover, connection))
                return Roster([Member(tenant, self._config.naming.schema_for(tenant)) for tenant in ids])
            epoch = self.store.epoch(connection)  # before the tenants: what changes between is noticed
            if epoch is None:
                return Roster([], self.store)
            return Roster([Member(*found) for found in self.store.schemas(connection)], self.store, epoch)
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
