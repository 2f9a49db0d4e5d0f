"""Progress of long work, on stderr: a bar on a terminal, a line now and then elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ..migrations.report import MigrationState

LINE_EVERY_S = 5.0


class Progress:
    """Counts tenants that are done.

    Args:
        verb: what is done to them.
        quiet: show nothing.
        json_lines: write a JSON document for each event, whatever else.
    """

    def __init__(self, verb: str = "migrating", *, quiet: bool = False, json_lines: bool = False) -> None:
        self._quiet, self._verb, self._json_lines = quiet or json_lines, verb, json_lines
        self._total = self._done = self._failed = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def succeeded(self) -> int:
        """How many were done without an error."""
        return self._done - self._failed

    def start(self, total: int) -> None:
        """Say how many tenants there are."""
        self._total = total
        if self._quiet or not total or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn(self._verb),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f}/s"),
            TimeRemainingColumn(),
            TextColumn("[red]{task.fields[failed]} failed"),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=total, rate=0.0, failed=0)

    def update(self, tenant: str, state: MigrationState) -> None:
        """Take note of one tenant's state."""
        if state.value != "running":
            self.advance(tenant, failed=state.value == "failed", state=state.value)
        elif self._json_lines:
            self._write_event(tenant, state.value)

    def _write_event(self, tenant: str, state: str) -> None:
        event = {
            "tenant": tenant,
            "state": state,
            "done": self._done,
            "failed": self._failed,
            "total": self._total,
            "elapsed_s": round(time.monotonic() - self._started, 3),
        }
        sys.stderr.write(json.dumps(event) + "\n")
        sys.stderr.flush()

    def advance(self, tenant: str, *, failed: bool = False, state: str = "done") -> None:
        """One more is done."""
        self._done += 1
        self._failed += failed
        if self._json_lines:
            self._write_event(tenant, state)
        rate = self._done / max(time.monotonic() - self._started, 1e-6)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=rate, failed=self._failed)
        elif not self._quiet and time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            left_s = (self._total - self._done) / rate
            sys.stderr.write(
                f"{self._done}/{self._total} tenants, {rate:.0f}/s, {left_s:.0f} s left, "
                f"{self._failed} failed ({tenant})\n"
            )
            sys.stderr.flush()
