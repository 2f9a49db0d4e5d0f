"""Creating many tenants: from snapshots, from spares, with their first rows; and archiving them."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import (
    AsyncTenantManager,
    ConfigurationError,
    InvalidTenantIdError,
    MigrationError,
    Migrator,
    ProvisioningError,
    Schemas,
    SpareStock,
    TenantBusyError,
    TenantConfig,
    TenantExistsError,
    TenantManager,
    TenantSuspendedError,
)
from sqlalchemy_multitenant.engines import admin
from sqlalchemy_multitenant.engines.pipeline import send_all
from sqlalchemy_multitenant.migrations import batch
from sqlalchemy_multitenant.migrations.ledger import Ledger
from sqlalchemy_multitenant.migrations.plan import MigrationPlan, Segment, SegmentKind, Statement
from sqlalchemy_multitenant.naming import TenantId
from sqlalchemy_multitenant.provisioning import builder, snapshot
from sqlalchemy_multitenant.provisioning.archive import write_archive
from sqlalchemy_multitenant.provisioning.pg_dump import run_pg_dump
from sqlalchemy_multitenant.provisioning.provisioner import Provisioner
from tests.integration.fleet import FIRST, Write, restore, rows
from tests.integration.test_verify import EVERYTHING

SLOW = 'op.get_bind().execute(sa.text("INSERT INTO items (name) VALUES (:n)"), {"n": "first"})'
"""A revision that cannot be compiled, so that its history is worth a snapshot."""


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each attempt at a snapshot gave one."""
    taken: list[bool] = []

    def take(*args: object) -> object:
        found = snapshot.take_snapshot(*args)  # type: ignore[arg-type]
        taken.append(found is not None)
        return found

    monkeypatch.setattr(builder, "take_snapshot", take)
    return taken


def schemas(db: Engine) -> set[str]:
    with db.connect() as connection:
        return set(connection.scalars(text("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^info'")))


# -- snapshots ---------------------------------------------------------------------------------------


def test_what_a_snapshot_makes_is_what_the_revisions_make(
    config: TenantConfig, write: Write, db: Engine, snapshots: list[bool]
) -> None:
    write("0001", None, EVERYTHING)
    write(
        "0002",
        "0001",
        """
        insert = sa.text("INSERT INTO users (name, mood) VALUES (:n, 'it''s')")
        op.get_bind().execute(insert, {"n": "a\\tb;%(x)s$$"})
        op.execute("INSERT INTO log SELECT 1, '2026-02-03'")
        op.execute("GRANT SELECT ON users TO PUBLIC")
        """,
    )
    names = [f"t{i}" for i in range(6)]
    with TenantManager(config) as manager:
        manager.create_tenant("replayed")
        report = manager.create_tenants(names, concurrency=3)
        assert [record.id for record in report.created] == names
        assert (report.existing, dict(report.failures)) == ((), {})
        odd = manager.create_tenant("odd", schema='tenant-100%-"odd"')
        assert odd.schema == 'tenant-100%-"odd"'
        manager.create_tenant("late")
    assert snapshots == [True]
    with Migrator(config) as migrator:
        assert [v.tenant for v in migrator.verify() if not v.ok] == []
        assert {s.state for s in migrator.status()} == {"ok"}
    for tenant in ("replayed", *names, "late"):
        assert rows(db, tenant, "SELECT name FROM users") == ["a\tb;%(x)s$$"]
        assert rows(db, tenant, "SELECT count(*) FROM log_2026") == [1]
        assert rows(db, tenant, "INSERT INTO users (name) VALUES ('next') RETURNING id") == [2]
        assert rows(db, tenant, "SELECT nextval('numbers') > 1") == [True]
        assert rows(db, tenant, "SELECT has_table_privilege('public', 'users', 'SELECT')") == [True]
    assert {name for name in schemas(db) if name.startswith("multitenant_")} == set()


@pytest.mark.parametrize(
    "insert",
    [
        "op.execute('INSERT INTO items (name) SELECT gen_random_uuid()::text')",
        "op.execute('INSERT INTO items (name) SELECT clock_timestamp()::text')",
        "import uuid; op.bulk_insert(sa.table('items', sa.column('name')), [{'name': str(uuid.uuid4())}])",
    ],
    ids=["key", "time", "python"],
)
def test_what_is_to_be_each_tenants_own_is_in_no_snapshot(
    config: TenantConfig, write: Write, db: Engine, snapshots: list[bool], insert: str
) -> None:
    write("0001", None, FIRST)
    write("0002", "0001", f"{SLOW}\n{insert}")
    names = [f"t{i}" for i in range(4)]
    with TenantManager(config) as manager:
        assert len(manager.create_tenants(names).created) == 4
    assert True not in snapshots
    values = {str(value) for name in names for value in rows(db, name, "SELECT name FROM items")}
    assert len(values) == 5  # `first`, and one of each


