"""`AsyncTenantManager`: what `TenantManager` is, for asyncio."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only, greenlet_spawn

from .catalog.records import TenantRecord, TenantStatus
from .config import TenantConfig
from .database_async import AsyncTenantDb
from .events import logger
from .health import Health, failed_health
from .manager_base import ManagerBase
from .naming import TenantId, parse_tenant_ids
from .provisioning.report import CreationReport
from .provisioning.seed import Seed
from .provisioning.spares import SpareStock


class AsyncTenantManager(ManagerBase[AsyncTenantDb]):
    """The same names as `TenantManager`, awaited. Belongs to the event loop that first uses it.

    Creating and dropping tenants is work for Alembic and psycopg, and runs in a thread.
    """

    _is_async = True

    def __init__(self, config: TenantConfig) -> None:
        super().__init__(config)
        self._sweeper: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def _make_db(self, tenant: TenantId | None, engine: Engine) -> AsyncTenantDb:
        return AsyncTenantDb(tenant, AsyncEngine(engine))

    def _pause(self, seconds: float) -> None:
        await_only(asyncio.sleep(seconds))

    def _whoami(self) -> int:
        return id(asyncio.current_task())

    def _dispose_of(self, pool: Pool) -> None:
        await_only(asyncio.shield(self._start_disposing(pool)))

    def _start_disposing(self, pool: Pool) -> asyncio.Task[None]:
        """Close a pool's connections in a task of its own: whoever waits for it may be cancelled."""
        task = asyncio.create_task(greenlet_spawn(pool.dispose))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def __aenter__(self) -> Self:
        self._start_sweeping()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def get_db(self, tenant: str) -> AsyncTenantDb:
        self._start_sweeping()
        return super().get_db(tenant)

    get_db.__doc__ = ManagerBase.get_db.__doc__

    def _start_sweeping(self) -> None:
        if self._sweeper is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # handles may be made before the loop runs
            self._sweeper = loop.create_task(_sweep(weakref.ref(self)), name="multitenant-pools")

    async def close(self) -> None:
        """Close all connections; those in use are closed when they are given back. Idempotent, and what
        was interrupted is finished by the next call."""
        if self._sweeper is not None and not self._sweeper.done():
            self._sweeper.cancel()
        if "_registry" in self.__dict__:
            for pool in self._registry.close():
                self._start_disposing(pool)
            while self._closing:
                await asyncio.shield(asyncio.wait(self._closing))
        if "_provisioner" in self.__dict__:
            await asyncio.to_thread(self._provisioner.close)

    async def create_tenant(
        self,
        tenant: str,
        *,
        schema: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        seed: Seed | None = None,
    ) -> TenantRecord:
        """See `TenantManager.create_tenant`. `seed` is called in a thread, with a sync session."""
        return await asyncio.to_thread(
            self._provisioner.create, tenant, schema=schema, metadata=metadata, seed=seed
        )

    async def create_tenants(
        self,
        tenants: Iterable[str],
        *,
        concurrency: int = 4,
        seed: Seed | None = None,
        on_progress: Callable[[str, BaseException | None], object] | None = None,
    ) -> CreationReport:
        """See `TenantManager.create_tenants`. `seed` and `on_progress` are called in threads."""
        return await asyncio.to_thread(
            self._provisioner.create_many,
            tenants,
            concurrency=concurrency,
            seed=seed,
            on_progress=on_progress,
        )

    async def adopt_tenant(
        self, tenant: str, *, schema: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> TenantRecord:
        """See `TenantManager.adopt_tenant`."""
        return await asyncio.to_thread(self._provisioner.adopt, tenant, schema=schema, metadata=metadata)

    async def keep_spares(self, keep: int) -> SpareStock:
        """See `TenantManager.keep_spares`."""
        return await asyncio.to_thread(self._provisioner.keep_spares, keep)

    async def drop_tenant(self, tenant: str, *, archive: Path | None = None) -> None:
        """See `TenantManager.drop_tenant`."""
        await asyncio.to_thread(self._provisioner.drop, tenant, archive=archive)

    async def tenant_exists(self, tenant: str) -> bool:
        """See `TenantManager.tenant_exists`."""
        return await asyncio.to_thread(self._provisioner.exists, tenant)

    async def get_tenant(self, tenant: str) -> TenantRecord:
        """See `TenantManager.get_tenant`."""
        return await asyncio.to_thread(self._provisioner.get, tenant)

    async def list_tenants(self) -> Sequence[TenantRecord]:
        """See `TenantManager.list_tenants`."""
        return await asyncio.to_thread(self._provisioner.list)

    async def set_tenant_status(self, tenant: str, status: TenantStatus | str) -> None:
        """See `TenantManager.set_tenant_status`."""
        await asyncio.to_thread(self._provisioner.set_status, tenant, status)

    async def health_check(self) -> Health:
        """See `TenantManager.health_check`."""
        started = time.perf_counter()
        try:
            async with self.get_shared_db().connect() as connection:
                await connection.execute(text("SELECT 1"))
        except Exception as error:
            return failed_health(error, time.perf_counter() - started, self.metrics())
        return Health(True, None, (time.perf_counter() - started) * 1000, self.metrics())

    async def warm_up(self, tenants: Iterable[str]) -> None:
        """See `TenantManager.warm_up`."""
        for tenant in parse_tenant_ids(tenants):
            async with self.get_db(tenant).connect() as connection:
                await connection.execute(text("SELECT 1"))


async def _sweep(reference: weakref.ref[AsyncTenantManager]) -> None:
    """Close what is idle, until the manager is closed or gone."""
    interval = 1.0
    while True:
        await asyncio.sleep(interval)
        manager = reference()
        if manager is None:
            return
        interval = manager._registry.sweep_interval_s
        try:
            for close_idle in manager._registry.sweep():
                await greenlet_spawn(close_idle)
        except Exception:
            logger.exception("closing idle connections failed; it is tried again later")
        del manager
