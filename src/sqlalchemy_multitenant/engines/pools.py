"""Pools of connections: one per target, never more than `max_pools` that hold any, none ever closed
while in use.

An engine without connections costs next to nothing, so what is counted and given up are
connections. A pool takes its place when it opens its first connection, and gives it up (least
recently used first) when another pool needs it and none of its own are checked out. Sessions may
go on holding an engine whose pool was evicted: its next connection takes a place again.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from threading import RLock, get_ident
from typing import Any, Protocol, cast

from sqlalchemy import Engine, event, exc
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, Pool, QueuePool

from ..errors import TenantBusyError
from ..events import Hooks, call_hook
from ..placement import Target

SHARED = Target()

MAX_ENGINES = 1000
"""How many engines are kept for reuse, about 36 KB each."""


class Watch(Protocol):
    """Is told of attempts to get a connection out of a pool."""

    def begin(self) -> None: ...
    def end(self, *, failed: bool) -> None: ...


class _Watched:
    """A pool that tells when an attempt to get a connection out of it begins and ends, as no event of
    SQLAlchemy's does, and that can be retired: then it keeps no connection, and serves whoever is late.
    """

    # Where SQLAlchemy's own pools log, who are silent unless asked: not at INFO, whenever they are closed.
    # https://docs.sqlalchemy.org/en/21/core/engines.html#configuring-logging
    _sqla_logger_namespace = "sqlalchemy.pool"

    watch: Watch | None = None
    _retired = False

    def connect(self) -> Any:
        if self.watch is None:
            return super().connect()  # type: ignore[misc]
        self.watch.begin()
        failed = True
        try:
            fairy = super().connect()  # type: ignore[misc]
            failed = False
            return fairy
        finally:
            self.watch.end(failed=failed)

    def recreate(self) -> Any:
        pool: Any = super().recreate()  # type: ignore[misc]
        pool.watch = self.watch
        return pool

    def retire(self) -> None:
        """From now on, close what is given back."""
        self._retired = True

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        # Its place is given back all the same: somebody may be waiting for it.
        try:
            if self._retired:
                record.close()
        finally:
            super()._do_return_conn(record)  # type: ignore[misc]


class TenantQueuePool(_Watched, QueuePool):
    """For threads."""


class AsyncTenantQueuePool(_Watched, AsyncAdaptedQueuePool):
    """For asyncio."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What one pool holds now."""

    name: str
    connections_active: int
    connections_idle: int


class PoolEntry:
    """An engine, and what the registry knows of its pool.

    Attributes:
        attempts: how many are about to have a connection of it.
        in_use: how many have one.
        opened: how many connections it holds, in use or not.
        connecting: who is setting up a new connection, and that connection until the pool knows it.
    """

    def __init__(self, target: Target, engine: Engine, lock: RLock, whoami: Callable[[], int]) -> None:
        self.target = target
        self.engine = engine
        self.name = target.owner or "default"
        self.attempts = self.in_use = self.opened = 0
        self.connecting: dict[int, Any] = {}
        self.last_used = time.monotonic()
        self._lock, self._whoami = lock, whoami
        self._pool.watch = self

    @property
    def _pool(self) -> _Watched:
        return cast("_Watched", self.engine.pool)

    @property
    def is_idle(self) -> bool:
        """Whether nobody has a connection of it, nor is about to."""
        return not self.in_use and not self.attempts

    @property
    def stats(self) -> PoolStats:
        return PoolStats(self.name, self.in_use, max(self.opened - self.in_use, 0))

    def begin(self) -> None:
        """An attempt to get a connection begins."""
        with self._lock:
            self.attempts += 1

    def end(self, *, failed: bool) -> None:
        """It is over. A new connection that no pool knows, because a listener failed, is closed."""
        with self._lock:
            self.attempts -= 1
            unknown = self.connecting.pop(self._whoami(), None) if failed else None
        if unknown is not None:
            self.engine.dialect.do_terminate(unknown)

    def swap_pool(self) -> Pool:
        """Give the engine an empty pool, and return the one that it had: to be disposed of."""
        old = self.engine.pool
        cast("_Watched", old).retire()
        self.engine.dispose(close=False)
        return old

    def forget_connections(self) -> None:
        """They belong to the process that this one was forked from."""
        self.engine.dispose(close=False)
        self.attempts = self.in_use = self.opened = 0
        self.connecting.clear()