def test_what_depends_on_shared_rows_is_in_no_snapshot(
    config: TenantConfig, write: Write, db: Engine, snapshots: list[bool]
) -> None:
    with db.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE plans AS SELECT 'basic' AS name")
    write("0001", None, FIRST)
    write("0002", "0001", f"{SLOW}\nop.execute('INSERT INTO items (name) SELECT name FROM plans')")
    with TenantManager(config) as manager:
        manager.create_tenants(["a", "b", "c"])
        with db.begin() as connection:
            connection.exec_driver_sql("UPDATE plans SET name = 'better'")
        manager.create_tenant("d")
    assert snapshots == [False]
    assert rows(db, "a", "SELECT name FROM items ORDER BY id") == ["first", "basic"]
    assert rows(db, "d", "SELECT name FROM items ORDER BY id") == ["first", "better"]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO public.registry SELECT relnamespace::regnamespace::text FROM pg_class "
        "WHERE oid = 'items'::regclass",
        "UPDATE public.registry SET name = name || '+'",
        "INSERT INTO items (name) SELECT to_char(now(), 'YYYY-MM-DD')",
        "ALTER PUBLICATION all_items ADD TABLE items",
        "INSERT INTO items (name) SELECT 'of a tenant' WHERE current_schema() ~ '^tenant'",
    ],
)
def test_what_lies_outside_is_done_by_and_for_each_tenant(
    config: TenantConfig, write: Write, db: Engine, snapshots: list[bool], sql: str
) -> None:
    with db.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE registry (name text)")
        connection.exec_driver_sql("INSERT INTO registry VALUES ('start')")
        connection.exec_driver_sql("CREATE PUBLICATION all_items")
    write("0001", None, FIRST)
    write("0002", "0001", f"{SLOW}\nop.execute({sql!r})")
    with TenantManager(config) as manager:
        manager.create_tenants(["a", "b", "c"])
        manager.create_tenant("d")
    assert True not in snapshots
    with db.connect() as connection:
        registry = sorted(connection.scalars(text("SELECT name FROM registry")))
    assert registry in (["start"], ["start++++"], ["start", *(f"tenant_{t}" for t in "abcd")])


def test_rows_that_look_like_what_a_dump_has_around_them(
    config: TenantConfig, write: Write, db: Engine, snapshots: list[bool]
) -> None:
    lines = [
        "Dear x,",
        "",
        "-- ",
        "--sig",
        "SET lock_timeout = 3;",
        r"\restrict abc",
        r"\unrestrict abc",
        "end",
    ]
    letter = "\n".join(lines)
    insert = f"sa.text('INSERT INTO items (name) VALUES (:n)'), {{'n': {letter!r}}}"
    write("0001", None, FIRST)
    write("0002", "0001", f"{SLOW}\nop.get_bind().execute({insert})")
    with TenantManager(config) as manager:
        manager.create_tenants(["a", "b", "c"])
    assert snapshots == [True]
    for tenant in "abc":
        assert rows(db, tenant, "SELECT name FROM items ORDER BY id") == ["first", letter]


def test_privileges_and_owners_are_those_that_the_revisions_give(
    config: TenantConfig, write: Write, db: Engine, admin: Engine, snapshots: list[bool]
) -> None:
    role = f"role_{secrets.token_hex(6)}"
    with db.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role}")
        connection.exec_driver_sql(f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role}")
    try:
        write("0001", None, FIRST)
        write(
            "0002",
            "0001",
            f"""
            {SLOW}
            op.execute("CREATE TABLE secrets (id int)")
            op.execute("REVOKE ALL ON secrets FROM {role}")
            op.execute("CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'")
            own = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'items'::regclass"
            schema = op.get_bind().scalar(sa.text(own))
            op.execute(f"GRANT CREATE ON SCHEMA {{schema}} TO {role}")
            op.execute("ALTER FUNCTION f() OWNER TO {role}")
            """,
        )
        with TenantManager(config) as manager:
            manager.create_tenants(["a", "b", "c"])
        for tenant in "abc":
            assert rows(db, tenant, f"SELECT has_table_privilege('{role}', 'secrets', 'SELECT')") == [False]
            assert rows(db, tenant, f"SELECT has_table_privilege('{role}', 'items', 'SELECT')") == [True]
            assert rows(
                db,
                tenant,
                "SELECT proowner::regrole::text FROM pg_proc WHERE proname = 'f'"
                f" AND pronamespace = 'tenant_{tenant}'::regnamespace",
            ) == [role]
    finally:
        with db.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role} CASCADE")
            connection.exec_driver_sql(f"DROP ROLE {role}")


