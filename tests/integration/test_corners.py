"""What is seldom met: refused, or survived."""

from __future__ import annotations

import asyncio
import gc
import secrets
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, select, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_multitenant import (
    AsyncTenantManager,
    ConfigurationError,
    Hooks,
    InvalidTenantIdError,
    Metrics,
    MigrationError,
    MigrationHooks,
    Migrations,
    Migrator,
    MissingExtraError,
    ProvisioningError,
    Schemas,
    TenantConfig,
    TenantManager,
    TenantNotFoundError,
    manager_base,
)
from sqlalchemy_multitenant import Connection as Where
from sqlalchemy_multitenant.engines import pools
from sqlalchemy_multitenant.migrations import journey
from sqlalchemy_multitenant.migrations.batch import lock_key
from tests.conftest import MakeConfig, MakeHarness
from tests.harness import Harness
from tests.integration.fleet import FIRST, Write, fleet, rows
from tests.models import SharedBase, TenantBase, User

ONE = text("SELECT 1")


@pytest.fixture
def role(admin: Engine, plain: Engine) -> Iterator[str]:
    """A role that may log in and read the shared schema, and nothing else."""
    name = f"role_{secrets.token_hex(6)}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN")
    yield name
    with plain.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {name}")
        connection.exec_driver_sql(f"DROP ROLE {name}")


# -- managers ----------------------------------------------------------------------------------------


def test_a_manager_takes_a_configuration_and_several_ids(tenants: TenantManager) -> None:
    with pytest.raises(ConfigurationError, match="a TenantConfig"):
        TenantManager({"url": "postgresql://"})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"several ids: \['ab'\]"):
        tenants.warm_up("ab")
    tenants.warm_up(["a", "b"])
    with Migrator(tenants.config) as migrator, pytest.raises(ConfigurationError, match="several ids"):
        migrator.status("ab")
    with pytest.raises(ConfigurationError, match="callable"):
        MigrationHooks(before_tenant="print")  # type: ignore[arg-type]


def test_a_closed_manager_says_so(make_config: MakeConfig) -> None:
    manager = TenantManager(make_config())
    manager.warm_up(["a"])
    manager.create_tenant("c")
    manager.close()
    manager.close()
    with pytest.raises(RuntimeError, match="closed"):
        manager.create_tenant("d")
    with pytest.raises(RuntimeError, match="closed"):
        manager.get_db("c")


def test_an_async_manager_that_served_nobody_closes_as_well(make_config: MakeConfig) -> None:
    async def main() -> None:
        async with AsyncTenantManager(make_config()):
            pass
        manager = AsyncTenantManager(make_config())
        await manager.create_tenant("c")
        await manager.close()

    asyncio.run(main())


def test_a_manager_that_nobody_holds_stops_sweeping(make_config: MakeConfig) -> None:
    before = set(threading.enumerate())
    manager = TenantManager(make_config(pool_ttl_s=1))
    manager.get_db("a")
    (sweeper,) = set(threading.enumerate()) - before
    del manager
    gc.collect()
    sweeper.join(10)
    assert not sweeper.is_alive()


def test_metrics_may_be_off(make_config: MakeConfig) -> None:
    with TenantManager(make_config(metrics=Metrics(enabled=False))) as manager:
        manager.warm_up(["a"])
        assert manager.metrics() == {}


def test_neither_handles_nor_engines_grow_without_end(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_base, "_MAX_HANDLES", 2)
    with TenantManager(make_config()) as manager:
        first = manager.get_db("a")
        assert manager.get_db("a") is first
        manager.get_db("made-up")
        manager.get_db("b")
        assert manager.get_db("a") is not first
        assert first.scalars(select(User)).all() == []
    monkeypatch.setattr(pools, "MAX_ENGINES", 2)
    with TenantManager(make_config(pool_per_tenant=True, pool_size=1)) as manager:
        first = manager.get_db("a")
        for i in range(4):
            with pytest.raises(TenantNotFoundError):
                manager.get_db(f"made-up-{i}").scalar(ONE)
        assert len(manager._registry._entries) <= 2
        assert first.scalars(select(User)).all() == []


def test_a_pool_of_ones_own_waits_for_discovery(make_config: MakeConfig) -> None:
    asked: list[None] = []

    def discover() -> list[str]:
        asked.append(None)
        return ["a"]

    config = make_config(
        pool_per_tenant=True,
        schema_name=lambda tenant: f"tenant_{tenant.lower()}",
        migrations=Migrations(discover=discover),
    )
    with TenantManager(config) as manager:
        manager.warm_up(["a"])
        assert asked
        with pytest.raises(TenantNotFoundError, match="does not list"):
            manager.get_db("b").scalar(ONE)


def test_a_missing_driver_is_named(
    make_config: MakeConfig, url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(url=url.set(drivername="postgresql+asyncpg"))
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MissingExtraError, match="asyncpg"):
        AsyncTenantManager(config).get_db("a")


# -- connections -------------------------------------------------------------------------------------


