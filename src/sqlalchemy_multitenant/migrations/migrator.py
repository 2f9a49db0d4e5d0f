"""`Migrator`: brings tenants and the shared schema to the newest revision, and tells where they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Unpack

from ..catalog.members import Member
from ..config import TenantConfig
from ..engines.admin import make_admin_engine
from ..errors import ConfigurationError, MigrationError
from ..events import MigrationHooks
from .generate import GeneratedRevision, generate, generate_sql
from .history import History
from .hooks import HookCalls
from .journal import Journal
from .journey import Journey
from .ledger import application_name
from .options import OnProgress, RunKeywords, RunOptions
from .plan import Destination, Heads, MigrationPlan, Timeouts
from .planner import Planner
from .report import (
    INTERRUPTED,
    SHARED,
    MigrationInterrupted,
    MigrationReport,
    MigrationState,
    TenantResult,
)
from .run import FleetRun, Job
from .runner import Bookkeeping, SchemaRunner
from .scratch import time_plan
from .verify import Reference, TenantVerification, build_reference, verify_fleet
from .ways import NoWayError, Way, no_way, way_back


@dataclass(frozen=True, slots=True)
class _Todo:
    """What a run has to do.

    Attributes:
        jobs: tenants with something to do.
        failed: those for whom nothing can be tried.
        idle: those with nothing to do.
        plans: what is going to be run, each once.
    """

    jobs: list[Job] = field(default_factory=list)
    failed: list[TenantResult] = field(default_factory=list)
    idle: list[TenantResult] = field(default_factory=list)
    plans: list[MigrationPlan] = field(default_factory=list)


class Migrator(Planner):
    """Migrations over the whole fleet. A context manager; `close()` otherwise.

    Raises:
        ConfigurationError: the configuration cannot work.
    """

    def __init__(self, config: TenantConfig, *, hooks: MigrationHooks | None = None) -> None:
        """`hooks` are told of migrations, instead of those in the configuration."""
        super().__init__(config)
        self._hooks = config.migrations.hooks if hooks is None else hooks

    # -- migrate ------------------------------------------------------------------------------------

    def migrate_all(self, *, only_failed: bool = False, **options: Unpack[RunKeywords]) -> MigrationReport:
        """Bring every tenant to the newest revision, suspended ones included.

        Args:
            only_failed: those alone whose last result was a failure.
            concurrency: how many tenants are migrated at one time, each over a connection of its own (10).
            canary: so many tenants, or these, come first; where one of them fails, no other is touched.
            canary_factor: how much longer than an empty schema a canary may take; beyond that, no other
                tenant is touched.
            max_failures: how many tenants may fail, a number or a share such as `"5%"`; beyond that, no
                further tenant is begun.
            on_progress: called with (tenant, state) when a tenant begins and when it ends, once where
                nothing is to be done; from one thread at a time.
            on_error: called with (tenant, error) when a tenant failed; returns `"continue"` (as does None)
                or `"abort"`, which starts no further tenants.

        Raises:
            MigrationError: the revisions themselves are wrong; no tenant was touched.
            MigrationInterrupted: Ctrl-C; has the report. What was begun is finished first, and a second
                Ctrl-C rolls it back.
        """
        return self.migrate(self.find_members(only_failed=only_failed), **options)

    def migrate_tenants(self, tenants: Iterable[str], **options: Unpack[RunKeywords]) -> MigrationReport:
        """Bring the named tenants to the newest revision; see `migrate_all`.

        Raises:
            TenantNotFoundError: one of them does not exist; none was touched.
        """
        return self.migrate(self.find_members(tenants), **options)

    def migrate_tenant(self, tenant: str) -> TenantResult:
        """Bring one tenant to the newest revision; its failure is raised.

        Raises:
            MigrationError: a revision failed.
            TenantNotFoundError: there is no such tenant.
        """
        (result,) = self.migrate_tenants([tenant], concurrency=1).details
        if result.error is not None:
            raise result.error
        return result

    def migrate(self, members: Sequence[Member], **options: Unpack[RunKeywords]) -> MigrationReport:
        """As `migrate_all`, for tenants that `find_members` returned."""
        chosen = RunOptions(**options)
        history = self.tenant_history
        history.heads()  # a broken history is told before any tenant is touched
        return self._run("migrate", members, chosen, lambda _start: history.plan_upgrade)

    def rollback(
        self,
        tenants: str | Iterable[str] | None = None,
        *,
        to: str | None = None,
        steps: int | None = None,
        **options: Unpack[RunKeywords],
    ) -> MigrationReport:
        """Take tenants back to an earlier revision, by their downgrades.

        Args:
            tenants: one id or several; None for all.
            to: the revision that is to be the newest: an id, the unique beginning of one, or `base`. Tenants
                that are there already, or before it, are skipped.
            steps: instead, how many revisions to take back, from wherever a tenant is.
            options: as for `migrate_all`.

        Raises:
            MigrationError: no such revision, or one on the way has no downgrade; nothing was touched.
            TenantNotFoundError: one of the tenants does not exist; none was touched.
        """
        members = self.find_members([tenants] if isinstance(tenants, str) else tenants)
        way_of = way_back(self.tenant_history, to, steps)
        report = self._run("rollback", members, RunOptions(**options), way_of)
        self.sources.forget(self.tenant_history, lambda: self._read_heads(self.find_members()).values())
        return report

    def mark_applied(
        self, tenants: Iterable[str] | None = None, **options: Unpack[RunKeywords]
    ) -> MigrationReport:
        """Record the newest revision for tenants (all of them by default) without running anything:
        for schemas that have the structure already.

        Raises:
            TenantNotFoundError: one of `tenants` does not exist.
        """
        return self.mark(self.find_members(tenants), **options)

    def mark(self, members: Sequence[Member], **options: Unpack[RunKeywords]) -> MigrationReport:
        """As `mark_applied`, for tenants that `find_members` returned."""
        history = self.tenant_history
        return self._run("mark", members, RunOptions(**options), lambda _start: history.plan_stamp)

    @staticmethod
    def check_canaries(options: RunOptions, members: Sequence[Member]) -> None:
        """Make sure that the canaries are among the tenants.

        Raises:
            ConfigurationError: one is not.
        """
        if options.canary is None or isinstance(options.canary, int):
            return
        known = {member.id for member in members}
        if missing := [tenant for tenant in options.canary if tenant not in known]:
            raise ConfigurationError("canary", missing, "they are not among the tenants to be migrated")

    def _run(
        self, kind: str, members: Sequence[Member], options: RunOptions, way_of: Callable[[Heads], Way]
    ) -> MigrationReport:
        self.check_canaries(options, members)
        if options.canary_factor is not None and kind != "migrate":
            reason = f"a {kind} is not held against an empty schema"
            raise ConfigurationError("canary_factor", options.canary_factor, reason)
        todo = self._sort(kind, members, way_of)
        for result in [*todo.idle, *todo.failed]:
            if options.on_progress is not None:
                options.on_progress(result.tenant, result.state)
        results = {result.tenant: result for result in [*todo.idle, *todo.failed]}
        hooks = HookCalls(self._hooks)
        report = MigrationReport(())
        if todo.jobs or todo.failed:
            if kind == "migrate":
                self._require_shared(todo.plans)
            run, fleet = self._work(kind, members, todo, options, hooks)
            results |= fleet.results
            report = MigrationReport((), fleet.stopped, run, tuple(hooks.errors), fleet.unreached)
        self.sources.note(self.tenant_history, _ends(results.values()))
        report = replace(report, details=tuple(results[member.id] for member in members))
        if report.is_interrupted:
            raise MigrationInterrupted(report)
        return report

    def _sort(self, kind: str, members: Sequence[Member], way_of: Callable[[Heads], Way]) -> _Todo:
        """What is to be done for whom. Plans are compiled here, so that a revision that cannot work is told
        before any tenant is touched; a tenant at an unknown revision is that tenant's failure alone."""
        heads = self._read_heads(members)
        known: dict[Heads, tuple[Way, MigrationPlan | None]] = {}
        todo = _Todo()
        for member in members:
            start = heads[member.schema]
            if start is None:
                error = MigrationError(f"schema {member.schema!r} does not exist", member.id)
                todo.failed.append(TenantResult(tenant=member.id, state=MigrationState.FAILED, error=error))
                continue
            if start not in known:
                known[start] = self._plan_from(kind, start, way_of)
            way, plan = known[start]
            if plan is not None and plan.is_empty:
                todo.idle.append(
                    TenantResult(tenant=member.id, state=MigrationState.SKIPPED, start=start, end=start)
                )
            else:
                todo.jobs.append(Job(self._tenant(member), start, way))
        todo.plans.extend(plan for _, plan in known.values() if plan is not None and not plan.is_empty)
        return todo

    def _plan_from(
        self, kind: str, start: Heads, way_of: Callable[[Heads], Way]
    ) -> tuple[Way, MigrationPlan | None]:
        if kind != "mark":
            try:
                self.tenant_history.pending(start)
            except MigrationError as error:
                return no_way(error), None
        way = way_of(start)
        try:
            return way, way(start)
        except NoWayError:
            return way, None

    def _work(
        self, kind: str, members: Sequence[Member], todo: _Todo, options: RunOptions, hooks: HookCalls
    ) -> tuple[int, FleetRun]:
        with self.engine.begin() as connection:
            self.ledger.install(connection)
            run = self.ledger.begin_run(connection, kind, len(members))
        size = min(options.concurrency, max(len(todo.jobs), 1))
        engine = make_admin_engine(
            self.config, self.url, pool_size=size, pre_ping=False, application_name=application_name(run)
        )
        runner = SchemaRunner(self.tenant_history, engine, self._bookkeeping(run), hooks)
        schemas = {str(member.id): str(member.schema) for member in members}
        journal = self._journal(run, schemas, self.tenant_history)
        fleet = FleetRun(runner, options, journal, self._trial_s)
        try:
            fleet.work(todo.jobs, len(members), todo.failed)
        except KeyboardInterrupt:
            if fleet.stopped != INTERRUPTED:
                raise
            # It is raised again with the report.
        finally:
            engine.dispose()
        return run, fleet

    def _journal(self, run: int, schemas: Mapping[str, str], history: History) -> Journal:
        return Journal(
            self.ledger, self.engine, run, schemas, lambda heads: self.sources.note(history, [heads])
        )

    def _bookkeeping(self, run: int | None = None) -> Bookkeeping:
        return Bookkeeping(Timeouts.of(self.config), self.config.schemas.shared_schema, self.ledger, run)

    def _trial_s(self, start: Heads) -> float:
        """How long the plan from `start` takes in a schema without rows, in seconds."""
        return time_plan(self.config, self.engine, self.tenant_history, self.shared_history, start)

    # -- the shared schema --------------------------------------------------------------------------

    def migrate_shared(self, *, on_progress: OnProgress | None = None) -> TenantResult:
        """Bring the shared schema to the newest revision, and install the catalog where it is missing.

        Raises:
            MigrationError: a revision failed.
        """
        return self._move_shared("migrate", self.shared_history.plan_upgrade, on_progress)

    def mark_shared_applied(self, *, on_progress: OnProgress | None = None) -> TenantResult:
        """Record the newest revision for the shared schema, without running anything.

        Raises:
            MigrationError: it could not be recorded.
        """
        return self._move_shared("mark", self.shared_history.plan_stamp, on_progress)

    def rollback_shared(self, *, to: str, on_progress: OnProgress | None = None) -> TenantResult:
        """Take the shared schema back to an earlier revision.

        Raises:
            MigrationError: there is no such revision, one on the way has no downgrade, or one failed.
        """
        target = self.shared_history.resolve(to)
        self._require_nobody_above(self.plan_rollback_shared(to=to))
        result = self._move_shared(
            "rollback", lambda heads: self.shared_history.plan_back_to(heads, target), on_progress
        )
        if result.state is MigrationState.DONE:
            self.sources.forget(self.shared_history, lambda: [result.end])
        return result

    def _move_shared(self, kind: str, way: Way, on_progress: OnProgress | None) -> TenantResult:
        self.install_catalog()
        to, start = self._shared()
        if way(start).is_empty:
            result = Journey(to, start).result(MigrationState.SKIPPED)
            if on_progress is not None:
                on_progress(SHARED, result.state)
        else:
            result = self._run_shared(kind, Journey(to, start), way, on_progress or (lambda _n, _s: None))
        self.sources.note(self.shared_history, _ends([result]))
        if result.error is not None:
            raise result.error
        return result

    def _run_shared(self, kind: str, journey: Journey, way: Way, tell: OnProgress) -> TenantResult:
        with self.engine.begin() as connection:
            self.ledger.install(connection)
            run = self.ledger.begin_run(connection, f"{kind} {SHARED}", 1)
        engine = make_admin_engine(self.config, self.url, application_name=application_name(run))
        hooks = HookCalls(MigrationHooks())
        runner = SchemaRunner(self.shared_history, engine, self._bookkeeping(run), hooks)
        journal = self._journal(run, {journey.to.name: journey.to.schema}, self.shared_history)
        try:
            result = runner.run(journey, way, lambda: tell(SHARED, MigrationState.RUNNING))
        finally:
            engine.dispose()
        tell(SHARED, result.state)
        if result.error is not None:
            journal.failed([result])
        for changed in journal.end([result], None):
            result = changed
        return result

    # -- hold against the revisions -----------------------------------------------------------------

    def verify(
        self,
        tenants: Iterable[str] | None = None,
        *,
        concurrency: int = 10,
        on_progress: Callable[[str], object] | None = None,
    ) -> list[TenantVerification]:
        """Compare each tenant's tables, columns, constraints, indexes, types, sequences, functions, triggers
        and policies with what its revisions build in an empty schema. Reads only.

        Args:
            tenants: their ids; None for all.
            concurrency: over how many connections.
            on_progress: called with each tenant's id when it has been compared.

        Raises:
            ConfigurationError: `concurrency` is wrong.
            MigrationError: there are no revisions, or one of them fails.
            TenantNotFoundError: one of `tenants` does not exist.
        """
        RunOptions(concurrency=concurrency)
        if not self.tenant_history.exists:
            raise MigrationError(
                f"{self.tenant_history.directory} holds no revisions to compare the tenants with"
            )
        members = self.find_members(tenants)
        heads = self._read_heads(members)
        references: dict[Heads, Reference | str] = {}
        jobs: list[tuple[Destination, Reference]] = []
        found: dict[str, TenantVerification] = {}
        for member in members:
            at = heads[member.schema]
            reference = self._reference(at, references)
            if isinstance(reference, str):
                found[member.id] = TenantVerification(member.id, member.schema, problem=reference)
            else:
                jobs.append((self._tenant(member), reference))
        tell = on_progress or (lambda _tenant: None)
        found |= verify_fleet(self.config, self.url, jobs, concurrency, tell)
        return [found[member.id] for member in members]

    def _reference(self, at: Heads | None, known: dict[Heads, Reference | str]) -> Reference | str:
        """What a schema at these revisions should hold, or why that cannot be told."""
        problem = self._standing(at, self.tenant_history)[2]
        if at is None or problem is not None:
            return str(problem)
        if at not in known:
            known[at] = build_reference(self.config, self.engine, self.tenant_history, at)
        return known[at]

    # -- write --------------------------------------------------------------------------------------

    def generate(self, name: str, kind: Literal["tenant", "shared"] | None = None) -> list[GeneratedRevision]:
        """Write revisions for what has changed in the models since the last ones: of the shared and of
        the tenants' models, or of `kind` alone. Returns what was written: nothing, where nothing has changed.

        Raises:
            MigrationError: the models cannot be compared, or an existing revision fails.
        """
        return generate(
            self.config, self.engine, self.tenant_history, self.shared_history, name=name, kind=kind
        )

    def generate_sql(self, name: str, kind: Literal["tenant", "shared"] = "tenant") -> GeneratedRevision:
        """Write an empty revision for SQL that is written by hand.

        Raises:
            MigrationError: there is no name, or an existing revision cannot be read.
        """
        history = self.shared_history if kind == SHARED else self.tenant_history
        needed = None if kind == SHARED else next(iter(self.shared_history.heads()), None)
        return generate_sql(history, name, self.config.migrations.revision_ids, requires_shared=needed)


def _ends(results: Iterable[TenantResult]) -> list[Heads]:
    return [result.end for result in results if result.error is None and result.end]
