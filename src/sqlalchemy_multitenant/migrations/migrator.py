"""`Migrator`: brings tenants and the shared schema to the newest revision, and tells where they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, Unpack

from sqlalchemy import URL, Engine
from sqlalchemy.engine import Dialect

from ..catalog.members import Member, Membership
from ..catalog.records import TenantStatus
from ..config import TenantConfig
from ..engines.engine import make_admin_engine
from ..engines.server import resolve_url
from ..errors import ConfigurationError, MigrationError, TenantNotFoundError
from ..events import MigrationHooks
from ..naming import SchemaName, parse_tenant_id
from .fleet import read_heads
from .generate import GeneratedRevision, generate, time_plan
from .history import History, dialect_of
from .hooks import HookCalls
from .ledger import SHOWN_RUNS, Ledger, ResultRecord, RunRecord, application_name
from .options import OnProgress, RunKeywords, RunOptions
from .plan import Destination, Heads, MigrationPlan, Timeouts
from .report import (
    SHARED,
    EditedRevision,
    MigrationReport,
    MigrationState,
    TenantMigrationStatus,
    TenantResult,
)
from .requirements import require_shared
from .run import FleetRun, Job, LedgerJournal
from .runner import Bookkeeping, SchemaRunner, Way


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """A plan, and who would get it.

    Attributes:
        kind: `tenant` or `shared`.
    """

    kind: str
    plan: MigrationPlan
    tenants: tuple[str, ...]


class Migrator:
    """Migrations over the whole fleet. A context manager; `close()` otherwise.

    Raises:
        ConfigurationError: the configuration cannot work.
    """

    def __init__(self, config: TenantConfig, *, hooks: MigrationHooks | None = None) -> None:
        """`hooks` are told of migrations, instead of those in the configuration."""
        self.config = config
        settings = config.migrations
        self._hooks = settings.hooks if hooks is None else hooks
        table, make_dialect = settings.version_table, lambda: self._dialect
        self.tenant_history = History(Path(settings.tenant_dir), table, "tenant", make_dialect)
        self.shared_history = History(Path(settings.shared_dir), table, SHARED, make_dialect)
        self.members = Membership(config)
        self.ledger = Ledger(config.schemas.shared_schema)

    @cached_property
    def url(self) -> URL:
        """The database's URL."""
        return resolve_url(self.config.connection)

    @cached_property
    def engine(self) -> Engine:
        """A plain engine, for reading and for the ledger."""
        # Of two connections: what SQL is compiled with is learned while a scratch schema is at work on one.
        return make_admin_engine(self.config, self.url, pool_size=2)

    @cached_property
    def _dialect(self) -> Dialect:
        with self.engine.connect() as connection:
            return dialect_of(connection)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        engine = self.__dict__.pop("engine", None)
        if engine is not None:
            engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
            on_progress: called with (tenant, state) when a tenant begins and when it ends; from one
                thread at a time.
            on_error: called with (tenant, error) when a tenant failed; returns `"continue"` (as does None)
                or `"abort"`, which starts no further tenants.

        Raises:
            MigrationError: the revisions themselves are wrong; no tenant was touched.
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
        self._check_canaries(chosen, members)
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
        return self._run("rollback", members, RunOptions(**options), self._way_back(to, steps))

    def _way_back(self, to: str | None, steps: int | None) -> Callable[[Heads], Way]:
        """Makes, from where a tenant was found, what plans its way back from where it turns out to be."""
        if (to is None) == (steps is None):
            raise ConfigurationError("to", to, "either to=REVISION or steps=N, and not both")
        history = self.tenant_history
        if to is not None:
            target = history.resolve(to)
            return lambda _start: lambda heads: history.plan_back_to(heads, target)
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ConfigurationError("steps", steps, "a whole number, at least 1")

        def way_of(start: Heads) -> Way:
            first = history.plan_downgrade(start, f"-{steps}")

            def way(heads: Heads) -> MigrationPlan:
                # A connection may be lost while it commits. To try again must not take back some more.
                if heads == first.end:
                    return MigrationPlan(heads, heads, (), ())
                if heads != start:
                    raise MigrationError(
                        f"it was moved to {', '.join(heads) or 'base'} meanwhile; run it again"
                    )
                return first

            return way

        return way_of

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
        chosen = RunOptions(**options)
        self._check_canaries(chosen, members)
        return self._run("mark", members, chosen, lambda _start: history.plan_stamp)

    def _check_canaries(self, options: RunOptions, members: Sequence[Member]) -> None:
        if options.canary is None or isinstance(options.canary, int):
            return
        known = {member.id for member in members}
        if missing := [tenant for tenant in options.canary if tenant not in known]:
            raise ConfigurationError("canary", missing, "they are not among the tenants to be migrated")

    def _run(
        self, kind: str, members: Sequence[Member], options: RunOptions, way_of: Callable[[Heads], Way]
    ) -> MigrationReport:
        results: dict[str, TenantResult] = {}
        jobs, failed, plans = self._sort(kind, members, way_of, results)
        stopped, run = None, None
        hooks = HookCalls(self._hooks)
        if jobs or failed:
            if kind == "migrate":
                require_shared(plans, self.tenant_history, self.shared_history, lambda: self._shared()[1])
            run, stopped = self._work(kind, jobs, failed, len(members), options, results, hooks)
        self._note_sources(results.values())
        details = tuple(results[member.id] for member in members)
        return MigrationReport(details, stopped=stopped, run=run, hook_errors=tuple(hooks.errors))

    def _sort(
        self,
        kind: str,
        members: Sequence[Member],
        way_of: Callable[[Heads], Way],
        results: dict[str, TenantResult],
    ) -> tuple[list[Job], list[TenantResult], list[MigrationPlan]]:
        """What is to be done for whom. Plans are compiled here, so that a revision that cannot work is told
        before any tenant is touched; a tenant at an unknown revision is that tenant's failure alone."""
        heads = self._read_heads(members)
        known: dict[Heads, tuple[Way, MigrationPlan | None]] = {}
        jobs, failed = [], []
        for member in members:
            start = heads[member.schema]
            if start is None:
                error = MigrationError(f"schema {member.schema!r} does not exist", member.id)
                failed.append(TenantResult(tenant=member.id, state=MigrationState.FAILED, error=error))
                continue
            if start not in known:
                known[start] = self._plan_from(kind, start, way_of)
            way, plan = known[start]
            if plan is not None and plan.is_empty:
                results[member.id] = TenantResult(
                    tenant=member.id, state=MigrationState.SKIPPED, start=start, end=start
                )
            else:
                jobs.append(Job(self._tenant(member), start, way))
        results |= {result.tenant: result for result in failed}
        plans = [plan for _, plan in known.values() if plan is not None and not plan.is_empty]
        return jobs, failed, plans

    def _plan_from(
        self, kind: str, start: Heads, way_of: Callable[[Heads], Way]
    ) -> tuple[Way, MigrationPlan | None]:
        if kind != "mark":
            try:
                self.tenant_history.pending(start)
            except MigrationError as error:
                return _no_way(error), None
        way = way_of(start)
        return way, way(start)

    def _work(
        self,
        kind: str,
        jobs: Sequence[Job],
        failed: Sequence[TenantResult],
        total: int,
        options: RunOptions,
        results: dict[str, TenantResult],
        hooks: HookCalls,
    ) -> tuple[int, str | None]:
        with self.engine.begin() as connection:
            self.ledger.install(connection)
            run = self.ledger.begin_run(connection, kind, total)
        size = min(options.concurrency, max(len(jobs), 1))
        engine = make_admin_engine(
            self.config, self.url, pool_size=size, pre_ping=False, application_name=application_name(run)
        )
        runner = SchemaRunner(self.tenant_history, engine, self._bookkeeping(run), hooks)
        journal = LedgerJournal(self.ledger, self.engine, run)
        fleet = FleetRun(runner, options, journal, self._trial_s)
        try:
            fleet.work(jobs, total, failed)
        finally:
            engine.dispose()
        results |= fleet.results
        return run, fleet.stopped

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

    def mark_shared_applied(self) -> TenantResult:
        """Record the newest revision for the shared schema, without running anything.

        Raises:
            MigrationError: it could not be recorded.
        """
        return self._move_shared("mark", self.shared_history.plan_stamp, None)

    def rollback_shared(self, *, to: str) -> TenantResult:
        """Take the shared schema back to an earlier revision.

        Raises:
            MigrationError: there is no such revision, one on the way has no downgrade, or one failed.
        """
        target = self.shared_history.resolve(to)
        return self._move_shared(
            "rollback", lambda heads: self.shared_history.plan_back_to(heads, target), None
        )

    def _move_shared(self, kind: str, way: Way, on_progress: OnProgress | None) -> TenantResult:
        self.install_catalog()
        to, start = self._shared()
        run = None
        if not way(start).is_empty:
            with self.engine.begin() as connection:
                self.ledger.install(connection)
                run = self.ledger.begin_run(connection, f"{kind} {SHARED}", 1)
        runner = SchemaRunner(
            self.shared_history, self.engine, self._bookkeeping(run), HookCalls(MigrationHooks())
        )

        def tell(state: MigrationState) -> None:
            if on_progress is not None:
                on_progress(SHARED, state)

        result = runner.run(to, start, way, lambda: tell(MigrationState.RUNNING))
        tell(result.state)
        if run is not None:
            journal = LedgerJournal(self.ledger, self.engine, run)
            if result.error is not None:
                journal.failed(to, result)
            journal.end([result], None)
        self._note_sources([result], self.shared_history)
        if result.error is not None:
            raise result.error
        return result

    def _shared(self) -> tuple[Destination, Heads]:
        """The shared schema, and where it stands."""
        schemas = self.config.schemas
        name = SchemaName(schemas.shared_schema)
        to = Destination(SHARED, name, (name, *schemas.extra_search_path))
        return to, self._heads_of([name])[name] or ()

    # -- who and where ------------------------------------------------------------------------------

    def _tenant(self, member: Member) -> Destination:
        schemas = self.config.schemas
        path = (member.schema, schemas.shared_schema, *schemas.extra_search_path)
        return Destination(member.id, member.schema, path, member.id)

    def install_catalog(self) -> None:
        """Install the catalog of tenants, unless the application has its own discovery."""
        if self.members.uses_catalog:
            with self.engine.begin() as connection:
                self.members.store.install(connection)

    def find_members(
        self, tenants: Iterable[str] | None = None, *, only_failed: bool = False
    ) -> list[Member]:
        """The tenants of these ids, each once; all of them by default.

        Args:
            only_failed: those alone whose last result in the ledger was a failure.

        Raises:
            TenantNotFoundError: one of them does not exist.
        """
        if isinstance(tenants, str):
            raise ConfigurationError("tenants", tenants, f"several ids: [{tenants!r}]")
        wanted = None if tenants is None else list(dict.fromkeys(map(parse_tenant_id, tenants)))
        with self.engine.connect() as connection:
            members = self.members.list(connection)
            if only_failed:
                installed = self.ledger.is_installed(connection)
                failed = self.ledger.failed_tenants(connection) if installed else set()
                members = [member for member in members if member.id in failed]
        if wanted is None:
            return members
        known = {m.id: m for m in members}
        if only_failed:
            return [known[tenant] for tenant in wanted if tenant in known]
        for tenant in wanted:
            if tenant not in known:
                raise TenantNotFoundError(tenant)
        return [known[tenant] for tenant in wanted]

    def _read_heads(self, members: Sequence[Member]) -> Mapping[SchemaName, Heads | None]:
        return self._heads_of([m.schema for m in members])

    def _heads_of(self, schemas: Sequence[SchemaName]) -> Mapping[SchemaName, Heads | None]:
        with self.engine.connect() as connection:
            return read_heads(connection, schemas, self.config.migrations.version_table)

    # -- the ledger -----------------------------------------------------------------------------------

    def list_runs(self, limit: int = SHOWN_RUNS) -> Sequence[RunRecord]:
        """The last runs, newest first."""
        with self.engine.connect() as connection:
            if not self.ledger.is_installed(connection):
                return []
            return self.ledger.list_runs(connection, limit)

    def get_run(self, run: int) -> tuple[RunRecord, Sequence[ResultRecord]]:
        """One run, and what became of the tenants in it that were not skipped.

        Raises:
            MigrationError: there is none of this number.
        """
        with self.engine.connect() as connection:
            installed = self.ledger.is_installed(connection)
            found = self.ledger.find_run(connection, run) if installed else None
            if found is None:
                raise MigrationError(f"there is no run {run}; `multitenant runs` lists them")
            return found, self.ledger.list_results(connection, run)

    def edited_revisions(self) -> list[EditedRevision]:
        """The revisions that do something else now than when they were first applied. Tenants that have
        them never get what was changed."""
        edited = []
        with self.engine.connect() as connection:
            if not self.ledger.is_installed(connection):
                return []
            for history in (self.shared_history, self.tenant_history):
                here = {revision.id: revision for revision in history.revisions()}
                known = self.ledger.known_sources(connection, history.label)
                edited += [
                    EditedRevision(history.label, here[revision].id, here[revision].name)
                    for revision, then in known.items()
                    if revision in here and history.is_edited(revision, then)
                ]
        return edited

    def _note_sources(self, results: Iterable[TenantResult], history: History | None = None) -> None:
        """Note what the revisions are that somebody has now, and that were not known."""
        history = history or self.tenant_history
        ends = {result.end for result in results if result.error is None and result.end}
        if not ends or not history.exists:
            return
        applied: set[str] = set()
        for heads in ends:
            with suppress(MigrationError):  # at a revision that is not here
                applied |= {revision.id for revision in history.applied(heads)}
        with self.engine.begin() as connection:
            if not self.ledger.is_installed(connection):
                return
            new = applied - self.ledger.known_sources(connection, history.label).keys()
            self.ledger.note_sources(connection, history.label, {r: history.source(r) for r in new})

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

    # -- tell -----------------------------------------------------------------------------------------

    def status(self, tenants: Iterable[str] | None = None) -> list[TenantMigrationStatus]:
        """Where each tenant stands, in a few queries whatever their number.

        Raises:
            TenantNotFoundError: one of `tenants` does not exist.
        """
        members = self.find_members(tenants)
        heads = self._read_heads(members)
        known: dict[Heads | None, tuple[int, tuple[str, ...], str | None]] = {}
        found = []
        for member in members:
            at = heads[member.schema]
            if at not in known:
                known[at] = self._standing(at, self.tenant_history)
            applied, pending, problem = known[at]
            found.append(
                TenantMigrationStatus(
                    tenant=member.id,
                    schema=member.schema,
                    suspended=member.status is TenantStatus.SUSPENDED,
                    heads=at or (),
                    applied=applied,
                    pending=pending,
                    problem=problem,
                )
            )
        return found

    def status_shared(self) -> TenantMigrationStatus:
        """Where the shared schema stands."""
        to, heads = self._shared()
        applied, pending, problem = self._standing(heads, self.shared_history)
        return TenantMigrationStatus(
            tenant=SHARED, schema=to.schema, heads=heads, applied=applied, pending=pending, problem=problem
        )

    @staticmethod
    def _standing(heads: Heads | None, history: History) -> tuple[int, tuple[str, ...], str | None]:
        if heads is None:
            return 0, (), "its schema does not exist"
        try:
            pending = tuple(r.id for r in history.pending(heads))
        except MigrationError as error:
            return 0, (), str(error)
        return len(history.revisions()) - len(pending), pending, None

    def plan(
        self, tenants: Iterable[str] | None = None, *, shared: bool = False, mark: bool = False
    ) -> list[FleetPlan]:
        """What a run would do, without doing it: one entry for each distinct plan, with the tenants that
        would get it. A tenant without a schema gets none; `status` names it.

        Args:
            tenants: their ids; None for all.
            shared: whether the shared schema comes first.
            mark: plan `mark_applied` instead of a migration.

        Raises:
            MigrationError: the revisions are wrong.
            TenantNotFoundError: one of `tenants` does not exist.
        """

        def way(history: History) -> Way:
            return history.plan_stamp if mark else history.plan_upgrade

        plans = []
        if shared:
            plan = way(self.shared_history)(self._shared()[1])
            plans += [] if plan.is_empty else [FleetPlan(SHARED, plan, (SHARED,))]
        return plans + self._plans(self.find_members(tenants), lambda _start: way(self.tenant_history))

    def plan_rollback(
        self, tenants: str | Iterable[str] | None = None, *, to: str | None = None, steps: int | None = None
    ) -> list[FleetPlan]:
        """What `rollback` would do, without doing it.

        Raises:
            MigrationError: no such revision, or one on the way has no downgrade.
            TenantNotFoundError: one of `tenants` does not exist.
        """
        members = self.find_members([tenants] if isinstance(tenants, str) else tenants)
        return self._plans(members, self._way_back(to, steps))

    def _plans(self, members: Sequence[Member], way_of: Callable[[Heads], Way]) -> list[FleetPlan]:
        heads = self._read_heads(members)
        groups: dict[Heads, list[str]] = {}
        for member in members:
            start = heads[member.schema]
            if start is not None:
                groups.setdefault(start, []).append(member.id)
        plans = [(way_of(start)(start), tuple(names)) for start, names in groups.items()]
        return [FleetPlan("tenant", plan, names) for plan, names in plans if not plan.is_empty]


def _no_way(error: MigrationError) -> Way:
    """For a tenant at a revision that is not here."""

    def way(_heads: Heads) -> MigrationPlan:
        raise error

    return way
