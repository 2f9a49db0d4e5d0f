"""Runs over a fleet: what they keep, when they stop, how they go back, and what may be in a revision."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from sqlalchemy_multitenant import (
    ConfigurationError,
    MigrationError,
    MigrationHooks,
    Migrator,
    ProvisioningError,
    TenantConfig,
    TenantManager,
)
from sqlalchemy_multitenant.migrations.ledger import RunState
from sqlalchemy_multitenant.migrations.report import MigrationState
from tests.integration.fleet import FIRST, Write, fleet, rows

PRICE = 'op.add_column("items", sa.Column("price", sa.Integer))'
DROP_PRICE = 'op.drop_column("items", "price")'
FAILS_FOR_SOME = "op.execute(\"ALTER TABLE items ADD CONSTRAINT c CHECK (name IS DISTINCT FROM 'bad')\")"


def spoil(db: Engine, *tenants: str) -> None:
    """Give tenants a row that `FAILS_FOR_SOME` fails on."""
    with db.begin() as connection:
        for tenant in tenants:
            connection.exec_driver_sql(f"INSERT INTO tenant_{tenant}.items (name) VALUES ('bad')")


def heads(db: Engine, tenant: str) -> list[object]:
    return rows(db, tenant, "SELECT version_num FROM alembic_version")


# -- the ledger -----------------------------------------------------------------------------------


def test_the_ledger_tells_what_happened(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    names = fleet(config, 4)
    spoil(db, "t02")
    write("0002", "0001", FAILS_FOR_SOME)
    with Migrator(config) as migrator:
        assert migrator.list_runs() == []
        report = migrator.migrate_all(concurrency=2)
        assert report.run is not None
        run, results = migrator.get_run(report.run)
        assert (run.kind, run.state, run.total, run.succeeded, run.failed) == ("migrate", "failed", 4, 3, 1)
        assert [r.tenant for r in results] == names
        (failed,) = [r for r in results if r.state is MigrationState.FAILED]
        assert failed.tenant == "t02"
        assert "check constraint" in str(failed.error)
        done = results[0]
        assert (done.start, done.end) == (("0001",), ("0002",))
        plan = migrator.tenant_history.plan_upgrade(("0001",))
        assert done.sql_hash == plan.sql_hash
        assert [m.id for m in migrator.find_members(only_failed=True)] == ["t02"]
        with db.begin() as connection:
            connection.exec_driver_sql("DELETE FROM tenant_t02.items")
        again = migrator.migrate_all(only_failed=True)
        assert (again.total, again.succeeded) == (1, 1)
        assert migrator.find_members(only_failed=True) == []
        assert migrator.migrate_all().run is None  # nothing to do, nothing to tell
        assert [r.state for r in migrator.list_runs()] == [RunState.DONE, RunState.FAILED]
        with pytest.raises(MigrationError, match="no run 99"):
            migrator.get_run(99)


def test_the_ledger_tells_who_failed_before_anything_was_tried(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 3)
    with db.begin() as connection:
        connection.exec_driver_sql("UPDATE tenant_t00.alembic_version SET version_num = 'ffff'")
        connection.exec_driver_sql("DROP SCHEMA tenant_t01 CASCADE")
    with Migrator(config) as migrator:
        report = migrator.migrate_all()
        assert report.run is not None
        _, results = migrator.get_run(report.run)
        assert [r.tenant for r in results] == ["t00", "t01"]
        assert "ffff" in str(results[0].error)
        assert "tenant_t01" in str(results[1].error)
        assert [m.id for m in migrator.find_members(only_failed=True)] == ["t00", "t01"]


def test_a_result_is_written_with_what_it_tells_of(config: TenantConfig, write: Write, db: Engine) -> None:
    """The ledger refuses the row: then the tenant was not migrated, either."""
    write("0001", None, FIRST)
    fleet(config, 2)
    write("0002", "0001", PRICE)
    with Migrator(config) as migrator:
        with db.begin() as connection:
            migrator.ledger.install(connection)
            connection.exec_driver_sql(
                "ALTER TABLE public.multitenant_run_results ADD CHECK (state <> 'done' OR tenant <> 't01')"
            )
        report = migrator.migrate_all()
    assert [r.state.value for r in report.details] == ["done", "failed"]
    assert (heads(db, "t00"), heads(db, "t01")) == (["0002"], ["0001"])


def test_a_run_whose_process_is_gone_is_lost(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", PRICE)
    with Migrator(config) as migrator:
        migrator.migrate_all()
        with db.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE public.multitenant_runs SET finished_at = NULL, state = 'running'"
            )
        deadline = time.monotonic() + 10  # a backend takes a moment to end after its client has gone
        while (run := migrator.list_runs()[0]).state is RunState.RUNNING and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (run.state, run.succeeded) == (RunState.LOST, 1)


def test_an_edited_revision_is_found(config: TenantConfig, write: Write, folder: Path) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", PRICE)
    with Migrator(config) as migrator:
        migrator.migrate_all()
        assert migrator.edited_revisions() == []
    file = folder / "versions" / "0002_test.py"
    source = file.read_text()
    file.write_text(source.replace('"""revision 0002"""', '"""Another text."""') + "\n# a comment\n")
    with Migrator(config) as migrator:
        assert migrator.edited_revisions() == []
    file.write_text(source.replace("sa.Integer", "sa.String"))
    with Migrator(config) as migrator:
        assert [(e.kind, e.revision) for e in migrator.edited_revisions()] == [("tenant", "0002")]


# -- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("canary", [2, ["t03", "t02"]])
def test_canaries_come_first_and_decide(
    config: TenantConfig, write: Write, db: Engine, canary: int | list[str]
) -> None:
    write("0001", None, FIRST)
    fleet(config, 6)
    bad = "t01" if canary == 2 else "t03"
    spoil(db, bad)
    write("0002", "0001", FAILS_FOR_SOME)
    with Migrator(config) as migrator:
        report = migrator.migrate_all(canary=canary)
        assert bad in str(report.stopped)
        assert (report.succeeded, report.failed, report.skipped) == (1, 1, 4)
        with db.begin() as connection:
            connection.exec_driver_sql(f"DELETE FROM tenant_{bad}.items")
        assert migrator.migrate_all(canary=canary).succeeded == 5
        with pytest.raises(ConfigurationError, match="nobody"):
            migrator.migrate_all(canary=["nobody"])


def test_a_canary_that_takes_too_long_stops_the_run(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 3)
    spoil(db, "t00")
    write("0002", "0001", 'op.execute("SELECT pg_sleep(1.3) FROM items")')
    with Migrator(config) as migrator:
        report = migrator.migrate_all(canary=1, canary_factor=5)
        assert "canary t00 took" in str(report.stopped)
        assert (report.succeeded, report.skipped) == (1, 2)
    with db.connect() as connection:  # the trial leaves nothing behind
        assert not connection.scalar(text("SELECT count(*) FROM pg_namespace WHERE nspname LIKE '%scratch%'"))


@pytest.mark.parametrize(("limit", "stops"), [(1, True), ("15%", True), (3, False), ("50%", False)])
def test_a_failure_budget(
    config: TenantConfig, write: Write, db: Engine, limit: int | str, stops: bool
) -> None:
    write("0001", None, FIRST)
    names = fleet(config, 10)
    spoil(db, *names[:3])
    write("0002", "0001", FAILS_FOR_SOME)
    with Migrator(config) as migrator:
        report = migrator.migrate_all(concurrency=1, max_failures=limit)
    assert (report.stopped is not None) is stops
    assert (report.failed, report.succeeded) == ((2, 0) if stops else (3, 7))


@pytest.mark.parametrize(
    "options",
    [
        {"max_failures": "many"},
        {"max_failures": -1},
        {"canary": 0},
        {"canary": "t00"},
        {"canary_factor": 2},
        {"canary": 1, "canary_factor": 0.5},
    ],
)
def test_wrong_options_are_told_before_anything_runs(
    config: TenantConfig, write: Write, options: dict[str, object]
) -> None:
    write("0001", None, FIRST)
    with Migrator(config) as migrator, pytest.raises(ConfigurationError):
        migrator.migrate_all(**options)  # type: ignore[arg-type]


# -- going back -----------------------------------------------------------------------------------


def test_rollback_to_a_revision_and_by_steps(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST, down='op.drop_table("items")')
    fleet(config, 3)
    write("0002", "0001", PRICE, down=DROP_PRICE)
    write("0003", "0002", 'op.create_index("by_name", "items", ["name"])', down='op.drop_index("by_name")')
    with Migrator(config) as migrator:
        migrator.migrate_tenants(["t00", "t01"])
        (plan,) = migrator.plan_rollback("t00", to="0001")
        assert [r.id for r in plan.plan.revisions] == ["0003", "0002"]
        report = migrator.rollback("t00", to="0001")
        assert [r.end for r in report.details] == [("0001",)]
        assert heads(db, "t00") == ["0001"]
        # t00 and t02 are there already: --all takes back the others alone.
        report = migrator.rollback(to="0001")
        assert (report.succeeded, report.skipped) == (1, 2)
        migrator.migrate_all()
        report = migrator.rollback(["t01", "t02"], steps=2)
        assert {r.end for r in report.details} == {("0001",)}
        migrator.rollback("t02", to="base")
        assert heads(db, "t02") == []
        assert migrator.migrate_tenant("t02").end == ("0003",)
        for wrong in ({}, {"to": "0001", "steps": 1}, {"steps": 0}):
            with pytest.raises(ConfigurationError):
                migrator.rollback("t00", **wrong)
        with pytest.raises(MigrationError, match="9999"):
            migrator.rollback("t00", to="9999")
        assert [r.kind for r in migrator.list_runs()][:2] == ["migrate", "rollback"]


def test_a_revision_without_a_downgrade_is_told_before_anything_runs(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    write("0002", "0001", PRICE)
    write("0003", "0002", 'op.create_index("by_name", "items", ["name"])', down='op.drop_index("by_name")')
    with Migrator(config) as migrator:
        migrator.migrate_all()
        with pytest.raises(MigrationError, match="0002 cannot be undone"):
            migrator.rollback(to="0001")
        assert heads(db, "t00") == ["0003"]
        assert migrator.rollback(to="0002").succeeded == 2


def test_a_downgrade_that_is_not_there_is_told_as_well(
    config: TenantConfig, write: Write, folder: Path
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    file = folder / "versions" / "0001_test.py"
    file.write_text(file.read_text().partition("def downgrade")[0])
    with Migrator(config) as migrator, pytest.raises(MigrationError, match="0001 cannot be undone"):
        migrator.rollback(to="base")


def test_a_connection_lost_while_it_commits_takes_back_no_more(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    from sqlalchemy_multitenant.migrations import runner

    write("0001", None, FIRST, down='op.drop_table("items")')
    fleet(config, 1)
    write("0002", "0001", PRICE, down=DROP_PRICE)
    real, calls = runner.migrate_schema, []  # type: ignore[attr-defined]

    def lose_once(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 1:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    with Migrator(config) as migrator:
        migrator.migrate_all()
        monkeypatch.setattr(runner, "migrate_schema", lose_once)
        migrator.rollback("t00", steps=1)
    assert heads(db, "t00") == ["0001"]
    assert len(calls) == 1


# -- what may be in a revision ----------------------------------------------------------------------


def test_compiled_and_online_revisions_share_one_transaction(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 3)
    spoil(db, "t01")
    write("0002", "0001", PRICE)
    write(
        "0003",
        "0002",
        """
        from sqlalchemy.orm import Session
        with Session(op.get_bind()) as session:
            session.execute(sa.text("INSERT INTO items (name, price) SELECT 'n', count(*) FROM items"))
            session.commit()
        """,
    )
    write("0004", "0003", FAILS_FOR_SOME)
    with Migrator(config) as migrator:
        plan = migrator.tenant_history.plan_upgrade(("0001",))
        assert [s.kind.value for s in plan.segments] == ["compiled", "online", "compiled"]
        report = migrator.migrate_all(concurrency=3)
    assert [r.state.value for r in report.details] == ["done", "failed", "done"]
    assert rows(db, "t00", "SELECT price FROM items") == [0]
    assert rows(db, "t01", "SELECT name FROM items") == ["bad"]
    assert (heads(db, "t00"), heads(db, "t01")) == (["0004"], ["0001"])


CONCURRENTLY = (
    'op.add_column("items", sa.Column("note", sa.String))\n'
    "with op.get_context().autocommit_block():\n"
    '    op.create_index("by_name", "items", ["name"], unique=True, postgresql_concurrently=True)\n'
    "op.execute(\"INSERT INTO items (name) VALUES ('after')\")"
)


def test_an_index_is_built_concurrently(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    write("0002", "0001", PRICE)
    write("0003", "0002", CONCURRENTLY)
    with Migrator(config) as migrator:
        plan = migrator.tenant_history.plan_upgrade(("0001",))
        assert [s.kind.value for s in plan.segments] == ["compiled", "autocommit", "compiled"]
        assert "COMMIT;\nCREATE UNIQUE INDEX CONCURRENTLY" in plan.sql
        report = migrator.migrate_all()
        assert report.succeeded == 2, report.failures
    assert rows(db, "t00", "SELECT name FROM items") == ["after"]
    with TenantManager(config) as manager:  # a new tenant: in one transaction
        manager.create_tenant("new")
    for tenant in ("t01", "new"):
        assert rows(db, tenant, "SELECT indexrelid::regclass::text FROM pg_index WHERE indisvalid") >= [
            "by_name"
        ]
        assert heads(db, tenant) == ["0003"]
    with db.connect() as connection:
        assert not connection.scalar(text("SELECT count(*) FROM public.multitenant_steps"))


def test_an_invalid_index_is_rebuilt_and_nothing_runs_twice(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    spoil(db, "t00")
    spoil(db, "t00")  # two rows of one name: the unique index fails, and leaves an invalid one
    write("0002", "0001", CONCURRENTLY)
    with Migrator(config) as migrator:
        report = migrator.migrate_all()
        assert report.failed == 1
        assert rows(db, "t00", "SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_name'::regclass") == [
            False
        ]
        assert heads(db, "t00") == ["0001"]
        with db.begin() as connection:
            connection.exec_driver_sql("DELETE FROM tenant_t00.items WHERE id = 1")
        report = migrator.migrate_all()  # the column of the first part is there: it is not added again
        assert report.succeeded == 1, report.failures
    assert rows(db, "t00", "SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_name'::regclass") == [True]
    assert rows(db, "t00", "SELECT name FROM items ORDER BY name") == ["after", "bad"]


def test_an_index_that_was_finished_but_not_noted_is_kept(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    """The process was killed between the two."""
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", CONCURRENTLY)
    with Migrator(config) as migrator:
        spoil(db, "t00")
        spoil(db, "t00")
        assert migrator.migrate_all().failed == 1
        with db.begin() as connection:
            connection.exec_driver_sql("DELETE FROM tenant_t00.items")
            connection.exec_driver_sql("DROP INDEX tenant_t00.by_name")
            connection.exec_driver_sql("CREATE UNIQUE INDEX by_name ON tenant_t00.items (name)")
        assert migrator.migrate_all().succeeded == 1
        assert heads(db, "t00") == ["0002"]


def test_a_half_done_revision_that_was_edited_is_refused(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    spoil(db, "t00")
    spoil(db, "t00")
    write("0002", "0001", CONCURRENTLY)
    with Migrator(config) as migrator:
        assert migrator.migrate_all().failed == 1
    write("0002", "0001", CONCURRENTLY.replace('"note"', '"remark"'))
    with Migrator(config) as migrator:
        (failure,) = migrator.migrate_all().failures
    assert "was changed since" in str(failure.error)


def test_online_revisions_may_leave_their_transaction(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    write("0002", "0001", PRICE)
    write(
        "0003",
        "0002",
        """
        count = op.get_bind().scalar(sa.text("SELECT count(*) FROM items"))
        with op.get_context().autocommit_block():
            op.create_index(f"by_price_{count}", "items", ["price"], postgresql_concurrently=True)
        """,
    )
    write("0004", "0003", "op.execute(\"INSERT INTO items (name) VALUES ('after')\")")
    with Migrator(config) as migrator:
        report = migrator.migrate_all()
        assert report.succeeded == 2, report.failures
    assert rows(db, "t01", "SELECT to_regclass('by_price_0')::text") == ["by_price_0"]
    assert heads(db, "t01") == ["0004"]


def test_tenants_need_the_shared_revision_they_build_on(
    config: TenantConfig, write: Write, tmp_path: Path
) -> None:
    versions = tmp_path / "shared" / "versions"
    versions.mkdir(parents=True)
    (versions / "s1.py").write_text(
        "from alembic import op\nrevision = 's1'\ndown_revision = None\n"
        'def upgrade():\n    op.execute("CREATE TABLE plans (id int PRIMARY KEY)")\n'
    )
    write("0001", None, FIRST)
    fleet(config, 1)
    write(
        "0002",
        "0001",
        'op.execute("ALTER TABLE items ADD plan_id int REFERENCES plans")',
        imports="requires_shared = 's1'",
    )
    with Migrator(config) as migrator, TenantManager(config) as manager:
        with pytest.raises(MigrationError, match=r"shared revision 's1'.*migrate --shared"):
            migrator.migrate_all()
        with pytest.raises(ProvisioningError, match="migrate --shared"):
            manager.create_tenant("new")
        migrator.migrate_shared()
        assert migrator.migrate_all().succeeded == 1
        manager.create_tenant("new")


# -- hooks ------------------------------------------------------------------------------------------


def test_hooks_are_told_in_order(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    spoil(db, "t01")
    write("0002", "0001", PRICE)
    write("0003", "0002", 'op.get_bind().execute(sa.text("SELECT 1"))')
    write("0004", "0003", FAILS_FOR_SOME)
    calls: list[tuple[object, ...]] = []
    hooks = MigrationHooks(
        before_tenant=lambda tenant: calls.append(("before", tenant)),
        after_tenant=lambda tenant, result: calls.append(("after", tenant, result.state.value)),
        before_migration=lambda tenant, revision: calls.append(("begin", tenant, revision)),
        after_migration=lambda tenant, revision, ms: calls.append(("end", tenant, revision, ms > 0)),
    )
    with Migrator(config, hooks=hooks) as migrator:
        report = migrator.migrate_all(concurrency=1)
    assert (report.succeeded, report.failed, report.hook_errors) == (1, 1, ())
    each = [step for r in ("0002", "0003", "0004") for step in (("begin", "t00", r), ("end", "t00", r, True))]
    assert calls[:8] == [("before", "t00"), *each, ("after", "t00", "done")]
    assert calls[8:][0] == ("before", "t01")
    assert calls[8:][-2:] == [("begin", "t01", "0004"), ("after", "t01", "failed")]


def test_a_hook_that_raises_is_no_failed_migration(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    write("0002", "0001", PRICE)

    def fail(*_: object) -> None:
        raise RuntimeError("no Slack")

    for hook in ("before_tenant", "after_tenant", "before_migration", "after_migration"):
        with Migrator(config, hooks=MigrationHooks(**{hook: fail})) as migrator:
            report = migrator.migrate_all()
            assert (report.succeeded, report.failed) == (2, 0)
            assert sorted((e.tenant, e.hook) for e in report.hook_errors) == [("t00", hook), ("t01", hook)]
        with db.begin() as connection:
            for tenant in ("t00", "t01"):
                connection.exec_driver_sql(f"ALTER TABLE tenant_{tenant}.items DROP price")
                connection.exec_driver_sql(f"UPDATE tenant_{tenant}.alembic_version SET version_num = '0001'")


# -- rivals -----------------------------------------------------------------------------------------


def test_rivals_divide_the_work(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    names = fleet(config, 24)
    write("0002", "0001", "op.execute(\"INSERT INTO items (name) SELECT 'once' FROM pg_sleep(0.02)\")")
    reports = []

    def run() -> None:
        with Migrator(config) as migrator:
            reports.append(migrator.migrate_all(concurrency=2))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.failed for r in reports] == [0, 0, 0]
    assert sum(r.succeeded for r in reports) == len(names)
    for name in names:
        assert rows(db, name, "SELECT name FROM items") == ["once"]
