"""Migrations over a fleet: compiled once, run in parallel, never half done."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import URL, Column, Engine, Integer, MetaData, String, Table, text
from sqlalchemy import Connection as CoreConnection

from sqlalchemy_multitenant import (
    ConfigurationError,
    Connection,
    MigrationError,
    Migrations,
    Migrator,
    ProvisioningError,
    Schemas,
    TenantConfig,
    TenantManager,
    TenantNotFoundError,
)
from sqlalchemy_multitenant.migrations.report import MigrationState
from tests.integration.fleet import FIRST, Write, fleet, rows, tenant_models


def test_a_whole_fleet_moves_forward(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    names = fleet(config, 12)
    write("0002", "0001", 'op.add_column("items", sa.Column("price", sa.Integer))')
    write("0003", "0002", "op.execute(\"INSERT INTO items (name, price) VALUES ('x', 1)\")")
    seen: list[tuple[str, str]] = []
    with Migrator(config) as migrator:
        assert {s.state for s in migrator.status()} == {"behind"}
        assert {s.pending for s in migrator.status()} == {("0002", "0003")}
        report = migrator.migrate_all(concurrency=4, on_progress=lambda t, s: seen.append((t, s.value)))
        assert (report.total, report.succeeded, report.failed, report.skipped) == (12, 12, 0, 0)
        assert [r.tenant for r in report.details] == names
        assert {r.applied for r in report.details} == {("0002", "0003")}
        assert sorted(seen) == sorted([(n, s) for n in names for s in ("running", "done")])
        assert {(s.state, s.applied) for s in migrator.status()} == {("ok", 3)}
        again = migrator.migrate_all()
        assert (again.succeeded, again.skipped) == (0, 12)
    for name in names:
        assert rows(db, name, "SELECT price FROM items") == [1]


def test_tenants_at_different_revisions_meet_at_the_head(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 3)
    write("0002", "0001", "op.execute(\"INSERT INTO items (name) VALUES ('two')\")")
    with Migrator(config) as migrator:
        migrator.migrate_tenants(["t00"])
    write("0003", "0002", "op.execute(\"INSERT INTO items (name) VALUES ('three')\")")
    with Migrator(config) as migrator:
        plans = migrator.plan()
        assert [(p.plan.start, len(p.tenants)) for p in plans] == [(("0002",), 1), (("0001",), 2)]
        report = migrator.migrate_all()
    assert [r.applied for r in report.details] == [("0003",), ("0002", "0003"), ("0002", "0003")]
    for name in ("t00", "t01", "t02"):
        assert rows(db, name, "SELECT name FROM items ORDER BY id") == ["two", "three"]


def test_a_failing_tenant_stays_whole_and_holds_up_nobody(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 6)
    with db.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE tenant_t02.extra (id int)")
    write("0002", "0001", "op.execute(\"INSERT INTO items (name) VALUES ('before')\")")
    write("0003", "0002", 'op.create_table("extra", sa.Column("id", sa.Integer))')
    told: list[str] = []
    with Migrator(config) as migrator:
        report = migrator.migrate_all(
            concurrency=2, on_error=lambda tenant, error: told.append(f"{tenant}: {error}") or "continue"
        )
        assert (report.succeeded, report.failed) == (5, 1)
        (failed,) = report.failures
        assert failed.tenant == "t02"
        assert isinstance(failed.error, MigrationError)
        assert failed.error.revision == "0003"
        assert "already exists" in str(failed.error)
        assert len(told) == 1
        assert [s.heads for s in migrator.status(["t02"])] == [("0001",)]
        assert rows(db, "t02", "SELECT name FROM items") == []
        with pytest.raises(MigrationError, match="t02"):
            migrator.migrate_tenant("t02")
        with db.begin() as connection:
            connection.exec_driver_sql("DROP TABLE tenant_t02.extra")
        assert migrator.migrate_all().succeeded == 1
    assert rows(db, "t02", "SELECT name FROM items") == ["before"]


def test_abort_starts_no_further_tenants(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    fleet(config, 8)
    write("0002", "0001", 'op.execute("SELECT nonexistent")')
    with Migrator(config) as migrator:
        report = migrator.migrate_all(concurrency=1, on_error=lambda tenant, error: "abort")
    assert report.aborted
    assert (report.failed, report.skipped) == (1, 7)


def test_a_broken_revision_touches_nobody(config: TenantConfig, write: Write, folder: Path) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    (folder / "versions" / "0002_broken.py").write_text(
        "revision = '0002'\ndown_revision = '0001'\nimport nosuch\n"
    )
    with Migrator(config) as migrator, pytest.raises(MigrationError, match="nosuch"):
        migrator.migrate_all()
    (folder / "versions" / "0002_broken.py").write_text("revision = '0002'\ndown_revision = 'gone'\n")
    with Migrator(config) as migrator, pytest.raises(MigrationError, match="gone"):
        migrator.migrate_all()


def test_an_unknown_revision_in_the_database_is_told(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    with db.begin() as connection:
        connection.exec_driver_sql("UPDATE tenant_t00.alembic_version SET version_num = 'ffff'")
    with Migrator(config) as migrator:
        states = {s.tenant: s for s in migrator.status()}
        assert states["t00"].state == "broken"
        assert "ffff" in str(states["t00"].problem)
        assert states["t01"].state == "ok"
        report = migrator.migrate_all()
    assert (report.failed, report.skipped) == (1, 1)


@pytest.mark.parametrize(
    ("upgrade", "online"),
    [
        ('op.execute(sa.text("INSERT INTO items (name) VALUES (:n)").bindparams(n="100%"))', False),
        ("op.execute(\"INSERT INTO items (name) VALUES ('100%')\")", False),
        ('op.bulk_insert(sa.table("items", sa.column("name", sa.String)), [{"name": "100%"}])', False),
        ("op.get_bind().execute(sa.text(\"INSERT INTO items (name) VALUES ('100%')\"))", True),
        (
            'bind = op.get_bind()\nname = sa.inspect(bind).get_columns("items")[1]["name"]\n'
            "op.execute(f\"INSERT INTO items ({name}) VALUES ('100%')\")",
            True,
        ),
        (
            "import uuid\n"
            "op.execute(f\"INSERT INTO items (name) VALUES ('{uuid.uuid4()}')\")\n"
            "op.execute(\"UPDATE items SET name = '100%'\")",
            True,
        ),
        (
            "if not context.is_offline_mode():\n"
            "    op.get_bind().execute(sa.text(\"INSERT INTO items (name) VALUES ('100%')\"))",
            True,
        ),
        (
            "if not op.get_context().as_sql:\n"
            "    op.get_bind().execute(sa.text(\"INSERT INTO items (name) VALUES ('100%')\"))",
            True,
        ),
        (
            't = sa.Table("items", sa.MetaData(), sa.Column("id", sa.Integer), '
            'sa.Column("name", sa.String, default="100%"))\n'
            'op.bulk_insert(t, [{"id": 1}])',
            True,
        ),
        (
            "from sqlalchemy.orm import Session\n"
            "session = Session(op.get_bind())\n"
            "session.execute(sa.text(\"INSERT INTO items (name) VALUES ('100%')\"))\nsession.flush()",
            True,
        ),
        (
            'with op.batch_alter_table("items") as batch:\n'
            '    batch.add_column(sa.Column("extra", sa.Text))\n'
            '    batch.alter_column("name", server_default="100%")\n'
            'op.execute("INSERT INTO items DEFAULT VALUES")',
            False,
        ),
        (
            'op.create_table("more", sa.Column("mood", sa.Enum("happy", "100%", name="mood")))\n'
            'mood = sa.Enum("happy", "100%", name="mood", create_type=False)\n'
            'op.create_table("most", sa.Column("mood", mood))\n'
            "op.execute(\"INSERT INTO items (name) VALUES ('100%'::mood)\")",
            False,
        ),
        (
            "from tests.integration.fleet import FIRST\n"
            "op.execute(f\"INSERT INTO items (name) VALUES ('{len(FIRST) * 0 + 100}%')\")",
            False,
        ),
    ],
)
def test_what_alembic_allows_works(
    config: TenantConfig, write: Write, db: Engine, upgrade: str, online: bool
) -> None:
    write("0001", None, FIRST)
    fleet(config, 3)
    write("0002", "0001", upgrade)
    with Migrator(config) as migrator:
        (plan,) = migrator.plan()
        assert (plan.plan.online is not None) is online
        assert migrator.migrate_all(concurrency=3).succeeded == 3
        assert migrator.migrate_all().skipped == 3
    for name in ("t00", "t01", "t02"):
        assert rows(db, name, "SELECT name FROM items") == ["100%"]


def test_tabs_and_semicolons_in_data_stay_what_they_are(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    write(
        "0002", "0001", "op.execute(\"INSERT INTO items (name) VALUES ('a\\tb;c'); UPDATE items SET id = 7\")"
    )
    write(
        "0003",
        "0002",
        '''op.execute("""CREATE FUNCTION two() RETURNS int LANGUAGE plpgsql AS $$
        BEGIN
            RETURN 2; -- not; here
        END $$""")''',
    )
    (name,) = fleet(config, 1)
    assert rows(db, name, "SELECT name FROM items WHERE id = 7") == ["a\tb;c"]
    assert rows(db, name, "SELECT two()") == [2]


def test_branches_and_merges(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    write("a2", "0001", 'op.add_column("items", sa.Column("a", sa.Integer))')
    write("b2", "0001", 'op.add_column("items", sa.Column("b", sa.Integer))')
    with Migrator(config) as migrator:
        assert migrator.migrate_all().succeeded == 2
        assert {s.heads for s in migrator.status()} == {("a2", "b2")}
    write("m3", None, "pass")
    path = next((Path(config.migrations.tenant_dir) / "versions").glob("m3*"))
    path.write_text(path.read_text().replace("down_revision = None", "down_revision = ('a2', 'b2')"))
    with Migrator(config) as migrator:
        assert migrator.migrate_all().succeeded == 2
        assert {s.heads for s in migrator.status()} == {("m3",)}


def test_a_branch_may_depend_on_another(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    write("x1", None, "op.execute(\"UPDATE items SET name = name || 'x'\")")
    write("0002", "0001", "op.execute(\"INSERT INTO items (name) VALUES ('a')\")")
    path = next((Path(config.migrations.tenant_dir) / "versions").glob("x1*"))
    path.write_text(
        path.read_text().replace("down_revision = None", "down_revision = None\ndepends_on = '0002'")
    )
    with Migrator(config) as migrator:
        assert migrator.migrate_all().succeeded == 2
        assert migrator.migrate_all().skipped == 2
    with TenantManager(config) as manager:
        manager.create_tenant("new")
    for name in ("t00", "t01", "new"):
        assert rows(db, name, "SELECT name FROM items") == ["ax"]


def test_two_migrators_at_once_do_nothing_twice(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    names = fleet(config, 10)
    write(
        "0002",
        "0001",
        "op.execute(\"INSERT INTO items (name) VALUES ('once')\")\nop.execute('SELECT pg_sleep(0.02)')",
    )
    reports = []

    def run() -> None:
        with Migrator(config) as migrator:
            reports.append(migrator.migrate_all(concurrency=3))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.failed for r in reports] == [0, 0, 0]
    assert sum(r.succeeded for r in reports) == 10
    for name in names:
        assert rows(db, name, "SELECT name FROM items") == ["once"]


def test_a_killed_migration_leaves_no_tenant_half_done(
    config: TenantConfig, write: Write, db: Engine, folder: Path, empty_url: URL
) -> None:
    write("0001", None, FIRST)
    names = fleet(config, 6)
    write("0002", "0001", "op.execute(\"INSERT INTO items (name) VALUES ('once')\")")
    write(
        "0003",
        "0002",
        "op.execute('SELECT pg_sleep(0.15)')\nop.execute(\"UPDATE items SET name = name || '!'\")",
    )
    code = f"""