def test_a_seed_runs_under_the_same_settings_whatever_made_the_schema(
    config: TenantConfig, write: Write, db: Engine, snapshots: list[bool]
) -> None:
    write("0001", None, FIRST)
    write("0002", "0001", SLOW)
    seen: list[tuple[str, ...]] = []

    def seed(session: Session) -> None:
        names = (
            "row_security",
            "check_function_bodies",
            "client_min_messages",
            "search_path",
            "lock_timeout",
        )
        seen.append(tuple(str(session.scalar(text(f"SHOW {name}"))) for name in names))

    with TenantManager(config) as manager:
        manager.create_tenant("a", seed=seed)
        manager.create_tenant("b")
        manager.create_tenant("c", seed=seed)
    assert snapshots == [True]
    (replayed, dumped) = (tuple(v.replace("tenant_a", "x").replace("tenant_c", "x") for v in s) for s in seen)
    assert replayed == dumped


def test_a_tenant_that_exists_does_not_end_a_snapshot(
    config: TenantConfig, write: Write, db: Engine, snapshots: list[bool]
) -> None:
    write("0001", None, FIRST)
    write("0002", "0001", SLOW)
    with db.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA tenant_d")
    with TenantManager(config) as manager:
        manager.create_tenants(["a", "b", "c"])
        with pytest.raises(TenantExistsError):
            manager.create_tenant("d")
        manager.create_tenant("e")
        assert manager._provisioner._builder._snapshot is not None
    assert snapshots == [True]


def test_a_snapshot_that_does_not_work_any_more_is_given_up(
    config: TenantConfig, write: Write, db: Engine, snapshots: list[bool]
) -> None:
    with db.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE plans (id int PRIMARY KEY)")
    write("0001", None, FIRST)
    references = """
if op.get_bind().scalar(sa.text("SELECT to_regclass('plans')")):
    op.add_column('items', sa.Column('plan', sa.Integer, sa.ForeignKey('plans.id')))
"""
    write(
        "0002",
        "0001",
        SLOW + references,
    )
    with TenantManager(config) as manager:
        manager.create_tenants(["a", "b", "c"])
        assert snapshots == [True]
        with db.begin() as connection:
            connection.exec_driver_sql("DROP TABLE plans CASCADE")
        manager.create_tenant("d")
        assert manager.get_db("d").scalars(text("SELECT name FROM items")).all() == ["first"]
    assert snapshots == [True]


def test_a_short_history_needs_no_snapshot(config: TenantConfig, write: Write, snapshots: list[bool]) -> None:
    write("0001", None, FIRST)
    with TenantManager(config) as manager:
        manager.create_tenants([f"t{i}" for i in range(5)])
    assert snapshots == []


def test_reference_schemas_of_the_killed_are_cleared(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    write("0002", "0001", SLOW)
    with db.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "multitenant_reference-1000000000-abcdabcd"')
        connection.exec_driver_sql('CREATE SCHEMA "multitenant_reference-9999999999-abcdabcd"')
    with TenantManager(config) as manager:
        manager.create_tenants(["a", "b", "c"])
    left = {name for name in schemas(db) if name.startswith("multitenant_")}
    assert left == {"multitenant_reference-9999999999-abcdabcd"}


# -- spares ------------------------------------------------------------------------------------------


def test_a_spare_becomes_a_tenant(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, EVERYTHING)
    with TenantManager(config) as manager:
        stock = manager.keep_spares(3)
        assert (stock.ready, stock.made, stock.discarded) == (3, 3, 0)
        assert (manager.keep_spares(3).made, list(manager.list_tenants())) == (0, [])
        with db.connect() as connection:
            oids = set(
                connection.scalars(text("SELECT oid FROM pg_namespace WHERE nspname ~ '^multitenant_spare'"))
            )
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(manager.create_tenant, "abcde"))
        with db.connect() as connection:
            made = connection.execute(
                text("SELECT nspname, oid FROM pg_namespace WHERE nspname ~ '^tenant_'")
            )
            assert len([oid for _, oid in made if oid in oids]) == 3
        assert manager.keep_spares(2).ready == 2
        assert manager.keep_spares(0).discarded == 2
        for tenant in "abcde":
            with manager.get_db(tenant).begin() as session:
                session.execute(text("INSERT INTO users (name) VALUES (current_schema())"))
            assert rows(db, tenant, "SELECT name FROM users") == [f"tenant_{tenant}"]
    with Migrator(config) as migrator:
        assert [v.tenant for v in migrator.verify() if not v.ok] == []