def _notes(record: ConnectionPoolEntry) -> dict[Any, Any]:
    """What is noted about a place in the pool; outlives the connection in it."""
    return cast("dict[Any, Any]", record.record_info)


_registries: weakref.WeakSet[PoolRegistry] = weakref.WeakSet()


def _forget_in_child() -> None:
    for registry in list(_registries):
        registry.forget_connections()


if hasattr(os, "register_at_fork"):
    # https://docs.sqlalchemy.org/en/21/core/pooling.html#using-connection-pools-with-multiprocessing-or-os-fork
    os.register_at_fork(after_in_child=_forget_in_child)


class PoolRegistry:
    """The engines of one manager, by target.

    Args:
        make_engine: builds the engine of a target; it connects to nothing.
        max_pools: the most pools that hold connections at one time, besides the shared one.
        wait_s: seconds that a new pool waits for its place before it raises `TenantBusyError`.
        idle_timeout_s, ttl_s: seconds without use after which connections are closed, and after
            which the pool counts as evicted.
        dispose: closes the idle connections of a pool that no engine has any more; not to be interrupted.
        pause: waits for some seconds, in a thread or in a greenlet.
        whoami: tells apart those who open connections at one time: threads, or tasks.
        check: called before a pool opens its first connection; raises to refuse it.
    """

    def __init__(  # noqa: PLR0913 - wiring; the manager alone calls it
        self,
        make_engine: Callable[[Target], Engine],
        *,
        max_pools: int,
        wait_s: float,
        idle_timeout_s: float,
        ttl_s: float,
        hooks: Hooks,
        dispose: Callable[[Pool], object] = lambda pool: pool.dispose(),
        pause: Callable[[float], object] = time.sleep,
        whoami: Callable[[], int] = get_ident,
        check: Callable[[Target], object] = lambda _target: None,
    ) -> None:
        self._make_engine, self._check = make_engine, check
        self._max_pools, self._wait_s = max_pools, wait_s
        self._idle_timeout_s, self._ttl_s = idle_timeout_s, ttl_s
        self._hooks, self._dispose, self._pause, self._whoami = hooks, dispose, pause, whoami
        # Reentrant: what is garbage by now is given back wherever Python collects it, also in here.
        self._lock = RLock()
        self._entries: dict[Target, PoolEntry] = {}
        self._live: OrderedDict[PoolEntry, None] = OrderedDict()
        self._closed = False
        _registries.add(self)

    @property
    def sweep_interval_s(self) -> float:
        """How often `sweep` is worth calling."""
        return min(max(min(self._idle_timeout_s, self._ttl_s) / 2, 0.05), 60.0)

    def engine(self, target: Target) -> Engine:
        """The engine of `target`; connects to nothing yet.

        Raises:
            RuntimeError: the manager is closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this manager is closed; build a new one")
            entry = self._entries.get(target)
            if entry is None:
                entry = PoolEntry(target, self._make_engine(target), self._lock, self._whoami)
                self._listen(entry)
                self._entries[target] = entry
                # Made-up ids must not fill the memory; a handle keeps the engine that it was given.
                while len(self._entries) > MAX_ENGINES:
                    oldest = next(t for t in self._entries if t != SHARED)
                    del self._entries[oldest]
            return entry.engine

    def stats(self) -> list[PoolStats]:
        """One value per pool that holds connections."""
        with self._lock:
            return [entry.stats for entry in self._live]

    def _listen(self, entry: PoolEntry) -> None:
        engine, lock = entry.engine, self._lock

        @event.listens_for(engine, "do_connect")
        def connect(dialect: Any, _record: Any, args: Any, kwargs: Any) -> Any:
            try:
                self._admit(entry)
                connection = dialect.connect(*args, **kwargs)
            except BaseException:
                with lock:
                    # Others may be at it as well; who is last leaves the place to other pools.
                    if entry.attempts <= 1 and not entry.in_use and not entry.opened:
                        self._live.pop(entry, None)
                raise
            with lock:
                entry.connecting[self._whoami()] = connection
            return connection

        @event.listens_for(engine, "connect")
        def opened(_dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
            with lock:
                entry.connecting.pop(self._whoami(), None)
                entry.opened += 1
                _notes(record)["multitenant_opened"] = 1

        @event.listens_for(engine, "checkout")
        def checked_out(_dbapi_connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
            with lock:
                if entry not in self._live:
                    # It was evicted just now: SQLAlchemy closes this one and opens another, which takes
                    # a place.
                    raise exc.DisconnectionError("the pool has been evicted")
                # Once: where a later listener raises DisconnectionError, this one is called again.
                if not _notes(record).get("multitenant_in_use"):
                    entry.in_use += 1
                    _notes(record)["multitenant_in_use"] = 1
                self._live.move_to_end(entry)

        @event.listens_for(engine, "checkin")
        def returned(_dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
            with lock:
                # A checkout that failed is checked in, too, and was never counted.
                counted = _notes(record).pop("multitenant_in_use", 0)
                entry.in_use -= counted
                entry.last_used = time.monotonic()

        @event.listens_for(engine, "detach")
        def detached(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
            _notes(record).pop("multitenant_opened", 0)  # `close_detached` counts it
            returned(dbapi_connection, record)

        @event.listens_for(engine, "close")
        def closed(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
            with lock:
                counted = _notes(record).pop("multitenant_opened", 0)
                entry.opened -= counted
                # One that could not be set up, and is closed by SQLAlchemy itself.
                for who in [w for w, c in entry.connecting.items() if c is dbapi_connection]:
                    del entry.connecting[who]

        @event.listens_for(engine, "close_detached")
        def closed_detached(_dbapi_connection: Any) -> None:
            with lock:
                entry.opened -= 1

    def _admit(self, entry: PoolEntry) -> None:
        """Give `entry` a place among the pools that hold connections, evicting another if need be."""
        with self._lock:
            known = entry in self._live
        if not known:
            self._check(entry.target)
        deadline = time.monotonic() + self._wait_s
        retired: Pool | None = None
        while True:
            with self._lock:
                if self._closed:
                    raise RuntimeError("this manager is closed; build a new one")
                if entry in self._live:
                    return
                # The shared pool has a place of its own: tenants' pools are opened with its help.
                others = [] if entry.target == SHARED else [e for e in self._live if e.target != SHARED]
                victim = None
                if len(others) >= self._max_pools:
                    victim = next((e for e in others if e.is_idle), None)
                    if victim is not None:
                        retired = self._evict(victim)
                if victim is not None or len(others) < self._max_pools:
                    self._live[entry] = None
                    self._entries.setdefault(entry.target, entry)
                    break
            if time.monotonic() >= deadline:
                raise TenantBusyError(
                    entry.name,
                    f"all {self._max_pools} pools (isolation.max_pools) are in use; none came free in "
                    f"{self._wait_s:g} s",
                )
            self._pause(0.01)
        if victim is not None and retired is not None:
            self._dispose(retired)
            call_hook(self._hooks.on_pool_evicted, victim.name)
        call_hook(self._hooks.on_pool_created, entry.name)

    def _evict(self, entry: PoolEntry) -> Pool:
        """Take the place of an idle entry; returns its pool, which is to be disposed of. Under the lock."""
        self._live.pop(entry, None)
        if entry.target != SHARED and self._entries.get(entry.target) is entry:
            del self._entries[entry.target]
        entry.engine.clear_compiled_cache()
        return entry.swap_pool()

    def sweep(self) -> Iterator[Callable[[], object]]:
        """Yield what is to be done about pools that nobody has used for long: calls that close their
        idle connections. They must be made where the pool's connections may be closed."""
        with self._lock:
            live = list(self._live)
        for entry in live:
            # Looked at one by one: what was idle may be in use again after the last one was closed.
            with self._lock:
                rest = time.monotonic() - entry.last_used
                expired = rest >= self._ttl_s
                worth_it = expired or (rest >= self._idle_timeout_s and entry.opened)
                if entry not in self._live or not entry.is_idle or not worth_it:
                    continue
                old = self._evict(entry) if expired else entry.swap_pool()
            yield partial(self._dispose, old)
            if expired:
                call_hook(self._hooks.on_pool_evicted, entry.name)

    def close(self) -> list[Pool]:
        """Refuse new connections, and return the pools that are to be disposed of. Connections that are
        out now are closed on their return."""
        with self._lock:
            self._closed = True
            entries = {id(e): e for e in [*self._entries.values(), *self._live]}
            self._entries.clear()
            self._live.clear()
            return [entry.swap_pool() for entry in entries.values()]

    def forget_connections(self) -> None:
        """In a process that was forked just now: leave the connections to the other one."""
        self._lock = RLock()
        for entry in {id(e): e for e in [*self._entries.values(), *self._live]}.values():
            entry.forget_connections()
        self._live.clear()