from sqlalchemy import MetaData
from sqlalchemy_multitenant import *
config = TenantConfig(connection=Connection(url={empty_url.render_as_string(hide_password=False)!r}),
                      schemas=Schemas(tenant=MetaData()), migrations=Migrations(tenant_dir={str(folder)!r}))
Migrator(config).migrate_all(concurrency=2)
"""
    for delay in (0.9, 1.1):
        process = subprocess.Popen([sys.executable, "-c", code])
        time.sleep(delay)
        process.kill()
        process.wait()
    with Migrator(config) as migrator:
        assert migrator.migrate_all().failed == 0
        assert {s.heads for s in migrator.status()} == {("0003",)}
    for name in names:
        assert rows(db, name, "SELECT name FROM items") == ["once!"]


def test_a_lock_held_by_traffic_is_waited_for_in_short_turns(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", 'op.add_column("items", sa.Column("price", sa.Integer))')
    holding = threading.Event()

    def traffic() -> None:
        with db.begin() as connection:
            connection.exec_driver_sql("LOCK TABLE tenant_t00.items IN ACCESS SHARE MODE")
            holding.set()
            time.sleep(1.6)

    thread = threading.Thread(target=traffic)
    thread.start()
    holding.wait()
    with Migrator(config) as migrator:
        result = migrator.migrate_tenant("t00")
    thread.join()
    assert result.state is MigrationState.DONE
    assert result.attempts > 1


def test_terminated_backends_are_tried_again(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    names = fleet(config, 4)
    write(
        "0002",
        "0001",
        "op.execute(\"INSERT INTO items (name) VALUES ('once')\")\nop.execute('SELECT pg_sleep(0.3)')",
    )

    def kill_once() -> None:
        time.sleep(0.4)
        with db.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid() "
                    "AND datname = current_database()"
                )
            )

    thread = threading.Thread(target=kill_once)
    thread.start()
    with Migrator(config) as migrator:
        report = migrator.migrate_all(concurrency=2)
    thread.join()
    assert report.succeeded == 4, report
    for name in names:
        assert rows(db, name, "SELECT name FROM items") == ["once"]


@pytest.mark.parametrize("wrong", [0, -1, True, "abc", 1.5])
def test_concurrency_is_checked(config: TenantConfig, write: Write, wrong: object) -> None:
    write("0001", None, FIRST)
    with Migrator(config) as migrator, pytest.raises(ConfigurationError, match="concurrency"):
        migrator.migrate_all(concurrency=wrong)  # type: ignore[arg-type]


def test_an_unknown_tenant_touches_nobody(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", "op.execute('SELECT 1')")
    with Migrator(config) as migrator:
        with pytest.raises(TenantNotFoundError, match="ghost"):
            migrator.migrate_tenants(["t00", "ghost"])
        assert migrator.status()[0].heads == ("0001",)


def test_a_plan_changes_nothing(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", 'op.create_table("more", sa.Column("id", sa.Integer))')

    def everything() -> list[object]:
        with db.connect() as connection:
            return list(connection.scalars(text("SELECT oid::regclass::text FROM pg_class ORDER BY oid")))

    before = everything()
    with Migrator(config) as migrator:
        (plan,) = migrator.plan()
    assert "CREATE TABLE more" in plan.plan.sql
    assert everything() == before


def test_mark_applied_records_without_running(config: TenantConfig, write: Write, db: Engine) -> None:
    folder = Path(config.migrations.tenant_dir)
    (folder / "versions").rmdir()
    folder.rmdir()
    names = fleet(config, 2)  # from the models: there are no revisions yet
    (folder / "versions").mkdir(parents=True)
    write("0001", None, FIRST)
    write("0002", "0001", "op.execute(\"INSERT INTO items (name) VALUES ('never')\")")
    with Migrator(config) as migrator:
        assert migrator.migrate_all().failed == 2
        report = migrator.mark_applied()
        assert (report.succeeded, report.failed) == (2, 0)
        assert migrator.mark_applied().skipped == 2
        assert {s.state for s in migrator.status()} == {"ok"}
    assert rows(db, names[0], "SELECT name FROM items") == []


def test_a_failing_revision_fails_the_creation_whole(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    write("0002", "0001", "op.execute('SELECT nonexistent')")
    with TenantManager(config) as manager:
        with pytest.raises(ProvisioningError, match="0002"):
            manager.create_tenant("new")
        assert not manager.tenant_exists("new")
    with db.connect() as connection:
        assert connection.scalar(text("SELECT to_regnamespace('tenant_new')")) is None


def test_revisions_that_cannot_be_found_do_not_mean_none(
    config: TenantConfig, write: Write, tmp_path: Path
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    elsewhere = TenantConfig(
        connection=config.connection,
        schemas=config.schemas,
        migrations=Migrations(tenant_dir=tmp_path / "nowhere"),
    )
    with TenantManager(elsewhere) as manager, pytest.raises(ProvisioningError, match="absolute path"):
        manager.create_tenant("new")


def test_status_takes_a_few_queries_whatever_the_number(config: TenantConfig, write: Write) -> None:
    from sqlalchemy import event

    write("0001", None, FIRST)
    counts = []
    for number in (2, 30):
        with TenantManager(config) as manager:
            for i in range(number):
                if not manager.tenant_exists(f"x{i}"):
                    manager.create_tenant(f"x{i}")
        with Migrator(config) as migrator:
            statements: list[str] = []

            @event.listens_for(migrator.engine, "before_cursor_execute")
            def count(conn: CoreConnection, cursor: object, statement: str, *_: object) -> None:
                statements.append(statement)

            assert len(migrator.status()) == number
            counts.append(len(statements))
    assert counts[0] == counts[1]
    assert counts[0] <= 5


def test_the_shared_tables_version_is_never_taken_for_a_tenants(
    empty_url: URL, tmp_path: Path, write: Write, folder: Path, db: Engine
) -> None:
    """Both histories keep their version in a table of the same name; the search path shows both."""
    shared = tmp_path / "shared"
    (shared / "versions").mkdir(parents=True)
    (shared / "versions" / "s1.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = 's1'\ndown_revision = None\n"
        "def upgrade():\n    op.create_table('plans', sa.Column('id', sa.Integer, primary_key=True))\n"
    )
    write("0001", None, FIRST)
    config = TenantConfig(
        connection=Connection(url=empty_url),
        schemas=Schemas(tenant=tenant_models),
        migrations=Migrations(tenant_dir=folder, shared_dir=shared),
    )
    with Migrator(config) as migrator:
        assert migrator.migrate_shared().applied == ("s1",)
        assert migrator.migrate_shared().state is MigrationState.SKIPPED
    fleet(config, 2)
    write("0002", "0001", "op.get_bind().execute(sa.text('SELECT 1'))")
    with Migrator(config) as migrator:
        assert migrator.migrate_all().succeeded == 2
        assert {s.heads for s in migrator.status()} == {("0002",)}
    with db.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM public.alembic_version")) == "s1"


def test_a_tenant_dropped_meanwhile_is_not_built_in_the_shared_schema(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    write("0002", "0001", "op.execute('SELECT 1')")
    with TenantManager(config) as manager, Migrator(config) as migrator:

        def drop(tenant: str, state: MigrationState) -> None:
            if state is MigrationState.RUNNING and tenant == "t00":
                manager.drop_tenant(tenant)

        report = migrator.migrate_all(on_progress=drop)
        assert (report.succeeded, report.failed) == (1, 1)
        assert isinstance(report.failures[0].error, TenantNotFoundError)
    with db.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('public.items')")) is None


def test_a_folder_without_revisions_is_told(config: TenantConfig, write: Write) -> None:
    with TenantManager(config) as manager, pytest.raises(ProvisioningError, match="generate --name first"):
        manager.create_tenant("new")


def test_the_shared_schema_can_be_marked(config: TenantConfig, tmp_path: Path) -> None:
    versions = tmp_path / "shared" / "versions"
    versions.mkdir(parents=True)
    (versions / "s1.py").write_text(
        "from alembic import op\nrevision = 's1'\ndown_revision = None\n"
        "def upgrade():\n    op.execute('SELECT nonexistent')\n"
    )
    with Migrator(config) as migrator:
        assert migrator.mark_shared_applied().state is MigrationState.DONE
        assert migrator.mark_shared_applied().state is MigrationState.SKIPPED
        assert migrator.migrate_shared().state is MigrationState.SKIPPED


def test_a_record_that_went_elsewhere_fails_the_migration(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    """The shared schema keeps its version in a table of the same name."""
    with db.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE public.alembic_version (version_num text)")
        connection.exec_driver_sql("INSERT INTO public.alembic_version VALUES ('0001')")
    write("0001", None, FIRST)
    fleet(config, 2)
    write("0002", "0001", "op.execute('SET search_path TO public')")
    with Migrator(config) as migrator:
        assert migrator.migrate_all().failed == 2
        assert {s.heads for s in migrator.status()} == {("0001",)}
    with db.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM public.alembic_version")) == "0001"


@pytest.mark.parametrize("command", ["COMMIT", "SELECT 1; ROLLBACK", "BEGIN"])
def test_a_revision_cannot_split_its_transaction(config: TenantConfig, write: Write, command: str) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", f"op.execute({command!r})")
    with Migrator(config) as migrator, pytest.raises(MigrationError, match="in two"):
        migrator.migrate_all()


def test_the_failing_one_of_thousands_of_statements_is_named(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write(
        "0002",
        "0001",
        "op.execute('SELECT nonexistent')\nfor i in range(3000):\n    op.execute(f'SELECT {i}')",
    )
    with Migrator(config) as migrator:
        (failed,) = migrator.migrate_all().failures
    assert "nonexistent" in str(failed.error)
    assert failed.attempts == 1


def test_what_a_revision_sets_does_not_reach_the_next_tenant(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    write("0002", "0001", "op.execute('SET default_transaction_read_only = on')")
    assert fleet(config, 3) == ["t00", "t01", "t02"]


def test_mark_applied_mends_an_unknown_revision(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    with db.begin() as connection:
        connection.exec_driver_sql("UPDATE tenant_t00.alembic_version SET version_num = 'ffff'")
        connection.exec_driver_sql("DELETE FROM tenant_t01.alembic_version")
    with Migrator(config) as migrator:
        report = migrator.mark_applied()
        assert (report.succeeded, report.failed) == (2, 0)
        assert {s.state for s in migrator.status()} == {"ok"}


def test_tables_from_the_models_keep_their_percent_signs(empty_url: URL, db: Engine) -> None:
    models = MetaData()
    Table("t", models, Column("id", Integer, primary_key=True), Column("share", String, server_default="50%"))
    config = TenantConfig(connection=Connection(url=empty_url), schemas=Schemas(tenant=models))
    with TenantManager(config) as manager:
        manager.create_tenant("a")
        manager.get_db("a").execute(text("INSERT INTO t DEFAULT VALUES"))
        assert manager.get_db("a").scalar(text("SELECT share FROM t")) == "50%"
