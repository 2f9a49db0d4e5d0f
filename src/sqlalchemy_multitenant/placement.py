"""The value "where a tenant lives", on which everything else turns."""

from __future__ import annotations

from dataclasses import dataclass

from .naming import SchemaName, TenantId


@dataclass(frozen=True, slots=True)
class Target:
    """What a pool of connections is for.

    Attributes:
        owner: the tenant that has the pool to itself; None for the pool that tenants share.
    """

    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one tenant (or the shared data: `tenant` is None) lives.

    Attributes:
        tenant: the tenant's id; None for the shared schema.
        target: the pool that reaches it.
        schema: the schema that holds its tables.
        search_path: the schemas its transactions see, its own first.
    """

    tenant: TenantId | None
    target: Target
    schema: SchemaName
    search_path: tuple[str, ...]
