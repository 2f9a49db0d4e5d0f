"""Where there is no catalog: makes sure that two ids never use one schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock

from ..errors import TenantCollisionError
from ..naming import SchemaName, SchemaNaming, TenantId, parse_tenant_id


class SchemaClaims:
    """Remembers which id each schema belongs to.

    A template maps no two ids to one schema, so there is nothing to remember. A callable may: the
    ids that `discover` lists come first, and the first of the others that asks.
    """

    def __init__(self, naming: SchemaNaming, seed: Callable[[], object] | None = None) -> None:
        """`seed` is called once before the first claim; it makes the ids known that come first."""
        self._naming, self._seed = naming, seed
        self._owners: dict[SchemaName, TenantId] = {}
        self._lock = Lock()

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
        if self._seed is not None:
            seed, self._seed = self._seed, None
            try:
                seed()
            except BaseException:
                self._seed = seed
                raise
        with self._lock:
            owner = self._owners.setdefault(schema, tenant)
        if owner != tenant:
            raise TenantCollisionError(tenant, schema, owner)


def call_discover(discover: Callable[..., Iterable[str]], connection: object) -> list[str]:
    """Call the application's `discover` with the connection, or without where it takes no argument."""
    import inspect

    takes = inspect.signature(discover).parameters
    found = discover(connection) if takes else discover()
    return list(found)
