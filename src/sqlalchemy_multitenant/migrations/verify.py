"""Holds the tenants' catalogues against what the revisions build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import URL, Engine

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
    """What a schema at certain revisions should hold."""

    hash: str
    catalogue: Catalogue


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
                return Reference(reader.read_hash(name), reader.read(name))
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

    def check(job: tuple[Destination, Reference]) -> TenantVerification:
        to, reference = job
        try:
            with engine.connect() as connection, CatalogueReader.over(connection) as reader:
                if reader.read_hash(to.schema) == reference.hash:
                    return TenantVerification(to.name, to.schema)
                differences = reference.catalogue.compare(reader.read(to.schema))
                if not differences:
                    problem = "its catalogue is another, and the difference has no name; please report this"
                    return TenantVerification(to.name, to.schema, problem=problem)
                return TenantVerification(to.name, to.schema, tuple(differences))
        except Exception as error:
            return TenantVerification(to.name, to.schema, problem=str(error).strip())

    found: dict[str, TenantVerification] = {}
    try:
        for result in WorkQueue(jobs, check, concurrency):
            found[result.tenant] = result
            on_checked(result.tenant)
    finally:
        engine.dispose()
    return found
