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

    def __init__(self, naming: SchemaNaming, list_ids: Callable[[], object] | None = None) -> None:
        """`list_ids` is called when an id is met that has no claim yet; it calls `learn`."""
        self._naming, self._list_ids = naming, list_ids
        self._owners: dict[SchemaName, TenantId] = {}
        self._lock = RLock()
        self._listing = False

    def learn(self, ids: Iterable[str]) -> list[TenantId]:
        """Parse the ids that the application lists, and claim their schemas.

        Raises:
            InvalidTenantIdError: one of them is no id, or meets another.
        """
        parsed = [parse_tenant_id(value) for value in ids]
        for tenant in dict.fromkeys(parsed):
            self.claim(tenant, self._naming.schema_for(tenant))
        return list(dict.fromkeys(parsed))

    def claim(self, tenant: TenantId, schema: SchemaName) -> None:
        """Give `schema` to `tenant`.

        Raises:
            TenantCollisionError: it belongs to another.
        """
        if self._naming.is_injective:
            return
        with self._lock:
            owner = self._owners.get(schema)
            if owner is None and self._list_ids is not None and not self._listing:
                self._listing = True
                try:
                    self._list_ids()
                finally:
                    self._listing = False
                owner = self._owners.get(schema)
                if owner is None:
                    raise TenantNotFoundError(tenant, "`discover` does not list it")
            owner = self._owners.setdefault(schema, tenant)
        if owner != tenant:
            raise TenantCollisionError(tenant, schema, owner)


def call_discover(discover: Callable[..., Iterable[str]], connection: object) -> list[str]:
    """Call the application's `discover` with the connection, or without where it takes no argument."""
    import inspect

    takes = inspect.signature(discover).parameters
    found = discover(connection) if takes else discover()
    return list(found)
