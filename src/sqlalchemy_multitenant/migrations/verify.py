"""Holds the tenants' catalogues against what the revisions build."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import URL, Connection, Engine

from ..config import TenantConfig
from ..engines.admin import make_admin_engine
from .catalogue import Catalogue, CatalogueReader, Difference
from .history import History
from .plan import Destination, Heads, Timeouts
from .queue import WorkQueue
from .scratch import Scratch, scratch_name


@dataclass(frozen=True, slots=True)
class TenantVerification:
    """How one tenant's catalogue compares to what the revisions that it has had build.

    Attributes:
        differences: one for each object that is missing, or is otherwise, or should not be there.
        problem: why that cannot be told, or None.
    """

    tenant: str
    schema: str
    differences: tuple[Difference, ...] = ()
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there is nothing to say of it."""
        return not self.differences and self.problem is None


@dataclass(frozen=True, slots=True)
class Reference:
    """What a schema at certain revisions should hold.

    Attributes:
        bookkeeping: the names of what it may hold or not.
    """

    hash: str
    catalogue: Catalogue
    bookkeeping: frozenset[str] = frozenset()


def build_reference(config: TenantConfig, engine: Engine, history: History, heads: Heads) -> Reference:
    """Build a scratch schema up to `heads` beside the real shared schema, and read it. While it is built, it
    holds the locks on the shared tables that creating a tenant holds as well.

    Raises:
        MigrationError: a revision fails.
    """
    name = scratch_name("reference")
    with engine.connect() as connection:
        try:
            scratch = Scratch(connection, Timeouts.of(config))
            scratch.build(history, name, config.schemas.search_path(name), target=heads)
            with CatalogueReader.over(connection) as reader:
                table = history.version_table
                bookkeeping = frozenset() if heads else frozenset({table, f"{table}_pkc"})
                return Reference(reader.read_hash(name), reader.read(name), bookkeeping)
        finally:
            connection.rollback()


def verify_fleet(
    config: TenantConfig,
    url: URL,
    jobs: Sequence[tuple[Destination, Reference]],
    concurrency: int,
    on_checked: Callable[[str], object],
) -> dict[str, TenantVerification]:
    """Compare each schema with its reference, over at most `concurrency` connections; one round trip for one
    that is as it should be."""
    engine = make_admin_engine(config, url, pool_size=max(min(concurrency, len(jobs)), 1), pre_ping=False)
    # One for each worker, for as long as it lives: what takes time is to plan the query.
    kept = threading.local()
    opened: list[Connection] = []

    def check(job: tuple[Destination, Reference]) -> TenantVerification:
        to, reference = job
        try:
            if not hasattr(kept, "reader"):
                kept.connection = engine.connect()
                opened.append(kept.connection)
                kept.reader = CatalogueReader.on(kept.connection)
            return _compare(kept.reader, to, reference)
        except Exception as error:
            # Whatever it was, the next one begins with a connection that is all right.
            if hasattr(kept, "reader"):
                kept.connection.invalidate()
                kept.connection.close()
                opened.remove(kept.connection)
                del kept.reader
            return TenantVerification(to.name, to.schema, problem=str(error).strip())

    found: dict[str, TenantVerification] = {}
    try:
        for result in WorkQueue(jobs, check, concurrency):
            found[result.tenant] = result
            on_checked(result.tenant)
    finally:
        for connection in opened:
            connection.close()
        engine.dispose()
    return found


def _compare(reader: CatalogueReader, to: Destination, reference: Reference) -> TenantVerification:
    if reader.read_hash(to.schema) == reference.hash:
        return TenantVerification(to.name, to.schema)
    all_differences = reference.catalogue.compare(reader.read(to.schema))
    # Taken back to before the first revision, a schema keeps an empty version table, which one that was never
    # migrated has not.
    differences = [d for d in all_differences if d.name.partition(".")[0] not in reference.bookkeeping]
    if all_differences and not differences:
        return TenantVerification(to.name, to.schema)
    if not differences:
        problem = "its catalogue is another, and the difference has no name; please report this"
        return TenantVerification(to.name, to.schema, problem=problem)
    return TenantVerification(to.name, to.schema, tuple(differences))
