"""One test for each guard that no other test would miss."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, select, text
from sqlalchemy.exc import DBAPIError

import sqlalchemy_multitenant as mt
from sqlalchemy_multitenant import (
    ConfigurationError,
    InvalidTenantIdError,
    Migrations,
    Migrator,
    NoTenantError,
    Schemas,
    TenantBusyError,
    TenantCollisionError,
    TenantConfig,
    TenantManager,
    TenantNotFoundError,
)
from sqlalchemy_multitenant.catalog.table import lookup_sql
from sqlalchemy_multitenant.engines.psycopg import ScopedConnection
from sqlalchemy_multitenant.isolation.scope import SCOPE_OPTION
from sqlalchemy_multitenant.migrations.batch import lock_key
from tests.conftest import MakeConfig, MakeHarness
from tests.harness import Harness
from tests.models import SharedBase, TenantBase, User
from tests.proxies import pgbouncer


def names(connection: Connection) -> list[str]:
    return list(connection.execute(text("SELECT name FROM users ORDER BY name")).scalars())


@pytest.fixture(autouse=True)
def rows(plain: Engine) -> None:
    with plain.begin() as connection:
        connection.exec_driver_sql("INSERT INTO tenant_a.users (name, mood) VALUES ('ada', 'HAPPY')")
        connection.exec_driver_sql("INSERT INTO tenant_b.users (name, mood) VALUES ('bob', 'GRUMPY')")


def run(plain: Engine, *statements: str) -> None:
    with plain.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def leave_behind(harness: Harness, *statements: str) -> None:
    """Run statements as tenant a, commit, and give the connection back."""

    def body(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement))
        connection.commit()

    harness.connection("a", body)


@pytest.fixture
def role(admin: Engine, plain: Engine) -> Iterator[str]:
    """A role that may log in, and nothing else."""
    name = f"role_{secrets.token_hex(6)}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN")
    yield name
    run(plain, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


# -- what a user of a connection leaves behind -------------------------------------------------------


def test_a_cursor_with_hold_and_a_listener_do_not_survive(harness: Harness) -> None:
    leave_behind(harness, "DECLARE theirs CURSOR WITH HOLD FOR SELECT name FROM users", "LISTEN theirs")
    channels = text("SELECT pg_listening_channels()")
    assert harness.connection("b", lambda c: c.scalars(channels).all()) == []
    with pytest.raises(DBAPIError, match="theirs"):
        harness.connection("b", lambda c: c.execute(text("FETCH ALL FROM theirs")).all())


def test_the_clean_up_does_not_wait_for_a_safe_snapshot(harness: Harness, plain: Engine) -> None:
    modes = "ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE"
    leave_behind(harness, f"SET SESSION CHARACTERISTICS AS TRANSACTION {modes}")
    done: list[list[str]] = []
    with plain.connect().execution_options(isolation_level="SERIALIZABLE") as busy:
        busy.exec_driver_sql("UPDATE tenant_a.users SET name = name")
        thread = threading.Thread(target=lambda: done.append(harness.connection("b", names)), daemon=True)
        thread.start()
        thread.join(10)
        assert done == [["bob"]]


def test_the_session_itself_leads_nowhere(harness: Harness, plain: Engine) -> None:
    run(plain, "CREATE TABLE public.precious AS SELECT 1")

    def body(connection: Connection) -> None:
        connection.execute(text("RESET ALL"))
        connection.execute(text("SELECT * FROM precious"))

    with pytest.raises(DBAPIError, match="precious"):
        harness.connection("a", body)


@pytest.mark.parametrize("look_up", [False, True])
def test_a_role_left_by_another_client_of_a_pooler_within_one_checkout(
    url: URL, make_config: MakeConfig, role: str, plain: Engine, look_up: bool
) -> None:
    with pgbouncer(url) as pooled, TenantManager(make_config(url=pooled)) as manager:
        other = create_engine(pooled, connect_args={"prepare_threshold": None})
        with manager.get_db("a").connect() as connection:
            assert names(connection) == ["ada"]
            connection.commit()
            if look_up:
                run(plain, "UPDATE multitenant_tenants SET status = 'suspended' WHERE id = 'b'")
            with other.connect() as their:
                their.exec_driver_sql(f"SET ROLE {role}")
                their.commit()
            assert names(connection) == ["ada"]
            connection.commit()
        other.dispose()


def test_the_scope_that_a_connection_was_given_serves_one_transaction(tenants: TenantManager) -> None:
    with tenants.get_db("a").connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.commit()
        raw = cast("ScopedConnection", connection.connection.driver_connection)
        with pytest.raises(NoTenantError):
            raw.begin_scoped()


def test_the_scope_that_a_connection_was_given_ends_with_its_checkout(make_config: MakeConfig) -> None:
    with TenantManager(make_config(pool_size=1)) as manager:
        with manager.get_db("a").connect() as connection:
            raw = cast("ScopedConnection", connection.connection.driver_connection)
            raw.bind(connection.get_execution_options()[SCOPE_OPTION])
        fairy = manager.get_db("b").engine.raw_connection()
        try:
            with pytest.raises(NoTenantError):
                cast("ScopedConnection", fairy.driver_connection).begin_scoped()
        finally:
            fairy.close()


# -- changes of the catalog --------------------------------------------------------------------------


def test_a_move_while_the_old_schema_stays(harness: Harness, plain: Engine) -> None:
    assert harness.connection("a", names) == ["ada"]
    run(
        plain,
        "CREATE SCHEMA moved",
        "CREATE TABLE moved.users AS SELECT 'moved' AS name",
        "UPDATE multitenant_tenants SET schema_name = 'moved' WHERE id = 'a'",
    )
    assert harness.connection("a", names) == ["moved"]


@pytest.mark.parametrize(
    "change",
    [
        "TRUNCATE multitenant_tenants",
        "UPDATE multitenant_tenants SET id = 'z' WHERE id = 'a'",
        "UPDATE multitenant_tenants SET status = 'dropped' WHERE id = 'a'",
    ],
)
def test_who_is_gone_from_the_catalog_is_refused_though_the_schema_stays(
    harness: Harness, plain: Engine, change: str
) -> None:
    assert harness.connection("a", names) == ["ada"]
    run(plain, change)
    with pytest.raises(TenantNotFoundError):
        harness.connection("a", names)


def test_a_lost_epoch_is_told(harness: Harness, plain: Engine) -> None:
    with plain.begin() as connection:
        epoch = connection.scalar(
            text("SELECT relname FROM pg_class WHERE relkind = 'c' AND relname LIKE 'multitenant_epoch_%'")
        )
        connection.exec_driver_sql(f"DROP TYPE {epoch}")
    with pytest.raises(TenantNotFoundError, match="damaged"):
        harness.connection("a", names)


def test_looking_a_tenant_up_does_not_read_all_relations(plain: Engine) -> None:
    """There are as many of them as there are tenants, several times over."""
    with plain.connect() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        lookup = f"EXPLAIN {lookup_sql('public', 'a')}"
        plan = "\n".join(connection.execute(text(lookup)).scalars())
    assert "Index Cond: ((relname >= 'multitenant_epoch_'" in plan
    assert "Seq Scan" not in plan


def test_who_may_change_the_catalog_and_nothing_else_changes_the_epoch(
    harness: Harness, plain: Engine, role: str
) -> None:
    assert harness.connection("a", names) == ["ada"]
    run(
        plain,
        f"GRANT UPDATE, SELECT ON multitenant_tenants TO {role}",
        f"SET LOCAL ROLE {role}",
        "UPDATE multitenant_tenants SET status = 'suspended' WHERE id = 'a'",
    )
    with pytest.raises(mt.TenantSuspendedError):
        harness.connection("a", names)


def test_what_is_dropped_cannot_be_dropped_again(tenants: TenantManager, plain: Engine) -> None:
    run(plain, "UPDATE multitenant_tenants SET status = 'dropped' WHERE id = 'a'")
    with pytest.raises(TenantNotFoundError):
        tenants.drop_tenant("a")
    with plain.connect() as connection:
        assert connection.scalar(text("SELECT to_regnamespace('tenant_a') IS NOT NULL"))


# -- schemas that are no tenant's --------------------------------------------------------------------


def with_extra(url: URL) -> TenantManager:
    schemas = Schemas(tenant=TenantBase, shared=SharedBase, extra_search_path=["ext"])
    return TenantManager(TenantConfig(connection=mt.Connection(url=url), schemas=schemas))


@pytest.mark.parametrize(
    "ddl", ["CREATE TABLE ext.users (id int)", "CREATE VIEW public.users AS SELECT 1 AS id"]
)
def test_every_kind_of_shadow_is_refused(url: URL, plain: Engine, ddl: str) -> None:
    run(plain, "CREATE SCHEMA ext", ddl)
    with with_extra(url) as manager, pytest.raises(ConfigurationError, match="users"):
        manager.get_db("a").scalar(text("SELECT 1"))


def test_a_record_that_names_an_extra_schema_is_refused(url: URL, plain: Engine) -> None:
    run(plain, "CREATE SCHEMA ext", "UPDATE multitenant_tenants SET schema_name = 'ext' WHERE id = 'a'")
    with with_extra(url) as manager, pytest.raises(InvalidTenantIdError, match="reserved"):
        manager.get_db("a").scalar(text("SELECT 1"))


def test_a_new_tenant_in_an_extra_schema_is_refused(url: URL) -> None:
    with with_extra(url) as manager, pytest.raises(InvalidTenantIdError, match="reserved"):
        manager.create_tenant("new", schema="ext")


# -- without a catalog -------------------------------------------------------------------------------


def folded(tenant: str) -> str:
    return "tenant_" + tenant.lower().replace("-", "_")


def test_a_schema_that_no_listed_id_has(make_config: MakeConfig, plain: Engine) -> None:
    run(plain, "CREATE SCHEMA tenant_zz")
    config = make_config(schema_name=folded, migrations=Migrations(discover=lambda: ["a"]))
    with TenantManager(config) as manager, pytest.raises(TenantNotFoundError, match="discover"):
        manager.get_db("zz").scalar(text("SELECT 1"))


def test_a_listed_id_has_the_first_claim_even_before_its_schema_is_made(make_config: MakeConfig) -> None:
    config = make_config(schema_name=folded, migrations=Migrations(discover=lambda: ["x-y"]))
    with TenantManager(config) as manager, pytest.raises(TenantCollisionError):
        manager.create_tenant("x_y")


def test_discovered_schemas_need_usage(make_harness_: MakeHarness, role: str, url: URL) -> None:
    harness = make_harness_(
        pool_size=1, url=url.set(username=role), migrations=Migrations(discover=lambda: ["a"])
    )
    with pytest.raises(ConfigurationError, match="GRANT USAGE"):
        harness.connection("a", lambda c: c.scalar(text("SELECT 1")))


def test_a_database_without_a_catalog_says_what_to_do(empty_url: URL, make_harness_: MakeHarness) -> None:
    harness = make_harness_(url=empty_url)
    with pytest.raises(TenantNotFoundError, match="no catalog of tenants yet"):
        harness.connection("a", lambda c: c.scalar(text("SELECT 1")))


# -- migrations --------------------------------------------------------------------------------------


def test_a_drop_keeps_off_a_migration(tenants: TenantManager, plain: Engine) -> None:
    with plain.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key("tenant_a")})
        with pytest.raises(TenantBusyError, match="migrated"):
            tenants.drop_tenant("a")
    assert tenants.get_db("a").scalars(select(User.name)).all() == ["ada"]


def test_statement_timeout_holds(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    (tmp_path / "script.py.mako").write_text("")
    (tmp_path / "versions/0001_slow.py").write_text(
        "from alembic import op\nrevision = '0001'\ndown_revision = None\n"
        "def upgrade():\n    op.execute('SELECT pg_sleep(3)')\n"
    )
    config = make_config(migrations=Migrations(tenant_dir=tmp_path, statement_timeout_s=0.2))
    with Migrator(config) as migrator:
        assert "timeout" in str(migrator.migrate_tenants(["a"]).details[0].error)
