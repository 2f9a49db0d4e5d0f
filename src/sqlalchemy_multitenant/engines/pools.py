"""Pools of connections: one per target, never more than `max_pools` that hold any, none ever closed
while in use.

An engine without connections costs next to nothing, so what is counted and given up are
connections. A pool takes its place when it opens its first connection, and gives it up (least
recently used first) when another pool needs it and none of its own are checked out. Sessions may
go on holding an engine whose pool was evicted: its next connection takes a place again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import RLock, get_ident
from typing import Any, cast

from sqlalchemy import Engine, event, exc
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, QueuePool

from ..errors import TenantBusyError
from ..events import Hooks, call_hook
from ..placement import DEFAULT_SERVER, Target

SHARED = Target()

MAX_ENGINES = 1000
"""How many engines are kept for reuse, about 36 KB each."""


def _nothing() -> None:
    return None


class _Watched:
    """A pool that tells when an attempt to get a connection is over without one, as no event of SQLAlchemy's
    does, and that closes, on their return, the connections that were out when it was disposed of.
    """

    on_attempt_failed: Callable[[], None] = staticmethod(_nothing)
    _retired = False

    def recreate(self) -> Any:
        pool: Any = super().recreate()  # type: ignore[misc]
        pool.on_attempt_failed = self.on_attempt_failed
        return pool

    def dispose(self) -> None:
        self._retired = True
        super().dispose()  # type: ignore[misc]

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return super()._do_get()  # type: ignore[misc,no-any-return]
        except BaseException:
            # Connecting, or a listener of the new connection: failed or cancelled.
            self.on_attempt_failed()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        # Where a known place in the pool could not be connected again, SQLAlchemy returns it.
        self.on_attempt_failed()
        if self._retired:
            record.close()
        else:
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
    """An engine, and what the registry knows of its pool."""

    def __init__(self, target: Target, engine: Engine) -> None:
        self.target = target
        self.engine = engine
        self.name = target.owner or target.server or DEFAULT_SERVER
        self.in_use = 0
        self.opened = 0
        # Who is getting a new connection now, and that connection until the pool knows it.
        self.opening: dict[int, Any] = {}
        self.last_used = time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether nobody has a connection of it, nor is about to."""
        return not self.in_use and not self.opening

    @property
    def stats(self) -> PoolStats:
        return PoolStats(self.name, self.in_use, max(self.opened - self.in_use, 0))


def _notes(record: ConnectionPoolEntry) -> dict[Any, Any]:
    """What is noted about a place in the pool; outlives the connection in it."""
    return cast("dict[Any, Any]", record.record_info)


class PoolRegistry:
    """The engines of one manager, by target.

    Args:
        make_engine: builds the engine of a target; it connects to nothing.
        max_pools: the most pools that hold connections at one time, besides the shared one.
        wait_s: seconds that a new pool waits for its place before it raises `TenantBusyError`.
        idle_timeout_s, ttl_s: seconds without use after which connections are closed, and after
            which the pool counts as evicted.
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
        pause: Callable[[float], object] = time.sleep,
        whoami: Callable[[], int] = get_ident,
        check: Callable[[Target], object] = lambda _target: None,
    ) -> None:
        self._make_engine, self._check = make_engine, check
        self._max_pools, self._wait_s = max_pools, wait_s
        self._idle_timeout_s, self._ttl_s = idle_timeout_s, ttl_s
        self._hooks, self._pause, self._whoami = hooks, pause, whoami
        # Reentrant: what is garbage by now is given back wherever Python collects it, also in here.
        self._lock = RLock()
        self._entries: dict[Target, PoolEntry] = {}
        self._live: OrderedDict[PoolEntry, None] = OrderedDict()
        self._closed = False

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
                entry = PoolEntry(target, self._make_engine(target))
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
            self._admit(entry)
            connection = dialect.connect(*args, **kwargs)
            with lock:
                entry.opening[self._whoami()] = connection
            return connection

        def attempt_failed() -> None:
            """Give back the place, and end the connection that no pool knows."""
            with lock:
                connection = entry.opening.pop(self._whoami(), None)
                if entry.is_idle and not entry.opened:
                    self._live.pop(entry, None)
            if connection is not None:
                engine.dialect.do_terminate(connection)

        cast("_Watched", engine.pool).on_attempt_failed = attempt_failed

        @event.listens_for(engine, "connect")
        def opened(_dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
            with lock:
                entry.opening[self._whoami()] = None
                entry.opened += 1
                _notes(record)["multitenant_opened"] = 1

        @event.listens_for(engine, "checkout")
        def checked_out(_dbapi_connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
            with lock:
                if entry not in self._live:
                    # It was evicted just now: SQLAlchemy closes this one and opens another, which takes
                    # a place, and keeps it until it is checked out.
                    raise exc.DisconnectionError("the pool has been evicted")
                entry.in_use += 1
                _notes(record)["multitenant_in_use"] = 1
                entry.opening.pop(self._whoami(), None)
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
        def closed(_dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
            with lock:
                counted = _notes(record).pop("multitenant_opened", 0)
                entry.opened -= counted

        @event.listens_for(engine, "close_detached")
        def closed_detached(_dbapi_connection: Any) -> None:
            with lock:
                entry.opened -= 1

    def _admit(self, entry: PoolEntry) -> None:
        """Give `entry` a place among the pools that hold connections, evicting another if need be. It
        keeps the place until its caller has the connection, or has failed to get it."""
        with self._lock:
            known = entry in self._live
        if not known:
            self._check(entry.target)
        deadline = time.monotonic() + self._wait_s
        while True:
            with self._lock:
                if self._closed:
                    raise RuntimeError("this manager is closed; build a new one")
                entry.opening[self._whoami()] = None
                if entry in self._live:
                    return
                # The shared pool has a place of its own: tenants' pools are opened with its help.
                others = [] if entry.target == SHARED else [e for e in self._live if e.target != SHARED]
                victim = None
                if len(others) >= self._max_pools:
                    victim = next((e for e in others if e.is_idle), None)
                    if victim is not None:
                        self._forget(victim)
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
        if victim is not None:
            victim.engine.dispose()
            call_hook(self._hooks.on_pool_evicted, victim.name)
        call_hook(self._hooks.on_pool_created, entry.name)

    def _forget(self, entry: PoolEntry) -> None:
        self._live.pop(entry, None)
        if entry.target != SHARED and self._entries.get(entry.target) is entry:
            del self._entries[entry.target]

    def sweep(self) -> Iterator[Callable[[], None]]:
        """Yield what is to be done about pools that nobody has used for long: calls that close their
        idle connections. They must be made where the pool's connections may be closed."""
        now = time.monotonic()
        with self._lock:
            expired, idle = [], []
            for entry in list(self._live):
                rest = now - entry.last_used
                if not entry.is_idle:
                    continue
                if rest >= self._ttl_s:
                    self._forget(entry)
                    expired.append(entry)
                elif rest >= self._idle_timeout_s and entry.opened:
                    idle.append(entry)
        for entry in idle:
            yield entry.engine.dispose
        for entry in expired:
            yield entry.engine.dispose
            call_hook(self._hooks.on_pool_evicted, entry.name)

    def close(self) -> list[Engine]:
        """Refuse new connections, and return the engines that are to be disposed of. Connections that
        are out now are closed on their return."""
        with self._lock:
            self._closed = True
            engines = [*{id(e): e.engine for e in [*self._entries.values(), *self._live]}.values()]
            self._entries.clear()
            self._live.clear()
            return engines
