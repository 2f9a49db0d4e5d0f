"""A long, mixed history: migrating by it against plain Alembic, and creating tenants against their SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from random import Random

from sqlalchemy import URL, create_engine
from sqlalchemy.orm import DeclarativeBase

from sqlalchemy_multitenant import Migrator, TenantConfig, TenantManager
from sqlalchemy_multitenant.provisioning.provisioner import Provisioner
from tests.long_history import upgrade_plainly, write_history

from .database import connect, make_config, own_database
from .report import Report, compare
from .rounds import Samples, Variant, measure

REVISIONS, TENANTS, ROUNDS, WORKERS = 150, 10, 3, 2

_TABLE = (
    "    op.create_table('t{}', sa.Column('id', sa.Integer, primary_key=True), "
    "sa.Column('name', sa.String, index=True))\n"
)
EIGHT_TABLES = (
    "import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = '0001', None\n\n\n"
    f"def upgrade():\n{''.join(map(_TABLE.format, range(8)))}"
)


class Base(DeclarativeBase):
    """The tables come from the revisions."""


def _measure_migration(url: URL, config: TenantConfig, rounds: int) -> Samples:
    """From nothing to the newest revision, from a cold start. Plain Alembic goes one by one, as it has to:
    its state is in globals."""
    numbers = count()
    engine = create_engine(url)

    def make_names(_: Random) -> list[str]:
        names = [f"m{next(numbers)}" for _ in range(TENANTS)]
        with TenantManager(config) as manager:
            for name in names:
                with engine.begin() as connection:
                    connection.exec_driver_sql(f"CREATE SCHEMA tenant_{name}")
                manager.adopt_tenant(name)
        return names

    def migrate(names: Sequence[str]) -> None:
        with Migrator(config) as migrator:
            assert migrator.migrate_tenants(names, concurrency=WORKERS).succeeded == len(names)

    def upgrade(names: Sequence[str]) -> None:
        for name in names:
            upgrade_plainly(engine, Path(config.migrations.tenant_dir), f"plain_{name}")

    samples = measure([Variant("ours", migrate), Variant("alembic", upgrade)], rounds, make_names, TENANTS)
    engine.dispose()
    return samples


def _make_script(url: URL, config: TenantConfig) -> Callable[[str], str]:
    """What turns a schema's name into all the SQL that makes a tenant: that of the plan, or where it cannot
    be compiled, that of a dump."""
    provisioner = Provisioner(config, url)
    recipe = provisioner._prepare("raw", TENANTS)
    snapshot = provisioner._builder._snapshot
    provisioner.close()
    if snapshot is not None:
        return lambda schema: snapshot.script.replace(f'"{snapshot.name}"', schema)
    assert recipe.plan is not None
    body = "; ".join(statement.sql for statement in recipe.plan.statements)
    return lambda schema: f"CREATE SCHEMA {schema}; SET LOCAL search_path TO {schema}, public; {body}"


def _measure_creation(url: URL, config: TenantConfig, rounds: int, *, spares: bool = False) -> Samples:
    """Over open connections, and with a snapshot where there is one to take."""
    numbers = count()
    script = _make_script(url, config)

    def make_name(_: Random) -> str:
        return f"{'spare' if spares else 'n'}{next(numbers)}"

    with TenantManager(config) as manager, connect(url) as raw:
        manager.create_tenants([make_name(Random()) for _ in range(3)])
        if spares:
            manager.keep_spares(rounds + 1)
        variants = [
            Variant("ours", manager.create_tenant),
            Variant("raw", lambda name: raw.execute(f"BEGIN; {script(f'raw_{name}')}; COMMIT".encode())),
        ]
        return measure(variants, rounds, make_name, 1)


def run(server: URL, folder: Path, rounds: int | None, progress: Callable[[str], object]) -> Iterator[Report]:
    """The reports, one after the other."""
    rounds = rounds or ROUNDS
    write_history(folder / "long/tenant", REVISIONS)
    progress(f"migrating by {REVISIONS} revisions ...")
    with own_database(server) as url:
        config = make_config(url, folder / "long", Base, pool_size=WORKERS)
        samples = _measure_migration(url, config, rounds)
        title = f"{TENANTS} tenants by {REVISIONS} revisions, {WORKERS} at a time"
        yield compare(title, "tenant", samples, ["alembic"], note="plain Alembic goes one by one")
        progress("creating tenants ...")
        samples = _measure_creation(url, config, rounds * 10)
        yield compare(f"A tenant of {REVISIONS} revisions, from a snapshot", "tenant", samples, ["raw"])

    versions = folder / "short/tenant/versions"
    versions.mkdir(parents=True)
    (versions.parent / "script.py.mako").write_text("")
    (versions / "0001_eight.py").write_text(EIGHT_TABLES)
    with own_database(server) as url:
        config = make_config(url, folder / "short", Base, pool_size=WORKERS)
        samples = _measure_creation(url, config, rounds * 10)
        yield compare("A tenant of eight tables", "tenant", samples, ["raw"])
        samples = _measure_creation(url, config, rounds * 10, spares=True)
        yield compare("A tenant of eight tables, from a spare", "tenant", samples, ["raw"])
