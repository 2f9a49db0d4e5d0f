"""Creating many tenants: from snapshots, from spares, with their first rows; and archiving them."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import (
    AsyncTenantManager,
    ConfigurationError,
    InvalidTenantIdError,
    MigrationError,
    Migrator,
    ProvisioningError,
    TenantBusyError,
    TenantConfig,
    TenantExistsError,
    TenantManager,
    TenantSuspendedError,
)
from sqlalchemy_multitenant.provisioning import builder, snapshot
from sqlalchemy_multitenant.provisioning.archive import write_archive
from sqlalchemy_multitenant.provisioning.pg_dump import find_pg_dump
from tests.integration.fleet import FIRST, Write, rows
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
    assert snapshots == [False]
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
        connection.exec_driver_sql('CREATE SCHEMA "multitenant_reference-1000-abcd"')
        connection.exec_driver_sql('CREATE SCHEMA "multitenant_reference-9999999999-abcd"')
    with TenantManager(config) as manager:
        manager.create_tenants(["a", "b", "c"])
    left = {name for name in schemas(db) if name.startswith("multitenant_")}
    assert left == {"multitenant_reference-9999999999-abcd"}


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


@pytest.mark.parametrize(
    "revision",
    [
        'op.execute("INSERT INTO items (name) VALUES (current_schema())")',
        "op.execute(\"DO $do$ BEGIN EXECUTE format('CREATE FUNCTION f() RETURNS text LANGUAGE sql AS "
        "''SELECT name FROM %I.items''', current_schema()); END $do$\")",
    ],
    ids=["row", "function"],
)
def test_what_holds_the_schemas_own_name_cannot_be_made_ahead(
    config: TenantConfig, write: Write, db: Engine, revision: str
) -> None:
    write("0001", None, f"{FIRST}\n{revision}")
    with TenantManager(config) as manager:
        with pytest.raises(MigrationError, match="own name"):
            manager.keep_spares(1)
        manager.create_tenant("a")
    assert {name for name in schemas(db) if name.startswith("multitenant_")} == set()


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


# -- archives ----------------------------------------------------------------------------------------


def restore(db: Engine, file: Path) -> None:
    url = db.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with db.connect() as connection:
        version = int(connection.scalar(text("SHOW server_version_num")) or 0) // 10_000
    program = find_pg_dump(version).with_name("pg_restore")
    subprocess.run([program, f"--dbname={url}", str(file)], check=True)


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
