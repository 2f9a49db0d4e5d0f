"""The value the catalog holds about a tenant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from ..naming import SchemaName, TenantId


class TenantStatus(StrEnum):
    """Whether a tenant may be used."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRecord:
    """One tenant.

    Attributes:
        schema: where its tables are; None once it was dropped.
        metadata: the application's own data (plan, region, ...), JSON.
        created_at, updated_at, dropped_at: aware datetimes; None where the application's own
            discovery is used instead of the catalog.
    """

    id: TenantId
    status: TenantStatus
    schema: SchemaName | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None
    updated_at: datetime | None = None
    dropped_at: datetime | None = None
