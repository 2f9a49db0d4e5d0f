"""What a creation of many tenants did: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from ..catalog.records import TenantRecord
from ..naming import TenantId


@dataclass(frozen=True, slots=True)
class CreationReport:
    """The results, in the order of the ids given.

    Attributes:
        created: the new tenants.
        existing: the ids that there were before; nothing was done to them.
        failures: the other ids, with what went wrong, and whether anything can be left of them.
    """

    created: tuple[TenantRecord, ...]
    existing: tuple[TenantId, ...]
    failures: Mapping[TenantId, BaseException]

    @classmethod
    def of(cls, results: Mapping[TenantId, TenantRecord | BaseException | None]) -> Self:
        """Sort the results: None is what there was before."""
        return cls(
            tuple(result for result in results.values() if isinstance(result, TenantRecord)),
            tuple(tenant for tenant, result in results.items() if result is None),
            {tenant: result for tenant, result in results.items() if isinstance(result, BaseException)},
        )