def test_an_error_while_connecting_is_the_drivers_own(make_harness_: MakeHarness, url: URL) -> None:
    harness = make_harness_(url=url.set(database="no_such_database"))
    with pytest.raises(Exception, match="no_such_database"):
        harness.connection("a", lambda c: c.scalar(ONE))


def test_a_catalog_that_may_not_be_read_is_told(make_harness_: MakeHarness, url: URL, role: str) -> None:
    harness = make_harness_(url=url.set(username=role), pool_size=1)
    for _ in range(2):
        with pytest.raises(DBAPIError, match="permission denied for table multitenant_tenants"):
            harness.connection("a", lambda c: c.scalar(ONE))


def test_an_encoding_of_the_applications_own_ends_the_connection(harness: Harness) -> None:
    """Names are read in the encoding that the session has: they might mean another schema."""

    def body(connection: Connection) -> None:
        connection.execute(text("SET client_encoding TO LATIN1"))
        connection.commit()
        assert connection.scalar(text("SELECT current_schema()")) == "tenant_a"

    if harness.name == "asyncpg":
        with pytest.raises(DBAPIError, match="client_encoding"):
            harness.connection("a", body)
    else:
        harness.connection("a", body)
    assert harness.connection("b", lambda c: c.scalar(text("SHOW client_encoding"))) == "UTF8"


def test_a_connection_that_is_gone_has_committed_nothing(harness: Harness) -> None:
    def body(connection: Connection) -> None:
        connection.execute(text("INSERT INTO users (name, mood) VALUES ('x', 'HAPPY')"))
        raw: Any = connection.connection.driver_connection
        if harness.name == "asyncpg":
            raw.terminate()
        else:
            raw.pgconn.finish()
        connection.commit()

    with pytest.raises(Exception, match="closed"):
        harness.connection("a", body)
    assert harness.session("a", lambda s: s.scalars(select(User)).all()) == []


def test_a_shared_schema_that_is_not_there_is_told(url: URL) -> None:
    schemas = Schemas(tenant=TenantBase, shared=SharedBase, shared_schema="central")
    config = TenantConfig(connection=Where(url=url), schemas=schemas)
    with TenantManager(config) as manager:
        with pytest.raises(TenantNotFoundError, match="migrate --shared"):
            manager.get_shared_db().scalar(ONE)
        assert not manager.health_check().ok


# -- provisioning ------------------------------------------------------------------------------------


def test_where_there_is_no_catalog_there_is_nobody(make_config: MakeConfig, empty_url: URL) -> None:
    with TenantManager(make_config(url=empty_url)) as manager:
        assert list(manager.list_tenants()) == []
        for act in (
            manager.get_tenant,
            manager.drop_tenant,
            lambda t: manager.set_tenant_status(t, "suspended"),
        ):
            with pytest.raises(TenantNotFoundError):
                act("a")


def test_a_drop_that_the_database_refuses_changes_nothing(
    make_config: MakeConfig, url: URL, role: str, plain: Engine
) -> None:
    with plain.begin() as connection:
        connection.exec_driver_sql(f"GRANT SELECT, UPDATE ON multitenant_tenants TO {role}")
    with TenantManager(make_config(url=url.set(username=role))) as manager:
        with pytest.raises(ProvisioningError, match="nothing was dropped: must be owner"):
            manager.drop_tenant("a")
    with TenantManager(make_config()) as manager:
        manager.warm_up(["a"])


def test_a_hook_that_raises_while_a_pool_opens_does_not_hurt(make_config: MakeConfig) -> None:
    def fail(_name: str) -> None:
        raise RuntimeError("no")

    with TenantManager(make_config(hooks=Hooks(on_pool_created=fail))) as manager:
        manager.warm_up(["a"])


# -- migrations --------------------------------------------------------------------------------------


def test_a_history_without_its_folder_is_told(config: TenantConfig, write: Write, folder: Path) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    for path in (folder / "versions").iterdir():
        if path.is_file():
            path.unlink()
    with Migrator(config) as migrator:
        (status,) = migrator.status()
        assert "has no revisions" in str(status.problem)
        with pytest.raises(MigrationError, match="0001"):
            migrator.rollback(to="0001")


def test_who_is_below_the_target_of_a_rollback_stays(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    first, second = fleet(config, 2)
    write(
        "0002", "0001", 'op.add_column("items", sa.Column("x", sa.Text))', down='op.drop_column("items", "x")'
    )
    write("0003", "0002", "pass")
    with Migrator(config) as migrator:
        migrator.migrate_tenants([first])
        report = migrator.rollback(to="0002")
        assert (report.succeeded, report.skipped) == (1, 1)
        assert rows(db, first, "TABLE alembic_version") == ["0002"]
        assert rows(db, second, "TABLE alembic_version") == ["0001"]
        with pytest.raises(MigrationError, match="9999"):
            migrator.rollback(to="9999")


def test_a_tenant_that_is_locked_for_too_long_fails_alone(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journey, "PATIENCE_S", 0.3)
    write("0001", None, FIRST)
    busy, free = fleet(config, 2)
    write("0002", "0001", "pass")
    with db.begin() as connection, Migrator(config) as migrator:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key(f"tenant_{busy}")})
        report = migrator.migrate_all()
        results = {result.tenant: result for result in report.details}
        assert "another process is migrating it" in str(results[busy].error)
        assert results[busy].retries["locked"] >= 1
        assert report.succeeded == 1
    assert rows(db, free, "TABLE alembic_version") == ["0002"]
    assert rows(db, busy, "TABLE alembic_version") == ["0001"]


