"""What the two managers share: the decisions, none of which awaits anything."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from threading import Lock
from typing import Any, Generic, TypeVar

from sqlalchemy import URL, Engine
from sqlalchemy.pool import Pool

from .catalog.source import CatalogSource, DiscoveredSource, Layout, SharedSource
from .config import TenantConfig
from .engines.pools import MAX_ENGINES, PoolRegistry
from .engines.scoped import make_scoped_engine
from .engines.url import resolve_url
from .errors import ConfigurationError
from .isolation.scope import SCOPE_OPTION, ScopeSource
from .naming import TenantId, parse_tenant_id
from .placement import Target
from .provisioning.provisioner import Provisioner

AnyDb = TypeVar("AnyDb")

_MAX_HANDLES = 20_000
"""How many handles a manager keeps for reuse, about 3 KB each; one that is not kept still works."""


class ManagerBase(Generic[AnyDb]):
    """Configuration, handles and pools of one manager."""

    _is_async: bool

    def __init__(self, config: TenantConfig) -> None:
        if not isinstance(config, TenantConfig):
            raise ConfigurationError("config", config, "a TenantConfig")
        self.config = config
        self._layout = Layout.of(config)
        self._handles: OrderedDict[TenantId, AnyDb] = OrderedDict()
        self._lock = Lock()
        self._shared: AnyDb | None = None

    # -- what a subclass supplies ---------------------------------------------------------------

    def _make_db(self, tenant: TenantId | None, engine: Engine) -> AnyDb:
        raise NotImplementedError

    def _pause(self, seconds: float) -> None:
        """Wait, in a thread or in a greenlet."""
        raise NotImplementedError

    def _whoami(self) -> int:
        """Tell apart those who are at work at one time: threads, or tasks."""
        raise NotImplementedError

    def _dispose_of(self, pool: Pool) -> None:
        """Close the connections of a pool that no engine has any more, in a thread or in a greenlet."""
        raise NotImplementedError

    # -- shared -----------------------------------------------------------------------------------

    @cached_property
    def _url(self) -> URL:
        return resolve_url(self.config.connection)

    @cached_property
    def _provisioner(self) -> Provisioner:
        return Provisioner(self.config, self._url)

    @cached_property
    def _registry(self) -> PoolRegistry:
        isolation, connection = self.config.isolation, self.config.connection
        return PoolRegistry(
            lambda _target: make_scoped_engine(self.config, self._url, is_async=self._is_async),
            max_pools=isolation.max_pools,
            wait_s=connection.pool_timeout_s,
            idle_timeout_s=connection.idle_timeout_s,
            ttl_s=isolation.pool_ttl_s,
            hooks=self.config.hooks,
            dispose=self._dispose_of,
            pause=self._pause,
            whoami=self._whoami,
            check=self._check_owner,
        )

    def _check_owner(self, target: Target) -> None:
        """Before a tenant's own pool opens: make sure the tenant exists, or any made-up id could
        push others' pools out. Runs in a thread or greenlet, over the shared pool."""
        if target.owner is None:
            return
        source = self._source(TenantId(target.owner))
        if (learn := source.blocking_step()) is not None:
            learn()
        with self._scoped_engine(Target(), SharedSource(self._layout)).connect() as connection:
            row = connection.exec_driver_sql(source.lookup_sql).first()
        source.refresh(None if row is None else tuple(row))

    def _source(self, tenant: TenantId) -> CatalogSource | DiscoveredSource:
        if self.config.migrations.discover is None:
            return CatalogSource(self._layout, tenant)
        schema = self.config.naming.schema_for(tenant)
        return DiscoveredSource(self._layout, tenant, schema, self._provisioner.members.claims)

    def _scoped_engine(self, target: Target, source: ScopeSource) -> Engine:
        return self._registry.engine(target).execution_options(**{SCOPE_OPTION: source})

    def get_db(self, tenant: str) -> AnyDb:
        """The tenant's database: a cheap handle, which connects to nothing yet.

        Raises:
            InvalidTenantIdError: `tenant` can be no tenant's id. Whether there is such a tenant shows
                when the first transaction begins.
        """
        parsed = parse_tenant_id(tenant)
        with self._lock:
            db = self._handles.get(parsed)
            if db is not None:
                self._handles.move_to_end(parsed)
                return db
        db = self._make_db(parsed, self._scoped_engine(self._layout.target(parsed), self._source(parsed)))
        with self._lock:
            db = self._handles.setdefault(parsed, db)
            most = MAX_ENGINES if self.config.isolation.pool_per_tenant else _MAX_HANDLES
            while len(self._handles) > most:
                self._handles.popitem(last=False)
        return db

    def get_shared_db(self) -> AnyDb:
        """The same kind of handle on the shared schema."""
        if self._shared is None:
            self._shared = self._make_db(None, self._scoped_engine(Target(), SharedSource(self._layout)))
        return self._shared

    def metrics(self) -> dict[str, float]:
        """Figures about the pools now, empty where `metrics.enabled` is off: `pool_count` (pools that
        hold connections), `pool_connections_active` and `pool_connections_idle`, each with the
        configured prefix."""
        settings = self.config.metrics
        if not settings.enabled:
            return {}
        stats = self._registry.stats() if "_registry" in self.__dict__ else []
        figures: dict[str, Any] = {
            "pool_count": len(stats),
            "pool_connections_active": sum(s.connections_active for s in stats),
            "pool_connections_idle": sum(s.connections_idle for s in stats),
        }
        return {f"{settings.prefix}_{name}": value for name, value in figures.items()}