def test_a_spare_of_older_revisions_is_not_used(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    with TenantManager(config) as manager:
        manager.keep_spares(2)
    write("0002", "0001", 'op.add_column("items", sa.Column("late", sa.Text))')
    with TenantManager(config) as manager:
        manager.create_tenant("a")
        assert rows(db, "a", "SELECT count(late) FROM items") == [0]
        stock = manager.keep_spares(2)
        assert (stock.ready, stock.made, stock.discarded) == (2, 2, 2)


def test_a_spare_that_is_gone_is_passed_over(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    with TenantManager(config) as manager:
        manager.keep_spares(1)
        with db.begin() as connection:
            (name,) = connection.scalars(text("SELECT schema_name FROM multitenant_spares"))
            connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
        manager.create_tenant("a")
        assert rows(db, "a", "SELECT count(*) FROM items") == [0]


def test_a_failed_creation_gives_its_spare_back(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    with TenantManager(config) as manager:
        manager.keep_spares(1)
        with pytest.raises(ProvisioningError, match="no seed"):
            manager.create_tenant("a", seed=fail)
        assert manager.keep_spares(1).made == 0
        manager.create_tenant("a")


OWN_NAME = "(SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'items'::regclass)"


@pytest.mark.parametrize(
    "sql",
    [
        f"INSERT INTO items (name) SELECT {OWN_NAME}",
        f"INSERT INTO items (name) SELECT replace({OWN_NAME}, 'tenant_', '')",
        f"DO $do$ BEGIN EXECUTE format('CREATE FUNCTION f() RETURNS text LANGUAGE sql AS ''SELECT name FROM "
        f"%I.items''', {OWN_NAME}); END $do$",
        f"DO $do$ BEGIN EXECUTE format('CREATE SEQUENCE %I', {OWN_NAME} || '_seq'); END $do$",
        f"DO $do$ BEGIN EXECUTE format('COMMENT ON COLUMN items.name IS %L', {OWN_NAME}); END $do$",
        "INSERT INTO items (name) VALUES (current_schema())",
        "INSERT INTO items (name) SELECT name FROM public.plans",
        "INSERT INTO public.plans VALUES ('new')",
        "UPDATE public.plans SET name = name || '+'",
        "INSERT INTO items (name) VALUES (current_date::text)",
    ],
)
def test_what_may_be_another_for_another_tenant_cannot_be_made_ahead(
    config: TenantConfig, write: Write, db: Engine, sql: str
) -> None:
    with db.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE plans AS SELECT 'basic' AS name")
    write("0001", None, FIRST)
    write("0002", "0001", f"op.execute({sql!r})")
    with TenantManager(config) as manager:
        with pytest.raises(MigrationError, match="made ahead"):
            manager.keep_spares(1)
        with db.connect() as connection:
            assert connection.scalars(text("SELECT name FROM plans")).all() == ["basic"]
        manager.create_tenant("a")
    assert {name for name in schemas(db) if name.startswith("multitenant_")} == set()


def test_two_who_keep_spares_take_turns(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    with TenantManager(config) as one, TenantManager(config) as two, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda manager: manager.keep_spares(3), (one, two)))
        assert one.keep_spares(3) == SpareStock(ready=3)


def test_the_shared_schema_may_be_missing_where_there_is_no_catalog(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    schemas_ = Schemas(tenant=config.schemas.tenant, shared_schema="common")
    migrations = replace(config.migrations, discover=lambda: ["a"])
    elsewhere = replace(config, schemas=schemas_, migrations=migrations)
    with TenantManager(elsewhere) as manager:
        assert manager.keep_spares(1).ready == 1
        manager.create_tenant("a")
        assert manager.keep_spares(0).discarded == 0
    write("0002", "0001", 'op.add_column("items", sa.Column("note", sa.Text))')
    with db.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA common CASCADE")
    with Migrator(elsewhere) as migrator:
        assert migrator.migrate_all().succeeded == 1


def test_a_changed_search_path_makes_other_spares(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    with db.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA extra")
    other = replace(config, schemas=replace(config.schemas, extra_search_path=["extra"]))
    with TenantManager(config) as manager, TenantManager(other) as elsewhere:
        manager.keep_spares(2)
        assert elsewhere.keep_spares(2).discarded == 2


# -- seeds -------------------------------------------------------------------------------------------


def fail(_session: Session) -> None:
    raise RuntimeError("no seed")


def test_the_first_rows_come_with_the_tenant(
    config: TenantConfig, write: Write, db: Engine, tmp_path: Path
) -> None:
    write("0001", None, FIRST)
    file = tmp_path / "seed.sql"
    file.write_text("INSERT INTO items (name) VALUES ('100%');\nINSERT INTO items (name) VALUES ('a;b');")

    def seed(session: Session) -> None:
        session.execute(text("INSERT INTO items (name) SELECT current_schema()"))
        session.commit()  # ends but a savepoint

    with TenantManager(config) as manager:
        manager.create_tenant("a", seed=seed)
        manager.create_tenant("b", seed=file)
        manager.create_tenants(["c", "d"], seed=seed)
        assert rows(db, "a", "SELECT name FROM items") == ["tenant_a"]
        assert rows(db, "b", "SELECT name FROM items ORDER BY id") == ["100%", "a;b"]
        assert rows(db, "d", "SELECT name FROM items") == ["tenant_d"]

        def fail_late(session: Session) -> None:
            seed(session)
            session.execute(text("SELECT 1/0"))

        for wrong, says in ((fail, "RuntimeError: no seed"), (fail_late, "division by zero")):
            with pytest.raises(ProvisioningError, match=says):
                manager.create_tenant("e", seed=wrong)
        assert not manager.tenant_exists("e")
        assert "tenant_e" not in schemas(db)
        file.write_text("INSERT INTO nowhere VALUES (1)")
        with pytest.raises(ProvisioningError, match="nowhere"):
            manager.create_tenant("e", seed=file)
        file.write_text("COMMIT; SELECT 1")
        with pytest.raises(ConfigurationError, match="COMMIT"):
            manager.create_tenant("e", seed=file)
        with pytest.raises(ConfigurationError, match="cannot be read"):
            manager.create_tenant("e", seed=tmp_path / "gone.sql")
        with pytest.raises(ConfigurationError, match="callable"):
            manager.create_tenant("e", seed="INSERT ...")  # type: ignore[arg-type]


def test_a_seed_that_ends_the_transaction_is_told(config: TenantConfig, write: Write, tmp_path: Path) -> None:
    write("0001", None, FIRST)

    def seed(session: Session) -> None:
        session.connection().get_transaction().commit()
        session.connection().exec_driver_sql("COMMIT")
        raise RuntimeError("and now this")

    file = tmp_path / "bom.sql"
    file.write_text("INSERT INTO items (name) VALUES ('x')", encoding="utf-8-sig")
    with TenantManager(config) as manager:
        with pytest.raises(ProvisioningError, match="ended the transaction by itself"):
            manager.create_tenant("a", seed=seed)
        manager.create_tenant("b", seed=file)


# -- many --------------------------------------------------------------------------------------------


def test_many_are_created_and_the_rest_after_an_interruption(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    names = [f"t{i}" for i in range(8)]
    seen: list[tuple[str, str]] = []
    with TenantManager(config) as manager:
        manager.create_tenant("t3")
        with db.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA tenant_t5")
        report = manager.create_tenants(
            [*names, "t0"], on_progress=lambda tenant, error: seen.append((tenant, type(error).__name__))
        )
        assert [record.id for record in report.created] == ["t0", "t1", "t2", "t4", "t6", "t7"]
        assert report.existing == ("t3",)
        assert {tenant: type(error) for tenant, error in report.failures.items()} == {"t5": TenantExistsError}
        assert sorted(seen) == [(n, "TenantExistsError" if n == "t5" else "NoneType") for n in names]
        with pytest.raises(InvalidTenantIdError):
            manager.create_tenants(["new", "not an id"])
        with pytest.raises(ConfigurationError, match="concurrency"):
            manager.create_tenants(["new"], concurrency=0)
        assert not manager.tenant_exists("new")
        assert manager.create_tenants([]).created == ()
    with db.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA tenant_t5")

    async def again() -> None:
        async with AsyncTenantManager(config) as manager:
            report = await manager.create_tenants(names)
            assert ([r.id for r in report.created], len(report.existing)) == (["t5"], 7)
            assert (await manager.keep_spares(1)).ready == 1

    asyncio.run(again())


LEAKS = """
op.execute("DO $$ BEGIN IF current_setting('app.of', true) <> '' THEN RAISE 'of another'; END IF; END $$")
op.execute("SET app.of = 'one'")
op.execute("CREATE TEMPORARY TABLE mine (id int)")
"""


def test_what_a_revision_sets_is_gone_for_the_next_tenant(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    names = ["a", "b", "c"]
    with TenantManager(config) as manager:
        assert len(manager.create_tenants(names, concurrency=1).created) == 3
    write("0002", "0001", LEAKS)
    with Migrator(config) as migrator:
        assert migrator.migrate_all(concurrency=1).succeeded == 3
    with TenantManager(config) as manager:
        report = manager.create_tenants(["d", "e", "f"], concurrency=1)
        assert (len(report.created), dict(report.failures)) == (3, {})


@pytest.mark.parametrize(
    ("sql", "lasts"),
    [
        ("CREATE TABLE a (id serial PRIMARY KEY, at timestamptz DEFAULT now())", False),
        ("  alter table a add column b numeric(10, 2)", False),
        ("CREATE UNIQUE INDEX i ON a (b, c)", False),
        ("CREATE INDEX i ON a (f(b))", True),
        ("alter table a add column b int generated by default as identity", True),
        ("ALTER TABLE a ADD COLUMN b text DEFAULT f()", True),
        ("CREATE TABLE pg_temp.a (id int)", True),
        ("CREATE TABLE a AS TABLE b", True),
        ("CREATE EXTENSION x", True),
        ("COMMENT ON TABLE a IS 'x'", False),
        ("CREATE TEMP TABLE a (id int)", True),
        ("CREATE TABLE a AS SELECT set_config('app.of', 'one', false)", True),
        ("SET app.of = 'one'", True),
        ("DO $$ BEGIN SET app.of = 'one'; END $$", True),
        ("INSERT INTO a VALUES (f())", True),
        ("SELECT pg_advisory_lock(1)", True),
        ("-- why\nCREATE TABLE a (id int)", True),
    ],
)
def test_which_statements_may_change_the_session(sql: str, lasts: bool) -> None:
    segments = (Segment(SegmentKind.COMPILED, (Statement(sql, "0001"), Statement("INSERT INTO versions"))),)
    assert MigrationPlan((), ("0001",), (), segments).spares_session is not lasts


def test_a_new_tenant_takes_one_message(
    config: TenantConfig, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0001", None, FIRST)
    sent: list[int] = []

    def send(driver: Any, messages: Any) -> Any:
        sent.append(len(messages))
        return send_all(driver, messages)

    with TenantManager(config) as manager:
        manager.create_tenant("first")
        monkeypatch.setattr(batch, "send_all", send)
        monkeypatch.setattr(admin, "send_all", send)
        assert len(manager.create_tenants(["a", "b"], concurrency=1).created) == 2
    alone = [count for count in sent if count == 1]  # cleaning up after what asks beforehand, and at the end
    assert len(sent) - len(alone) == 2
    assert len(alone) <= 5


@pytest.mark.parametrize("is_sent", [False, True])
def test_a_connection_that_is_lost_while_a_tenant_is_created(
    config: TenantConfig, write: Write, monkeypatch: pytest.MonkeyPatch, is_sent: bool
) -> None:
    """Before the message, or when the server has done all that it says."""
    write("0001", None, FIRST)

    def lose(driver: Any, messages: Any) -> Any:
        if b"COMMIT" not in messages:
            return send_all(driver, messages)
        if is_sent:
            send_all(driver, messages)
        with socket.socket(fileno=os.dup(driver.fileno())) as its:
            its.shutdown(socket.SHUT_RDWR)
        return send_all(driver, messages)

    with TenantManager(config) as manager:
        manager.create_tenant("first")
        with monkeypatch.context() as patched:
            patched.setattr(batch, "send_all", lose)
            with pytest.raises(ProvisioningError, match="not known whether it was created; create it again"):
                manager.create_tenant("a")
        assert manager.tenant_exists("a") is is_sent
        report = manager.create_tenants(["a"])
        assert (len(report.created), report.existing) == ((0, ("a",)) if is_sent else (1, ()))


@pytest.mark.parametrize("is_back", [False, True])
def test_a_server_that_forgot_what_it_had_not_written(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch, is_back: bool
) -> None:
    """It is lost before the last commit, which alone waits for the disk; or it has come up again by then."""
    write("0001", None, FIRST)
    wait = Provisioner._wait_for_disk

    def lose(self: Provisioner, records: Any) -> Any:
        if is_back:
            with db.begin() as other:
                other.exec_driver_sql("DROP SCHEMA tenant_a CASCADE")
                other.exec_driver_sql("DELETE FROM multitenant_tenants WHERE id = 'a'")
            return wait(self, records)

        @event.listens_for(self.engine, "before_cursor_execute", once=True)
        def end(connection: Connection, *_: object) -> None:
            with db.begin() as other:
                pid = batch.driver_of(connection).info.backend_pid
                other.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")

        return wait(self, records)

    with TenantManager(config) as manager:
        manager.create_tenant("old")
        with monkeypatch.context() as patched:
            patched.setattr(Provisioner, "_wait_for_disk", lose)
            report = manager.create_tenants(["a", "b", "old"])
        assert ([r.id for r in report.created], report.existing) == (["b"] if is_back else [], ("old",))
        with pytest.raises(ProvisioningError, match="create it again"):
            raise report.failures[TenantId("a")]
        again = manager.create_tenants(["a", "b"])
        assert (len(again.created), len(again.existing)) == ((1, 1) if is_back else (0, 2))


def test_a_migration_that_the_server_forgot(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a restart may make it forget what was committed without a wait for the disk."""
    write("0001", None, FIRST)
    with TenantManager(config) as manager:
        manager.create_tenants(["a", "b"])
    write("0002", "0001", 'op.add_column("items", sa.Column("note", sa.Text))')
    find = Ledger.find_done

    def forget(self: Ledger, connection: Connection, run: int) -> dict[str, tuple[str, ...]]:
        with db.begin() as other:
            other.exec_driver_sql(
                f"DELETE FROM multitenant_run_results WHERE run_id = {run} AND tenant = 'a'"
            )
        return find(self, connection, run)

    monkeypatch.setattr(Ledger, "find_done", forget)
    with Migrator(config) as migrator:
        report = migrator.migrate_all()
        assert (report.succeeded, report.failed) == (1, 1)
        (lost,) = [detail for detail in report.details if detail.error is not None]
        assert lost.tenant == "a"
        assert "migrate it again" in str(lost.error)
        assert report.run is not None
        run, told = migrator.get_run(report.run)
        assert (run.state, run.succeeded, run.failed) == ("failed", 1, 1)
        assert [(row.tenant, row.state) for row in told] == [("a", "failed"), ("b", "done")]
        assert [member.id for member in migrator.find_members(only_failed=True)] == ["a"]


def test_what_is_not_the_catalogs_is_not_told_as_if_it_were(config: TenantConfig, write: Write) -> None:
    write(
        "0001",
        None,
        FIRST + "\nop.execute('ALTER TABLE items ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED')",
    )
    twice = "INSERT INTO items (id, name) VALUES (1, 'a'), (2, 'a')"
    with TenantManager(config) as manager:
        with pytest.raises(ProvisioningError, match=r"nothing was created.*duplicate key"):
            manager.create_tenant("a", seed=lambda session: session.execute(text(twice)))
        assert not manager.tenant_exists("a")
        with pytest.raises(ConfigurationError, match="metadata"):
            manager.create_tenant("a", metadata={"n": "\0"})
        with pytest.raises(ConfigurationError, match="metadata"):
            manager.create_tenant("a", metadata={"n": float("nan")})
        assert manager.create_tenant("a", metadata={"n": "\\u0000 é"}).metadata == {"n": "\\u0000 é"}


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_who_ends_the_transaction_is_named(config: TenantConfig, write: Write, db: Engine, end: str) -> None:
    write("0001", None, FIRST)
    with TenantManager(config) as manager:
        with pytest.raises(ProvisioningError) as caught:
            manager.create_tenant("a", seed=lambda session: session.execute(text(end)))
        assert ("ended the transaction by itself" in str(caught.value)) is manager.tenant_exists("a")
    write("0002", "0001", f"op.get_bind().exec_driver_sql('{end}')")
    write("0003", "0002", 'op.create_table("later", sa.Column("id", sa.Integer))')
    named = pytest.raises(ProvisioningError, match=r"0002.*ended the transaction by itself")
    with TenantManager(config) as manager, named:
        manager.create_tenant("b")
    with db.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('public.later') IS NULL"))


def test_creation_does_not_wait_for_others_without_end(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    quick = replace(config, migrations=replace(config.migrations, lock_timeout_s=0.05))
    with TenantManager(quick) as manager:
        manager.create_tenant("first")
        with db.connect() as other:
            other.exec_driver_sql("INSERT INTO multitenant_tenants (id, schema_name) VALUES ('a', 'x')")
            with pytest.raises(ProvisioningError, match="lock timeout"):
                manager.create_tenant("a")
            other.rollback()
        assert manager.create_tenant("a").id == "a"


# -- archives ----------------------------------------------------------------------------------------


def test_an_archive_brings_everything_back(
    config: TenantConfig, write: Write, db: Engine, tmp_path: Path
) -> None:
    write("0001", None, EVERYTHING)
    file = tmp_path / "b.dump"
    with TenantManager(config) as manager:
        for tenant in "ab":
            manager.create_tenant(tenant)
            with manager.get_db(tenant).begin() as session:
                session.execute(text("INSERT INTO users (name) VALUES (current_schema())"))
        manager.drop_tenant("b", archive=file)
        assert not manager.tenant_exists("b")
    assert "tenant_b" not in schemas(db)
    assert file.stat().st_mode & 0o077 == 0
    restore(db, file)
    assert rows(db, "b", "SELECT name FROM users") == ["tenant_b"]
    assert rows(db, "a", "SELECT name FROM users") == ["tenant_a"]


def test_what_cannot_be_archived_is_not_dropped(
    config: TenantConfig, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0001", None, FIRST)
    taken = tmp_path / "taken"
    taken.write_text("precious")
    with TenantManager(config) as manager:
        manager.create_tenant("a")
        for file in (taken, tmp_path / "no" / "folder"):
            with pytest.raises(ConfigurationError, match="archive"):
                manager.drop_tenant("a", archive=file)
        monkeypatch.setattr("sqlalchemy_multitenant.provisioning.pg_dump.find_bin_dir", lambda: tmp_path)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ProvisioningError, match="nothing was dropped: there is no pg_dump"):
            manager.drop_tenant("a", archive=tmp_path / "a.dump")
        fake = "#!/bin/sh\n[ $1 = --version ] && echo 'pg_dump (PostgreSQL) 99' || exit 3\n"
        (tmp_path / "pg_dump").write_text(fake)
        (tmp_path / "pg_dump").chmod(0o755)
        with pytest.raises(ProvisioningError, match="pg_dump failed"):
            manager.drop_tenant("a", archive=tmp_path / "a.dump")
        assert taken.read_text() == "precious"
        assert not (tmp_path / "a.dump").exists()
        assert manager.get_db("a").scalar(text("SELECT count(*) FROM items")) == 0


def test_an_archive_does_not_wait_behind_who_waits_for_it(
    config: TenantConfig, write: Write, db: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0001", None, FIRST)
    queued = threading.Event()
    threads: list[threading.Thread] = []

    def dump(*args: Any) -> str:
        threads.append(threading.Thread(target=truncate, daemon=True))
        threads[-1].start()
        queued.wait(5)
        time.sleep(0.3)
        return run_pg_dump(*args)

    def truncate() -> None:
        with db.begin() as connection:
            queued.set()
            connection.exec_driver_sql("TRUNCATE tenant_a.items")

    monkeypatch.setattr("sqlalchemy_multitenant.provisioning.archive.run_pg_dump", dump)
    with TenantManager(config) as manager:
        manager.create_tenant("a")
        with pytest.raises(TenantBusyError, match="nothing was dropped"):
            manager.drop_tenant("a", archive=tmp_path / "a.dump")
        assert manager.get_tenant("a").status.value == "active"
    threads[0].join(20)  # not into the end of the database


def test_nobody_writes_while_a_tenant_is_archived(
    config: TenantConfig, write: Write, db: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file holds what is dropped: whoever comes during the dump is refused, and does not wait."""
    write("0001", None, FIRST)
    dumping, go_on = threading.Event(), threading.Event()

    def slow(*args: object) -> None:
        write_archive(*args)  # type: ignore[arg-type]
        dumping.set()
        assert go_on.wait(20)

    monkeypatch.setattr("sqlalchemy_multitenant.provisioning.provisioner.write_archive", slow)
    file = tmp_path / "a.dump"
    with TenantManager(config) as manager, ThreadPoolExecutor(1) as pool:
        manager.create_tenant("a")
        busy = manager.get_db("a").connect()
        busy.execute(text("INSERT INTO items (name) VALUES ('before')"))
        with pytest.raises(TenantBusyError):  # an open transaction that has written
            manager.drop_tenant("a", archive=file)
        busy.commit()
        busy.close()
        dropping = pool.submit(manager.drop_tenant, "a", archive=file)
        assert dumping.wait(20)
        with pytest.raises(TenantSuspendedError), manager.get_db("a").begin() as session:
            session.execute(text("INSERT INTO items (name) VALUES ('after')"))
        go_on.set()
        dropping.result()
    restore(db, file)
    assert rows(db, "a", "SELECT name FROM items") == ["before"]


def test_tables_of_the_same_names_in_the_shared_schema_stay_what_they_are(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    """As where an application of one schema becomes one of many."""
    write("0001", None, FIRST + "\nop.execute(\"INSERT INTO items (name) VALUES ('own')\")")
    with db.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE public.items (id serial PRIMARY KEY, name text)")
        connection.exec_driver_sql("CREATE TABLE public.alembic_version (version_num varchar(32))")
        connection.exec_driver_sql("INSERT INTO public.alembic_version VALUES ('old')")
    with TenantManager(config) as manager:
        manager.create_tenants(["a", "b"])
    for tenant in "ab":
        assert rows(db, tenant, "SELECT name FROM items") == ["own"]
        assert rows(db, tenant, "SELECT version_num FROM alembic_version") == ["0001"]
    with db.connect() as connection:
        assert not connection.scalar(text("SELECT count(*) FROM public.items"))
        assert connection.scalar(text("SELECT version_num FROM public.alembic_version")) == "old"