def test_statements_outside_transactions_are_taken_up_where_they_stopped(
    config: TenantConfig, write: Write, db: Engine, folder: Path
) -> None:
    write("0001", None, FIRST)
    (tenant,) = fleet(config, 1)
    write(
        "0002",
        "0001",
        """
        with op.get_context().autocommit_block():
            op.execute("CREATE SEQUENCE once")
            op.execute("CREATE UNIQUE INDEX CONCURRENTLY one_name ON items (name)")
        """,
    )
    with db.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO tenant_{tenant}.items (name) VALUES ('x'), ('x')")
    with Migrator(config) as migrator:
        assert migrator.migrate_all().failed == 1
        with db.begin() as connection:
            connection.exec_driver_sql(f"DELETE FROM tenant_{tenant}.items WHERE id = 1")
        again = migrator.migrate_all()
        assert again.failed == 0, again.details
    assert rows(db, tenant, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'one_name'::regclass") == [
        True
    ]


def test_a_statement_outside_transactions_waits_for_the_lock_too(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journey, "PATIENCE_S", 0.2)
    write("0001", None, FIRST)
    (tenant,) = fleet(config, 1)
    write(
        "0002",
        "0001",
        'with op.get_context().autocommit_block():\n    op.execute("CREATE SEQUENCE once")',
    )
    with db.begin() as connection, Migrator(config) as migrator:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key(f"tenant_{tenant}")})
        assert migrator.migrate_all().failed == 1
    with Migrator(config) as migrator:
        assert migrator.migrate_all().succeeded == 1


def test_statements_with_parameters_are_run_and_not_compiled(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    (tenant,) = fleet(config, 1)
    write(
        "0002",
        "0001",
        """
        insert = sa.text("INSERT INTO items (name) VALUES (:name)")
        op.get_bind().execute(insert, [{"name": "x"}, {"name": "y"}])
        """,
    )
    with Migrator(config) as migrator:
        assert migrator.migrate_all().succeeded == 1
    assert rows(db, tenant, "SELECT name FROM items ORDER BY 1") == ["x", "y"]


def test_progress_of_the_shared_schema(config: TenantConfig, tmp_path: Path, write: Write) -> None:
    versions = tmp_path / "shared" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_plans.py").write_text(
        "from alembic import op\nrevision = '0001'\ndown_revision = None\n"
        "def upgrade():\n    op.execute('CREATE TABLE plans (id int)')\n"
    )
    seen: list[tuple[str, str]] = []
    with Migrator(config) as migrator:
        migrator.migrate_shared(on_progress=lambda name, state: seen.append((name, state.value)))
    assert seen[0] == ("shared", "running")
    assert seen[-1][0] == "shared"


@pytest.mark.usefixtures("write")
def test_a_folder_with_a_package_file_alone_has_no_revisions(config: TenantConfig, folder: Path) -> None:
    (folder / "versions" / "__init__.py").write_text("")
    with TenantManager(config) as manager, pytest.raises(ProvisioningError, match="no revisions"):
        manager.create_tenant("a")


@pytest.mark.parametrize(
    "name", ["multitenant_reference-1-x", "multitenant_spare_1", "multitenant_scratch_x"]
)
def test_schemas_of_the_toolkits_own_are_no_tenants(tenants: TenantManager, name: str) -> None:
    for act in (tenants.create_tenant, tenants.adopt_tenant):
        with pytest.raises(InvalidTenantIdError, match="reserved"):
            act("new", schema=name)


def test_metadata_is_checked_wherever_it_is_given(tenants: TenantManager) -> None:
    for act in (tenants.create_tenant, tenants.adopt_tenant):
        with pytest.raises(ConfigurationError, match="JSON"):
            act("new", metadata={"x": object()})


def test_a_database_of_another_encoding(
    config: TenantConfig, write: Write, admin: Engine, empty_url: URL
) -> None:
    name = f"latin_{secrets.token_hex(4)}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        latin = replace(config, connection=Where(url=empty_url.set(database=name)))
        write("0001", None, FIRST)
        write("0002", "0001", "op.execute(\"INSERT INTO items (name) VALUES ('café')\")")
        write("0003", "0002", "op.get_bind().execute(sa.text(\"INSERT INTO items (name) VALUES ('né')\"))")
        with TenantManager(latin) as manager:
            manager.create_tenants(["a", "b", "c"])
            for tenant in "abc":
                names = manager.get_db(tenant).scalars(text("SELECT name FROM items ORDER BY id")).all()
                assert names == ["café", "né"]
        with Migrator(latin) as migrator:
            assert all(v.ok for v in migrator.verify())
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
