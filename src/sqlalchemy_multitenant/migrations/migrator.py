"""`Migrator`: brings tenants and the shared schema to the newest revision, and tells where they stand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from sqlalchemy import URL, Engine

from ..catalog.members import Member, Membership
from ..catalog.records import TenantStatus
from ..config import TenantConfig
from ..engines.engine import make_admin_engine
from ..engines.server import resolve_url
from ..errors import ConfigurationError, MigrationError, TenantNotFoundError
from ..naming import SchemaName, parse_tenant_id
from .fleet import read_heads
from .generate import GeneratedRevision, generate
from .history import History
from .plan import Destination, Heads, MigrationPlan, Timeouts
from .queue import WorkQueue
from .report import SHARED, MigrationReport, MigrationState, TenantMigrationStatus, TenantResult
from .runner import SchemaRunner

OnProgress = Callable[[str, MigrationState], object]
OnError = Callable[[str, BaseException], Literal["continue", "abort"] | None]


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

    def __init__(self, config: TenantConfig) -> None:
        self.config = config
        settings = config.migrations
        self.tenant_history = History(Path(settings.tenant_dir), settings.version_table, "tenant")
        self.shared_history = History(Path(settings.shared_dir), settings.version_table, SHARED)
        self.members = Membership(config)
        self._engines: dict[int, Engine] = {}
        self._callback_lock = threading.Lock()

    @cached_property
    def url(self) -> URL:
        """The database's URL."""
        return resolve_url(self.config.connection)

    def engine(self, connections: int = 1) -> Engine:
        """A plain engine of at most so many connections."""
        if connections not in self._engines:
            self._engines[connections] = make_admin_engine(self.config, self.url, pool_size=connections)
        return self._engines[connections]

    def close(self) -> None:
        """Close all connections. Idempotent."""
        for engine in self._engines.values():
            engine.dispose()
        self._engines.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- migrate ------------------------------------------------------------------------------------

    def migrate_all(
        self,
        *,
        concurrency: int = 10,
        on_progress: OnProgress | None = None,
        on_error: OnError | None = None,
    ) -> MigrationReport:
        """Bring every tenant to the newest revision, suspended ones included.

        Args:
            concurrency: how many tenants are migrated at one time, each over a connection of its own.
            on_progress: called with (tenant, state) when a tenant begins and when it ends; from one
                thread at a time.
            on_error: called with (tenant, error) when a tenant failed; returns `"continue"` (as does None)
                or `"abort"`, which starts no further tenants.

        Raises:
            MigrationError: the revisions themselves are wrong; no tenant was touched.
        """
        return self.migrate(
            self.find_members(), concurrency=concurrency, on_progress=on_progress, on_error=on_error
        )

    def migrate_tenants(
        self,
        tenants: Iterable[str],
        *,
        concurrency: int = 10,
        on_progress: OnProgress | None = None,
        on_error: OnError | None = None,
    ) -> MigrationReport:
        """Bring the named tenants to the newest revision; see `migrate_all`.

        Raises:
            TenantNotFoundError: one of them does not exist; none was touched.
        """
        return self.migrate(
            self.find_members(tenants), concurrency=concurrency, on_progress=on_progress, on_error=on_error
        )

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

    def migrate_shared(self, *, on_progress: OnProgress | None = None) -> TenantResult:
        """Bring the shared schema to the newest revision, and install the catalog where it is missing.

        Raises:
            MigrationError: a revision failed.
        """
        self.install_catalog()
        to, start = self._shared()
        result = self._runner(self.shared_history).upgrade(
            to, start, lambda: self._tell(on_progress, SHARED, MigrationState.RUNNING)
        )
        self._tell(on_progress, SHARED, result.state)
        if result.error is not None:
            raise result.error
        return result

    def _shared(self) -> tuple[Destination, Heads]:
        """The shared schema, and where it stands."""
        schemas = self.config.schemas
        name = SchemaName(schemas.shared_schema)
        to = Destination(SHARED, name, (name, *schemas.extra_search_path))
        return to, self._heads_of([name])[name] or ()

    def _tenant(self, member: Member) -> Destination:
        schemas = self.config.schemas
        path = (member.schema, schemas.shared_schema, *schemas.extra_search_path)
        return Destination(member.id, member.schema, path)

    def _runner(self, history: History, connections: int = 1) -> SchemaRunner:
        return SchemaRunner(history, self.engine(connections), Timeouts.of(self.config))

    def install_catalog(self) -> None:
        """Install the catalog of tenants, unless the application has its own discovery."""
        if self.members.uses_catalog:
            with self.engine().begin() as connection:
                self.members.store.install(connection)

    def find_members(self, tenants: Iterable[str] | None = None) -> list[Member]:
        """The tenants of these ids, each once; all of them by default.

        Raises:
            TenantNotFoundError: one of them does not exist.
        """
        if isinstance(tenants, str):
            raise ConfigurationError("tenants", tenants, f"several ids: [{tenants!r}]")
        wanted = None if tenants is None else list(dict.fromkeys(map(parse_tenant_id, tenants)))
        with self.engine().connect() as connection:
            members = self.members.list(connection)
        if wanted is None:
            return members
        known = {m.id: m for m in members}
        for tenant in wanted:
            if tenant not in known:
                raise TenantNotFoundError(tenant)
        return [known[tenant] for tenant in wanted]

    def migrate(
        self,
        members: Sequence[Member],
        *,
        concurrency: int = 10,
        on_progress: OnProgress | None = None,
        on_error: OnError | None = None,
    ) -> MigrationReport:
        """As `migrate_all`, for tenants that `find_members` returned."""
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise ConfigurationError("concurrency", concurrency, "a whole number, at least 1")
        heads = self._read_heads(members)
        self.tenant_history.heads()  # a broken history is told before any tenant is touched
        results: dict[str, TenantResult] = {}
        jobs: list[tuple[Destination, Heads]] = []
        for member in members:
            start = heads[member.schema]
            if start is None:
                error = MigrationError(f"schema {member.schema!r} does not exist", member.id)
                results[member.id] = TenantResult(tenant=member.id, state=MigrationState.FAILED, error=error)
            else:
                jobs.append((self._tenant(member), start))
        self._compile({start for _, start in jobs})
        runner = self._runner(self.tenant_history, min(concurrency, max(len(jobs), 1)))
        aborted = False

        def work(job: tuple[Destination, Heads]) -> TenantResult:
            to, start = job
            result = runner.upgrade(
                to, start, lambda: self._tell(on_progress, to.name, MigrationState.RUNNING)
            )
            self._tell(on_progress, result.tenant, result.state)
            # Before this worker takes its next tenant.
            note_failure(result)
            return result

        def note_failure(result: TenantResult) -> None:
            nonlocal aborted
            if result.error is None or on_error is None:
                return
            with self._callback_lock:
                if on_error(result.tenant, result.error) == "abort":
                    aborted = True
                    queue.stop()

        queue = WorkQueue(jobs, work, concurrency)
        for result in list(results.values()):
            note_failure(result)
        for result in queue:
            results[result.tenant] = result
        for to, start in jobs:
            skipped = TenantResult(tenant=to.name, state=MigrationState.SKIPPED, start=start, end=start)
            results.setdefault(to.name, skipped)
        return MigrationReport.of((results[m.id] for m in members), aborted=aborted)

    def _tell(self, on_progress: OnProgress | None, tenant: str, state: MigrationState) -> None:
        if on_progress is not None:
            with self._callback_lock:
                on_progress(tenant, state)

    def _read_heads(self, members: Sequence[Member]) -> Mapping[SchemaName, Heads | None]:
        return self._heads_of([m.schema for m in members])

    def _heads_of(self, schemas: Sequence[SchemaName]) -> Mapping[SchemaName, Heads | None]:
        with self.engine().connect() as connection:
            return read_heads(connection, schemas, self.config.migrations.version_table)

    def _compile(self, starts: Iterable[Heads]) -> None:
        """Compile what the run needs, so that a revision that cannot work is told before any tenant is
        touched. A tenant at an unknown revision is that tenant's failure alone."""
        for start in starts:
            try:
                self.tenant_history.pending(start)
            except MigrationError:
                continue
            self.tenant_history.plan_upgrade(start)

    # -- write --------------------------------------------------------------------------------------

    def generate(self, name: str, kind: Literal["tenant", "shared"] | None = None) -> list[GeneratedRevision]:
        """Write revisions for what has changed in the models since the last ones: of the shared and of
        the tenants' models, or of `kind` alone. Returns what was written: nothing, where nothing has changed.

        Raises:
            MigrationError: the models cannot be compared, or an existing revision fails.
        """
        return generate(
            self.config, self.engine(), self.tenant_history, self.shared_history, name=name, kind=kind
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
                known[at] = self._standing(at)
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

    def _standing(self, heads: Heads | None) -> tuple[int, tuple[str, ...], str | None]:
        if heads is None:
            return 0, (), "its schema does not exist"
        try:
            pending = tuple(r.id for r in self.tenant_history.pending(heads))
        except MigrationError as error:
            return 0, (), str(error)
        return len(self.tenant_history.revisions()) - len(pending), pending, None

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
        plans = []
        if shared:
            plan = self._plan(self.shared_history, self._shared()[1], mark)
            plans += [] if plan.is_empty else [FleetPlan(SHARED, plan, (SHARED,))]
        members = self.find_members(tenants)
        heads = self._read_heads(members)
        groups: dict[Heads, list[str]] = {}
        for member in members:
            start = heads[member.schema]
            if start is not None:
                groups.setdefault(start, []).append(member.id)
        for start, names in groups.items():
            plan = self._plan(self.tenant_history, start, mark)
            plans += [] if plan.is_empty else [FleetPlan("tenant", plan, tuple(names))]
        return plans

    @staticmethod
    def _plan(history: History, start: Heads, mark: bool) -> MigrationPlan:
        return history.plan_stamp(start) if mark else history.plan_upgrade(start)

    def mark_applied(self, tenants: Iterable[str] | None = None) -> MigrationReport:
        """Record the newest revision for tenants (all of them by default) without running anything:
        for schemas that have the structure already.

        Raises:
            TenantNotFoundError: one of `tenants` does not exist.
        """
        members = self.find_members(tenants)
        heads = self._read_heads(members)
        runner = self._runner(self.tenant_history)
        return MigrationReport.of(runner.mark(self._tenant(m), heads[m.schema] or ()) for m in members)

    def mark_shared_applied(self) -> TenantResult:
        """The same for the shared schema.

        Raises:
            MigrationError: it could not be recorded.
        """
        self.install_catalog()
        result = self._runner(self.shared_history).mark(*self._shared())
        if result.error is not None:
            raise result.error
        return result
