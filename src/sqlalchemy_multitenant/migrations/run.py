"""One run over the fleet: canaries first, then the others, over a queue; stopped when it has to be."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import MigrationError
from .guards import SchemaLockedError
from .journal import Journal
from .journey import Journey
from .options import RunOptions
from .plan import Destination, Heads
from .queue import WorkQueue
from .report import INTERRUPTED, MigrationState, TenantResult
from .runner import BACK_OFF_S, SchemaRunner
from .ways import Way

_LONG_QUEUE = 100

LEAST_CANARY_S = 1.0
"""Canaries that take less than this are never too slow."""


@dataclass(frozen=True, slots=True)
class Job:
    """A tenant with something to do.

    Attributes:
        to: where it is.
        start: where its schema was found to stand.
        way: makes the plan from where it stands.
    """

    to: Destination
    start: Heads
    way: Way


class FleetRun:
    """Works through jobs.

    Args:
        trial_s: tells how long the plan takes in an empty schema, in seconds; asked for `canary_factor`.
    """

    def __init__(
        self,
        runner: SchemaRunner,
        options: RunOptions,
        journal: Journal,
        trial_s: Callable[[Heads], float],
    ) -> None:
        self._runner, self._options, self._journal = runner, options, journal
        self._trial_s = trial_s
        self._lock = threading.Lock()
        self._failures = self._total = 0
        self._queue: WorkQueue[Job, TenantResult] | None = None
        self._journeys: dict[str, Journey] = {}
        self.results: dict[str, TenantResult] = {}
        self.unreached = 0
        self.stopped: str | None = None

    def work(self, jobs: Sequence[Job], total: int, failed: Sequence[TenantResult] = ()) -> None:
        """Run all jobs, or as many as there may be; `results`, `unreached` and `stopped` tell the
        outcome.

        Args:
            total: how many tenants were asked for; a failure budget may be a share of them.
            failed: those that failed before anything could be tried.
        """
        self._total = total
        try:
            if failed:
                self._journal.failed(failed)
            for result in failed:
                self._note(result)
            self._judge_failed([r.tenant for r in failed if r.tenant in self._options.named_canaries])
            canaries = set(self._options.choose_canaries([job.to.name for job in jobs]))
            first = [job for job in jobs if job.to.name in canaries]
            rest = [job for job in jobs if job.to.name not in canaries]
            if first and self.stopped is None:
                self._drain(first)
                self._judge(first)
            if rest and self.stopped is None:
                self._drain(_from_anywhere(rest))
        except BaseException as error:
            self.stopped = (
                INTERRUPTED if isinstance(error, KeyboardInterrupt) else self.stopped or repr(error)
            )
            raise
        finally:
            self._end(jobs)

    def _end(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.to.name in self.results:
                continue
            journey = self._journeys.get(job.to.name) or Journey(job.to, job.start)
            if journey.applied or journey.has_failed:
                error = MigrationError("the run was stopped before all of it was done", job.to.tenant)
                self.results[job.to.name] = journey.result(MigrationState.FAILED, error=error)
                self._journal.failed([self.results[job.to.name]])
            else:
                self.results[job.to.name] = journey.result(MigrationState.SKIPPED)
                self.unreached += 1
        ways = {job.to.name: job.way for job in jobs}
        for changed in self._journal.end(list(self.results.values()), self.stopped):
            self.results[changed.tenant] = changed
            if changed.state is MigrationState.DONE:
                applied = [r.id for r in ways[changed.tenant](changed.start).applied_at(changed.end)]
                self.results[changed.tenant] = replace(changed, applied=tuple(applied))

    def _drain(self, jobs: Sequence[Job]) -> None:
        self._queue = WorkQueue(jobs, self._do, self._options.concurrency, self._runner.cancel)
        for _ in self._queue:
            pass

    def _do(self, job: Job) -> TenantResult | None:
        to = job.to
        journey = self._journeys.setdefault(to.name, Journey(to, job.start))
        try:
            result = self._runner.run(
                journey, job.way, lambda: self._tell(to.name, MigrationState.RUNNING), waits=False
            )
        except SchemaLockedError:
            # Two machines share the work in that none waits for a tenant that the other one has.
            assert self._queue is not None  # noqa: S101 - it calls this
            self._queue.again(job, random.uniform(*BACK_OFF_S))  # noqa: S311 - no secret
            return None
        # Here, and not where the results are read: an interrupt leaves those in the queue.
        self.results[to.name] = result
        if result.error is not None:
            self._journal.failed([result])
        elif result.state is MigrationState.DONE:
            self._journal.done(result)
        self._tell(to.name, result.state)
        if result.error is not None:
            self._note(result)  # before this worker takes its next tenant
        return result

    def _tell(self, tenant: str, state: MigrationState) -> None:
        if self._options.on_progress is not None:
            with self._lock:
                self._options.on_progress(tenant, state)

    def _note(self, result: TenantResult) -> None:
        """Take a failure to the account, and stop where that is too much."""
        assert result.error is not None  # noqa: S101 - only failures are noted
        self.results[result.tenant] = result
        with self._lock:
            self._failures += 1
            on_error = self._options.on_error
            answer = None if on_error is None else on_error(result.tenant, result.error)
            if answer == "abort":
                self._stop(f"on_error said so about tenant {result.tenant!r}")
            elif answer not in (None, "continue"):
                self._stop(f"on_error returned {answer!r}, which is neither 'continue' nor 'abort'")
            budget = self._options.budget
            if budget is not None and not budget.allows(self._failures, self._total):
                self._stop(f"{self._failures} failed, more than max_failures ({budget.limit}) allows")

    def _stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        if self._queue is not None:
            self._queue.stop()

    def _judge(self, canaries: Sequence[Job]) -> None:
        """Decide by the canaries whether the others are to follow."""
        results = [self.results[job.to.name] for job in canaries if job.to.name in self.results]
        if self._judge_failed([result.tenant for result in results if result.error is not None]):
            return
        factor = self._options.canary_factor
        done = [result for result in results if result.state is MigrationState.DONE]
        if factor is None or not done:
            return
        slowest = max(done, key=lambda result: result.duration_ms)
        try:
            most_s = max(self._trial_s(slowest.start) * factor, LEAST_CANARY_S)
        except MigrationError as error:
            self._stop(f"how long an empty schema takes cannot be told, since it fails there: {error}")
            return
        if slowest.duration_ms / 1000 > most_s:
            self._stop(
                f"canary {slowest.tenant} took {slowest.duration_ms / 1000:.1f} s; {factor:g} times what an "
                f"empty schema takes are {most_s:.1f} s"
            )

    def _judge_failed(self, canaries: Sequence[str]) -> bool:
        if canaries:
            self._stop(f"of the canaries, {', '.join(canaries)} failed")
        return bool(canaries)


def _from_anywhere(jobs: Sequence[Job]) -> Sequence[Job]:
    """A long queue, from any place in it on: two machines that begin at once seldom meet at one tenant."""
    if len(jobs) < _LONG_QUEUE:
        return jobs
    start = random.randrange(len(jobs))  # noqa: S311 - no secret
    return [*jobs[start:], *jobs[:start]]
