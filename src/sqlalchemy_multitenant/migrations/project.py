"""`Project`: the revisions and the tenants of one configuration, and where everybody stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Self

from sqlalchemy import URL, Engine
from sqlalchemy.engine import Dialect

from ..catalog.members import Member, Membership
from ..catalog.records import TenantStatus
from ..config import TenantConfig
from ..engines.admin import make_admin_engine
from ..engines.url import resolve_url
from ..errors import MigrationError, TenantNotFoundError
from ..naming import SchemaName, parse_tenant_ids
from .fleet import read_heads
from .history import History, dialect_of
from .ledger import SHOWN_RUNS, Ledger, ResultRecord, RunRecord
from .plan import Destination, Heads
from .report import SHARED, EditedRevision, TenantMigrationStatus
from .sources import Sources


class Project:
    """What there is: revisions, tenants, and the ledger. A context manager; `close()` otherwise."""

    def __init__(self, config: TenantConfig) -> None:
        self.config = config
        self.tenant_history = History.of(config, "tenant", lambda: self._dialect)
        self.shared_history = History.of(config, SHARED, lambda: self._dialect)
        self.members = Membership(config, lambda: self.engine)
        self.ledger = Ledger(config.schemas.shared_schema)
        self.sources = Sources(self.ledger, lambda: self.engine)

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

    # -- who ----------------------------------------------------------------------------------------

    def _tenant(self, member: Member) -> Destination:
        path = self.config.schemas.search_path(member.schema)
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
        wanted = None if tenants is None else list(dict.fromkeys(parse_tenant_ids(tenants)))
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

    def _shared(self) -> tuple[Destination, Heads]:
        """The shared schema, and where it stands."""
        name = SchemaName(self.config.schemas.shared_schema)
        to = Destination(SHARED, name, self.config.schemas.search_path())
        return to, self._heads_of([name])[name] or ()

    # -- where --------------------------------------------------------------------------------------

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
        return self.sources.edited(self.shared_history, self.tenant_history)
