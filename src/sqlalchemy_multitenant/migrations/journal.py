"""What a run writes into the ledger, and what it learns from there in the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Engine, text

from ..errors import MigrationError
from .ledger import Ledger, RunState
from .plan import Heads
from .report import MigrationState, TenantResult

logger = logging.getLogger("sqlalchemy_multitenant")


class Journal:
    """Keeps what happens in a run in the ledger. What cannot be written there, because the server is away,
    is tried again when the run ends, and logged if that fails, too: the run's report tells it all the same.

    Args:
        schemas: each tenant's schema.
        note: notes what the revisions are that a schema has, of these heads.
    """

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        run: int,
        schemas: Mapping[str, str],
        note: Callable[[Heads], object],
    ) -> None:
        self.run = run
        self._ledger, self._engine, self._schemas, self._note = ledger, engine, schemas, note
        self._unwritten: list[tuple[str, TenantResult]] = []
        self._lock = threading.Lock()

    def done(self, result: TenantResult) -> None:
        """A tenant has moved, and has noted so in its own transaction. With the first one, what the revisions
        are is noted: it may be the last one, too."""
        with self._lock:
            self._note(result.end)

    def failed(self, results: Sequence[TenantResult]) -> None:
        """Tenants failed."""
        with self._lock:
            self._unwritten += self._placed(results)
            self._write()

    def _placed(self, results: Sequence[TenantResult]) -> list[tuple[str, TenantResult]]:
        return [(self._schemas[result.tenant], result) for result in results]

    def _write(self) -> None:
        try:
            with self._engine.begin() as connection:
                self._ledger.add_failures(connection, self.run, self._unwritten)
        except Exception:
            logger.warning("failures of run %s could not be written yet", self.run, exc_info=True)
        else:
            self._unwritten.clear()

    def end(self, results: Sequence[TenantResult], reason: str | None) -> Sequence[TenantResult]:
        """The run is over. Tenants' commits do not wait for the disk, and this one does. Returns what has to
        be told otherwise: what the server has forgotten, since it was lost in between; and what it has
        done, though its answer was lost."""
        try:
            self._end(results, reason)
            with self._engine.connect() as connection:
                kept = self._ledger.find_done(connection, self.run)
            changed = [other for result in results if (other := _as_kept(result, kept)) is not result]
            if changed:
                with self._lock:  # with their transactions, the ledger has lost what it knew of them
                    lost = [result for result in changed if result.state is MigrationState.FAILED]
                    self._unwritten += self._placed(lost)
                by_tenant = {result.tenant: result for result in [*results, *changed]}
                self._end(list(by_tenant.values()), reason)
        except Exception:
            logger.warning("the end of run %s could not be written", self.run, exc_info=True)
            known = self._find_kept()
            return [other for result in results if (other := _as_kept(result, known)) is not result]
        return changed

    def _find_kept(self) -> Mapping[str, Heads]:
        """What is surely on the disk, where the end of the run could not be written; nothing, where that
        cannot be told."""
        try:
            with self._engine.begin() as connection:
                # Its commit waits for the disk, and so for all that was committed before.
                connection.execute(text("SELECT pg_logical_emit_message(true, 'multitenant', '')"))
            with self._engine.connect() as connection:
                return self._ledger.find_done(connection, self.run)
        except Exception:
            return {}

    def _end(self, results: Sequence[TenantResult], reason: str | None) -> None:
        any_failed = any(result.state is MigrationState.FAILED for result in results)
        state = RunState.FAILED if any_failed else RunState.DONE
        state = RunState.STOPPED if reason else state
        with self._lock, self._engine.begin() as connection:
            self._ledger.add_failures(connection, self.run, self._unwritten)
            self._ledger.end_run(connection, self.run, state, reason)
        self._unwritten.clear()


def _as_kept(result: TenantResult, kept: Mapping[str, Heads]) -> TenantResult:
    """A result as the server has kept it: the same, where that is so."""
    is_kept = result.tenant in kept
    if is_kept is (result.state is MigrationState.DONE):
        return result
    if is_kept:
        return replace(result, state=MigrationState.DONE, end=kept[result.tenant], error=None)
    error = MigrationError(
        "the server was lost before it was surely on the disk; migrate it again", result.tenant
    )
    return replace(result, state=MigrationState.FAILED, end=result.start, applied=(), error=error)
