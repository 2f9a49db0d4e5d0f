"""The result of a health check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the database answers. True in a condition where it does.

    Attributes:
        ok: it answered.
        error: what went wrong, or None.
        latency_ms: how long the answer took.
        pools: `manager.metrics()` at that moment.
    """

    ok: bool
    error: str | None
    latency_ms: float
    pools: Mapping[str, float]

    def __bool__(self) -> bool:
        return self.ok


def failed_health(error: Exception, seconds: float, pools: Mapping[str, float]) -> Health:
    """The value for a check that raised."""
    return Health(False, f"{type(error).__name__}: {error}", seconds * 1000, pools)
