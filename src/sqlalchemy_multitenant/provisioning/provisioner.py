"""Creates and drops tenants: each in one transaction, so that nothing half-made is ever seen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import URL, Engine, text
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError

from ..catalog.members import Member, Membership, Roster
from ..catalog.records import TenantRecord, TenantStatus
from ..config import TenantConfig
from ..engines.admin import make_admin_engine
from ..engines.pipeline import StatementError
from ..errors import (
    ConfigurationError,
    InvalidTenantIdError,
    ProvisioningError,
    TenantBusyError,
    TenantExistsError,
    TenantNotFoundError,
)
from ..isolation.run import run_sql
from ..migrations.batch import Batch, lock_key, settings_sql
from ..migrations.history import dialect_of
from ..migrations.ledger import Ledger
from ..migrations.plan import Destination, Heads, Timeouts
from ..migrations.queue import WorkQueue
from ..migrations.sources import Sources
from ..naming import SchemaName, TenantId, parse_tenant_id, parse_tenant_ids, quote_ident
from .archive import write_archive
from .builder import SchemaBuilder
from .creator import Creator
from .recipe import Recipe
from .report import CreationReport
from .seed import Seed, check_seed
from .spares import SPARE_PREFIX, SpareStock, SpareStore, spare_name

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

_LOCK_NOT_AVAILABLE = "55P03"


class Provisioner:
    """Creates and drops tenants, and keeps the catalog."""

    def __init__(self, config: TenantConfig, url: URL) -> None:
        self.config = config
        self.members = Membership(config, lambda: self.engine)
        self._url = url
        self._lock = Lock()
        self._engine: Engine | None = None
        self._closed = False
        self._builder = SchemaBuilder(config, url, self.members, lambda: self.engine, lambda: self._dialect)
        self._spares = SpareStore(config.schemas.shared_schema)
        self._creator = Creator(config, self.members, self._builder, self._spares, lambda: self.engine)
        self._installed = False
        self._sources = Sources(Ledger(config.schemas.shared_schema), lambda: self.engine)

    @property
    def engine(self) -> Engine:
        with self._lock:
            if self._closed:
                raise RuntimeError("this manager is closed; build a new one")
            if self._engine is None:
                self._engine = make_admin_engine(
                    self.config, self._url, pool_size=max(self.config.connection.pool_size, 2)
                )
            return self._engine

    @cached_property
    def _dialect(self) -> Dialect:
        with self.engine.connect() as connection:
            return dialect_of(connection)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        with self._lock:
            self._closed = True
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None

    # -- create -------------------------------------------------------------------------------------

    def create(
        self,
        tenant: str,
        *,
        schema: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        seed: Seed | None = None,
    ) -> TenantRecord:
        """See `TenantManager.create_tenant`."""
        parsed = parse_tenant_id(tenant)
        name = self._schema(parsed, schema)
        _check_metadata(metadata)
        check_seed(seed)
        recipe = self._prepare(parsed)
        record = self._creator.create(self.engine, parsed, name, recipe, metadata=metadata, seed=seed)
        self._note_sources(recipe)
        return record

    def create_many(
        self,
        tenants: Iterable[str],
        *,
        concurrency: int,
        seed: Seed | None,
        on_progress: Callable[[str, BaseException | None], object] | None,
    ) -> CreationReport:
        """See `TenantManager.create_tenants`."""
        wanted = list(dict.fromkeys(parse_tenant_ids(tenants)))
        names = {tenant: self._schema(tenant, None) for tenant in wanted}
        if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
            raise ConfigurationError("concurrency", concurrency, "a whole number, at least 1")
        check_seed(seed)
        if not wanted:
            return CreationReport((), (), {})
        recipe = self._prepare(wanted[0], len(wanted))
        with self.engine.connect() as connection:
            has_spares = self._spares.is_installed(connection)
        size = min(concurrency, len(wanted))
        engine = make_admin_engine(self.config, self._url, pool_size=size, pre_ping=False)

        def work(tenant: TenantId) -> tuple[TenantId, TenantRecord | BaseException | None]:
            try:
                into = (engine, tenant, names[tenant], recipe)
                made = self._creator.create(*into, seed=seed, spares=has_spares, waits=False)
                return tenant, made
            except TenantExistsError as error:
                return tenant, self._unless_existing(tenant, error)
            except Exception as error:
                return tenant, error

        made: dict[TenantId, TenantRecord | BaseException | None] = {}
        try:
            for tenant, result in WorkQueue(wanted, work, concurrency):
                made[tenant] = result
                if isinstance(result, TenantRecord):
                    self._note_sources(recipe)
                if on_progress is not None:
                    on_progress(tenant, result if isinstance(result, BaseException) else None)
        finally:
            kept = self._wait_for_disk(
                [record for record in made.values() if isinstance(record, TenantRecord)]
            )
            engine.dispose()
        return CreationReport.of({tenant: _unless_lost(tenant, made[tenant], kept) for tenant in wanted})

    def _note_sources(self, recipe: Recipe) -> None:
        """What the revisions are is noted with the first tenant: it may be changed before the next one."""
        if recipe.plan is not None:
            self._sources.note(recipe.history, [recipe.plan.end], install=True)

    def _unless_existing(self, tenant: TenantId, error: TenantExistsError) -> Exception | None:
        """The error of a tenant that was to be created; None where it is there, and not its schema alone,
        with nobody's data."""
        try:
            if not self.members.uses_catalog:
                self.list()  # the ids that the application lists now have the first claim to their schemas
            self.get(tenant)
        except (TenantNotFoundError, InvalidTenantIdError):
            return error
        except Exception as other:
            return other
        return None

    def _wait_for_disk(self, records: Sequence[TenantRecord]) -> Container[SchemaName | None]:
        """Commit something and wait until that is on the disk, and so all that was committed before it
        (https://www.postgresql.org/docs/current/wal-async-commit.html). Returns which schemas of `records`
        are there then: a server that came up again meanwhile may have forgotten some."""
        if not records:
            return ()
        names = text(
            "SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname = ANY(CAST(:names AS text[]))"
        )
        try:
            with self.engine.begin() as connection:
                connection.execute(text("SELECT pg_logical_emit_message(true, 'multitenant', '')"))
            with self.engine.connect() as connection:
                return set(connection.scalars(names, {"names": [record.schema for record in records]}))
        except DBAPIError:
            return ()

    def _schema(self, tenant: TenantId, override: str | None) -> SchemaName:
        if override is None:
            return self.config.naming.schema_for(tenant)
        if not self.members.uses_catalog:
            raise ConfigurationError(
                "schema", override, "only the catalog can hold it; `discover` is configured"
            )
        return self.config.naming.check(tenant, override)

    def _prepare(self, tenant: str, count: int = 1) -> Recipe:
        """What has to be done before a transaction begins: to compile takes a connection as well."""
        if self.members.uses_catalog:
            self._install(tenant)
        else:
            self.list()  # the ids that the application lists have the first claim to their schemas
        recipe = self._builder.recipe(tenant)
        self._builder.prepare(recipe, count)
        return recipe

    def _install(self, tenant: str) -> None:
        if self._installed:
            return
        try:
            with self.engine.begin() as connection:
                self.members.store.install(connection)
        except DBAPIError as error:
            schema = self.config.schemas.shared_schema
            raise ProvisioningError(
                tenant, f"nothing was created: the catalog cannot be made in {schema!r}: {error.orig}".strip()
            ) from error
        self._installed = True

    def adopt(
        self, tenant: str, *, schema: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> TenantRecord:
        """See `TenantManager.adopt_tenant`."""
        parsed = parse_tenant_id(tenant)
        if not self.members.uses_catalog:
            raise ConfigurationError(
                "tenant", tenant, "`discover` lists the tenants here: let it return this id as well"
            )
        name = self._schema(parsed, schema)
        _check_metadata(metadata)
        self._install(parsed)
        try:
            with self.engine.begin() as connection:
                records: list[TenantRecord] = []
                batch = Batch.within(connection, parsed)
                self._creator.record(batch, parsed, name, metadata or {}, records)
                batch.send()
                there = text("SELECT to_regnamespace(:schema) IS NOT NULL")
                if not connection.scalar(there, {"schema": quote_ident(name)}):
                    raise ProvisioningError(parsed, f"there is no schema {name!r} to adopt")
            return records[-1]
        except (DBAPIError, StatementError) as error:
            raise self._creator.explain(error, parsed, name) from error

    # -- made ahead ---------------------------------------------------------------------------------

    def keep_spares(self, keep: int) -> SpareStock:
        """See `TenantManager.keep_spares`."""
        if not isinstance(keep, int) or isinstance(keep, bool) or keep < 0:
            raise ConfigurationError("keep", keep, "a whole number, at least 0")
        recipe = self._prepare("a spare one")
        # In a transaction that stays open: two of these at once would both make what is lacking.
        with self.engine.begin() as turn:
            turn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key(SPARE_PREFIX)})
            return self._keep_spares(recipe, keep)

    def _keep_spares(self, recipe: Recipe, keep: int) -> SpareStock:
        with self.engine.begin() as connection:
            self._spares.install(connection)
        discarded = 0
        while self._discard_spare(recipe, keep):
            discarded += 1
        made = 0
        with self.engine.connect() as connection:
            lacking = keep - self._spares.count(connection, recipe.key)
        if lacking > 0:
            self._builder.prepare(recipe, lacking)
        while made < lacking:
            self._make_spare(recipe)
            made += 1
        with self.engine.connect() as connection:
            return SpareStock(self._spares.count(connection, recipe.key), made, discarded)

    def _make_spare(self, recipe: Recipe) -> None:
        name = spare_name()
        to = Destination("a spare one", name, self.config.schemas.search_path(name))
        with self.engine.begin() as connection:
            self._builder.make_for_anybody(connection, recipe, to)
            self._spares.add(connection, name, recipe.key)

    def _discard_spare(self, recipe: Recipe, keep: int) -> bool:
        with self.engine.begin() as connection:
            spare = self._spares.take_surplus(connection, recipe.key, keep)
            if spare is None:
                return False
            run_sql(connection, f"DROP SCHEMA IF EXISTS {quote_ident(spare)} CASCADE")
            return True

    # -- drop ---------------------------------------------------------------------------------------

    def drop(self, tenant: str, *, archive: Path | None = None) -> None:
        """See `TenantManager.drop_tenant`."""
        member = self._member(tenant)
        # Whoever would write to it is refused at once, instead of waiting for as long as the archive takes.
        refusing = nullcontext() if archive is None else self._suspended(member)
        try:
            with refusing, self.engine.begin() as connection:
                timeouts = Timeouts(self.config.migrations.lock_timeout_s, None)
                run_sql(connection, settings_sql((self.config.schemas.shared_schema,), timeouts))
                if self.members.uses_catalog:
                    member = self.members.lock(connection, member.id)
                if not connection.scalar(
                    text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": lock_key(member.schema)}
                ):
                    raise TenantBusyError(member.id, "it is being migrated; nothing was dropped, try again")
                if archive is not None:
                    write_archive(connection, self.config, self._url, member, archive)
                run_sql(connection, f"DROP SCHEMA IF EXISTS {quote_ident(member.schema)} CASCADE")
                if self.members.uses_catalog:
                    self.members.store.mark_dropped(connection, member.id)
        except DBAPIError as error:
            reason = str(error.orig).strip()
            if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                raise TenantBusyError(
                    member.id, f"its tables are in use; nothing was dropped, try again ({reason})"
                ) from error
            raise ProvisioningError(member.id, f"nothing was dropped: {reason}") from error
        # With the last tenant, what the revisions were is forgotten: they may be changed.
        self._sources.forget(self._builder.history, self._heads_of_nobody)

    def _heads_of_nobody(self) -> Sequence[Heads] | None:
        """None, where there is anybody."""
        with self.engine.connect() as connection:
            return None if self.members.list(connection) else []

    @contextmanager
    def _suspended(self, member: Member) -> Iterator[None]:
        """Nobody uses the tenant in the meantime, where there is a catalog; as before, after an error."""
        if not self.members.uses_catalog or member.status is not TenantStatus.ACTIVE:
            yield
            return
        self.set_status(member.id, TenantStatus.SUSPENDED)
        since = self.get(member.id).updated_at
        try:
            yield
        except BaseException:
            # Unless somebody has suspended it in the meantime.
            if self.get(member.id).updated_at == since:
                self.set_status(member.id, TenantStatus.ACTIVE)
            raise

    def _member(self, tenant: str) -> Member:
        with self.engine.connect() as connection:
            member = self.members.find(connection, tenant)
        if member is None:
            raise TenantNotFoundError(parse_tenant_id(tenant))
        return member

    # -- look ---------------------------------------------------------------------------------------

    def exists(self, tenant: str) -> bool:
        """See `TenantManager.tenant_exists`."""
        try:
            self.get(tenant)
        except (TenantNotFoundError, InvalidTenantIdError):  # such as one that meets another's
            return False
        return True

    def get(self, tenant: str) -> TenantRecord:
        """See `TenantManager.get_tenant`."""
        parsed = parse_tenant_id(tenant)
        with self.engine.connect() as connection:
            if self.members.uses_catalog:
                store = self.members.store
                record = store.find(connection, parsed) if store.is_installed(connection) else None
                if record is None or record.status is TenantStatus.DROPPED:
                    raise TenantNotFoundError(parsed)
                return record
            schema = self.config.naming.schema_for(parsed)
            if not connection.scalar(
                text("SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = :name"), {"name": schema}
            ):
                raise TenantNotFoundError(parsed)
            if self.members.claims.is_open(parsed, schema):
                self.members.list(connection)
            self.members.claims.check(parsed, schema)
            return TenantRecord(id=parsed, status=TenantStatus.ACTIVE, schema=schema)

    def roster(self) -> Roster:
        """All tenants with their schemas, without what else the catalog knows of them."""
        with self.engine.connect() as connection:
            return self.members.read(connection)

    def list(self) -> Sequence[TenantRecord]:
        """See `TenantManager.list_tenants`."""
        with self.engine.connect() as connection:
            if not self.members.uses_catalog:
                members = self.members.list(connection)
                return [TenantRecord(id=m.id, status=m.status, schema=m.schema) for m in members]
            store = self.members.store
            return store.list(connection) if store.is_installed(connection) else []

    def set_status(self, tenant: str, status: TenantStatus | str) -> None:
        """See `TenantManager.set_tenant_status`."""
        parsed = parse_tenant_id(tenant)
        try:
            wanted = TenantStatus(status)
        except ValueError as error:
            raise ConfigurationError("status", status, "'active' or 'suspended'") from error
        if wanted is TenantStatus.DROPPED:
            raise ConfigurationError("status", status, "use drop_tenant(), which drops the data, too")
        if not self.members.uses_catalog:
            raise ConfigurationError(
                "status", status, "the catalog keeps it, and `discover` is configured in its stead"
            )
        with self.engine.begin() as connection:
            if not self.members.store.is_installed(connection):
                raise TenantNotFoundError(parsed)
            self.members.store.set_status(connection, parsed, wanted)


def _unless_lost(
    tenant: TenantId, result: TenantRecord | BaseException | None, kept: Container[SchemaName | None]
) -> TenantRecord | BaseException | None:
    """What a creation came to, where these are the schemas that the server has kept."""
    if not isinstance(result, TenantRecord) or result.schema in kept:
        return result
    return ProvisioningError(tenant, "the server was lost before it was surely on the disk; create it again")


def _check_metadata(metadata: Mapping[str, Any] | None) -> None:
    """What PostgreSQL's JSON cannot hold either: NaN, NUL, half of a surrogate pair."""
    try:
        document = json.dumps(dict(metadata or {}), allow_nan=False, ensure_ascii=False)
        document.encode()
        if _NUL.search(document):
            raise ValueError("a NUL character")
    except (TypeError, ValueError) as error:
        raise ConfigurationError("metadata", metadata, f"a dict that JSON can hold: {error}") from error
