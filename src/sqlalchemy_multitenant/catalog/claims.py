"""Where there is no catalog: makes sure that two ids never use one schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import RLock

from ..errors import TenantCollisionError, TenantNotFoundError
from ..naming import SchemaName, SchemaNaming, TenantId, parse_tenant_id


class SchemaClaims:
    """Remembers which id each schema belongs to.

    A template maps no two ids to one schema, so there is nothing to remember. A callable may: then the
    ids that the application lists decide, and one that it does not list has no schema.
    """

    def __init__(self, naming: SchemaNaming, list_ids: Callable[[], object]) -> None:
        """`list_ids` calls `learn` with the ids that the application lists now."""
        self._naming, self._list_ids = naming, list_ids
        self._owners: dict[SchemaName, TenantId] = {}
        self._lock = RLock()

    def learn(self, ids: Iterable[str]) -> list[TenantId]:
        """Parse the ids that the application lists; they have the schemas from now on, and no others.

        Raises:
            InvalidTenantIdError: one of them is no id, or meets another.
        """
        parsed = list(dict.fromkeys(parse_tenant_id(value) for value in ids))
        owners: dict[SchemaName, TenantId] = {}
        for tenant in parsed:
            schema = self._naming.schema_for(tenant)
            owner = owners.setdefault(schema, tenant)
            if owner != tenant:
                raise TenantCollisionError(tenant, schema, owner)
        with self._lock:
            self._owners = owners
        return parsed

    @property
    def may_collide(self) -> bool:
        """Whether two ids could have one schema."""
        return not self._naming.is_injective

    def is_open(self, tenant: TenantId, schema: SchemaName) -> bool:
        """Whether `relearn` may change what `check` says."""
        return self.may_collide and self._owners.get(schema) != tenant

    def relearn(self) -> None:
        """Ask the application for its ids anew. Calls it, which may take its time."""
        self._list_ids()

    def forget(self, schema: SchemaName) -> None:
        """The schema is not the one that it was; who has it has to be learned anew."""
        with self._lock:
            self._owners.pop(schema, None)

    def grant(self, tenant: TenantId, schema: SchemaName) -> None:
        """Give `schema` to a new tenant, which the application may not list yet.

        Raises:
            TenantCollisionError: it belongs to another.
        """
        if not self.may_collide:
            return
        with self._lock:
            owner = self._owners.setdefault(schema, tenant)
        if owner != tenant:
            raise TenantCollisionError(tenant, schema, owner)

    def check(self, tenant: TenantId, schema: SchemaName) -> None:
        """Make sure that `schema` is the tenant's.

        Raises:
            TenantCollisionError: it belongs to another.
            TenantNotFoundError: the application does not list the tenant.
        """
        if not self.may_collide:
            return
        owner = self._owners.get(schema)
        if owner is None:
            raise TenantNotFoundError(tenant, "`discover` does not list it")
        if owner != tenant:
            raise TenantCollisionError(tenant, schema, owner)


def call_discover(discover: Callable[..., Iterable[str]], connection: object) -> list[str]:
    """Call the application's `discover` with the connection, or without where it takes no argument."""
    import inspect

    takes = inspect.signature(discover).parameters
    found = discover(connection) if takes else discover()
    return list(found)
