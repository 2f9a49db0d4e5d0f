"""`TenantManager`: the composition root. Builds everything from a configuration, and closes it."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Engine, text
from sqlalchemy.pool import Pool

from .catalog.records import TenantRecord, TenantStatus
from .config import TenantConfig
from .database import TenantDb
from .events import logger
from .health import Health, failed_health
from .manager_base import ManagerBase
from .naming import TenantId, parse_tenant_ids
from .provisioning.report import CreationReport
from .provisioning.seed import Seed
from .provisioning.spares import SpareStock


class TenantManager(ManagerBase[TenantDb]):
    """Gives out databases of tenants, and creates and drops tenants.

    One per process is usual. A context manager; without one, it is closed when the interpreter ends.

    Raises:
        ConfigurationError: the configuration cannot work.
    """

    _is_async = False

    def __init__(self, config: TenantConfig) -> None:
        super().__init__(config)
        self._stop_sweeping = threading.Event()
        self._sweeper: threading.Thread | None = None
        self._at_exit = _close_at_exit(self)
        _managers.add(self)

    def _make_db(self, tenant: TenantId | None, engine: Engine) -> TenantDb:
        self._start_sweeping()
        return TenantDb(tenant, engine)

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def _whoami(self) -> int:
        return threading.get_ident()

    def _dispose_of(self, pool: Pool) -> None:
        pool.dispose()

    def _start_sweeping(self) -> None:
        with self._lock:
            if self._sweeper is None and not self._stop_sweeping.is_set():
                self._sweeper = threading.Thread(
                    target=_sweep,
                    args=(weakref.ref(self), self._stop_sweeping),
                    name="multitenant-pools",
                    daemon=True,
                )
                self._sweeper.start()

    def _sweep_in_child(self) -> None:
        """In a process that was forked just now, in which no other thread goes on."""
        if self._sweeper is not None:
            # A lock's holder may have been one of them.
            self._lock, self._sweeper = threading.Lock(), None
            if not self._stop_sweeping.is_set():
                self._stop_sweeping = threading.Event()
            self._start_sweeping()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; those in use are closed when they are given back. Idempotent."""
        self._stop_sweeping.set()
        atexit.unregister(self._at_exit)
        if "_registry" in self.__dict__:
            for pool in self._registry.close():
                self._dispose_of(pool)
        if "_provisioner" in self.__dict__:
            self._provisioner.close()

    def create_tenant(
        self,
        tenant: str,
        *,
        schema: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        seed: Seed | None = None,
    ) -> TenantRecord:
        """Create a tenant: its schema at the newest revision, and its entry in the catalog, in one
        transaction. Returns its record.

        Where the history is long, or has revisions that cannot be compiled, a process that creates several
        tenants builds one beforehand, and makes the others from a dump of it. A spare one is used where there
        is one: see `keep_spares`.

        Args:
            tenant: the new id.
            schema: the name of its schema, where it is to differ from the configured mapping.
            metadata: the application's own data about it, JSON.
            seed: its first rows: a callable that is given a `Session` of the new tenant's, or the `Path` of a
                file of SQL. In the same transaction: it must not commit.

        Raises:
            InvalidTenantIdError: the id, or the name of its schema, is not usable.
            TenantExistsError: there is such a tenant, or another has the schema.
            ProvisioningError: the database refused, or the seed failed; nothing is left behind.
        """
        return self._provisioner.create(tenant, schema=schema, metadata=metadata, seed=seed)

    def create_tenants(
        self,
        tenants: Iterable[str],
        *,
        concurrency: int = 4,
        seed: Seed | None = None,
        on_progress: Callable[[str, BaseException | None], object] | None = None,
    ) -> CreationReport:
        """Create many tenants, each in a transaction of its own; those that exist are left as they are. After
        an interruption, the same call creates the rest. The disk is waited for once, when all are created.

        Args:
            tenants: their ids.
            concurrency: how many at one time, each over a connection of its own.
            seed: as for `create_tenant`, for each.
            on_progress: called with each id when it is done, and what went wrong with it or None.

        Raises:
            InvalidTenantIdError: one of the ids is not usable; none was created.
            ProvisioningError: there ought to be revisions, and are none; none was created.
        """
        return self._provisioner.create_many(
            tenants, concurrency=concurrency, seed=seed, on_progress=on_progress
        )

    def adopt_tenant(
        self, tenant: str, *, schema: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> TenantRecord:
        """Make an existing schema a tenant's: its entry in the catalog is all that is created. Returns it.

        Args:
            tenant: the new id.
            schema: the schema; None for the one that the configured mapping names.
            metadata: the application's own data about it, JSON.

        Raises:
            InvalidTenantIdError: the id, or the name of the schema, is not usable.
            ProvisioningError: there is no such schema.
            TenantExistsError: there is such a tenant, or another has the schema.
        """
        return self._provisioner.adopt(tenant, schema=schema, metadata=metadata)

    def keep_spares(self, keep: int) -> SpareStock:
        """See to it that so many schemas are made ahead, at the newest revision. `create_tenant` renames one
        of them, which takes a few milliseconds; where there is none, it makes one in the ordinary way. To be
        called by a job of its own: every few minutes, and after each deployment.

        Args:
            keep: how many. Those that are too many, or not at the newest revision, are dropped.

        Raises:
            MigrationError: a revision fails, or writes the schema's own name into what it makes.
            ProvisioningError: there ought to be revisions, and are none.
        """
        return self._provisioner.keep_spares(keep)

    def drop_tenant(self, tenant: str, *, archive: Path | None = None) -> None:
        """Drop a tenant with all its data. Other processes refuse it from their next transaction on.

        Args:
            archive: write all of it into this new file first, for `pg_restore`; the tenant is suspended
                meanwhile.

        Raises:
            ConfigurationError: the archive's file is there already.
            ProvisioningError: it could not be archived, or the database refused; nothing was dropped.
            TenantNotFoundError: there is none.
            TenantBusyError: its tables stayed in use for longer than `migrations.lock_timeout_s`.
        """
        self._provisioner.drop(tenant, archive=archive)

    def tenant_exists(self, tenant: str) -> bool:
        """Whether there is such a tenant, suspended ones included. False for what can be no id."""
        return self._provisioner.exists(tenant)

    def get_tenant(self, tenant: str) -> TenantRecord:
        """The tenant's record, read now.

        Raises:
            TenantNotFoundError: there is none.
        """
        return self._provisioner.get(tenant)

    def list_tenants(self) -> Sequence[TenantRecord]:
        """The records of all tenants, by id."""
        return self._provisioner.list()

    def set_tenant_status(self, tenant: str, status: TenantStatus | str) -> None:
        """Suspend (`"suspended"`) a tenant, or make it `"active"` again; every process obeys from its
        next transaction on.

        Raises:
            TenantNotFoundError: there is none.
        """
        self._provisioner.set_status(tenant, status)

    def health_check(self) -> Health:
        """Ask the server for an answer over the shared pool. Does not raise: a failure is in the result."""
        started = time.perf_counter()
        try:
            with self.get_shared_db().connect() as connection:
                connection.execute(text("SELECT 1"))
        except Exception as error:
            return failed_health(error, time.perf_counter() - started, self.metrics())
        return Health(True, None, (time.perf_counter() - started) * 1000, self.metrics())

    def warm_up(self, tenants: Iterable[str]) -> None:
        """Enter each tenant once, so that connections are open and placements known before traffic comes.

        Raises:
            TenantNotFoundError: one of them does not exist.
        """
        for tenant in parse_tenant_ids(tenants):
            with self.get_db(tenant).connect() as connection:
                connection.execute(text("SELECT 1"))


_managers: weakref.WeakSet[TenantManager] = weakref.WeakSet()


def _sweep_in_child() -> None:
    for manager in list(_managers):
        manager._sweep_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sweep_in_child)


def _close_at_exit(manager: TenantManager) -> Callable[[], None]:
    reference = weakref.ref(manager)

    def close() -> None:
        if (alive := reference()) is not None:
            alive.close()

    return atexit.register(close)


def _sweep(reference: weakref.ref[TenantManager], stop: threading.Event) -> None:
    """Close what is idle, until the manager is closed or gone."""
    interval = 1.0
    while not stop.wait(interval):
        manager = reference()
        if manager is None:
            return
        interval = manager._registry.sweep_interval_s
        try:
            for close_idle in manager._registry.sweep():
                close_idle()
        except Exception:
            logger.exception("closing idle connections failed; it is tried again later")
        del manager
