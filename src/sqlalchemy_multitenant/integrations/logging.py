"""The tenant in log records: for the standard library's `logging`, and for structlog."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from ..context import TenantContext

NONE = "-"


class TenantFilter(logging.Filter):
    """Gives each record a `tenant`, `"-"` where none is set, and lets all pass.

        handler.addFilter(TenantFilter(context))
        handler.setFormatter(logging.Formatter("%(levelname)s [%(tenant)s] %(message)s"))

    On a handler it sees every record that the handler does; on a logger, those of that logger alone
    (https://docs.python.org/3/library/logging.html#filter-objects). A record that has a `tenant` already
    keeps it: it may come from another thread, through a queue.
    """

    def __init__(self, context: TenantContext[Any, Any]) -> None:
        super().__init__()
        self._context = context

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by `logging`."""
        if not hasattr(record, "tenant"):
            record.tenant = self._context.get_tenant_or_none() or NONE
        return True


class TenantProcessor:
    """For structlog: gives each event a `tenant`, unless none is set or there is one already.

    processors = [TenantProcessor(context), structlog.processors.JSONRenderer()]
    structlog.configure(processors=processors)
    """

    def __init__(self, context: TenantContext[Any, Any]) -> None:
        self._context = context

    def __call__(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Called by structlog."""
        tenant = self._context.get_tenant_or_none()
        if tenant is not None:
            event.setdefault("tenant", str(tenant))
        return event
