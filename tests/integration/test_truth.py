"""What reports and the ledger say of a run is what has happened, whatever else did."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from sqlalchemy_multitenant import ConfigurationError, MigrationError, Migrator, TenantConfig, TenantManager
from sqlalchemy_multitenant.catalog.members import Membership
from sqlalchemy_multitenant.migrations import journey, runner
from sqlalchemy_multitenant.migrations.batch import lock_key
from sqlalchemy_multitenant.migrations.journal import Journal
from sqlalchemy_multitenant.migrations.ledger import Ledger, RunState
from sqlalchemy_multitenant.migrations.report import MigrationInterrupted, MigrationState
from sqlalchemy_multitenant.migrations.run import FleetRun
from sqlalchemy_multitenant.migrations.runner import SchemaRunner
from tests.integration.fleet import FIRST, Write, fleet

NOTE = 'op.add_column("items", sa.Column("note", sa.String))'
NO_NOTE = 'op.drop_column("items", "note")'


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- answers that were lost ---------------------------------------------------------------------------


@pytest.mark.parametrize("is_back", [True, False])
def test_a_commit_whose_answer_was_lost(
    config: TenantConfig, write: Write, monkeypatch: pytest.MonkeyPatch, is_back: bool
) -> None:
    """The server is there again for the next attempt; or only when the run ends."""
    write("0001", None, FIRST)
    fleet(config, 2)
    write("0002", "0001", NOTE)
    real = runner.migrate_schema  # type: ignore[attr-defined]
    done: set[str] = set()

    def lose(*args: Any, **options: Any) -> None:
        name = args[3].name
        if name in done and is_back:
            real(*args, **options)
            return
        if name not in done:
            done.add(name)
            real(*args, **options)
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(runner, "migrate_schema", lose)
    monkeypatch.setattr(runner, "MAX_ATTEMPTS", 2)
    with Migrator(config) as migrator:
        report = migrator.migrate_all()
        assert [(r.state, r.start, r.end) for r in report.details] == 2 * [
            (MigrationState.DONE, ("0001",), ("0002",))
        ]
        assert {r.applied for r in report.details} == {("0002",)}
        assert report.run is not None
        run, _ = migrator.get_run(report.run)
        assert (run.state, run.succeeded, run.failed, run.skipped) == (RunState.DONE, 2, 0, 0)
        assert migrator.find_members(only_failed=True) == []


ASLEEP = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep' "
    "AND state = 'active'"
)


# -- interrupts ---------------------------------------------------------------------------------------


def interrupted(config: TenantConfig, db: Engine, times: int) -> MigrationInterrupted:
    """What comes of Ctrl-C, pressed as soon as tenants are at work, and `times` times."""
    with Migrator(config) as migrator:

        def press() -> None:
            with db.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                asleep = text(ASLEEP)
                wait_for(lambda: bool(connection.scalar(asleep)))
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.3)

        presser = threading.Thread(target=press)
        presser.start()
        with pytest.raises(MigrationInterrupted) as caught:
            migrator.migrate_all(concurrency=2)
        presser.join()
    return caught.value


def test_what_an_interrupt_let_finish_is_told(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 6)
    write("0002", "0001", f"{NOTE}\nop.execute('SELECT pg_sleep(1)')")
    report = interrupted(config, db, 1).report
    moved = [r.tenant for r in report.details if r.state is MigrationState.DONE]
    assert (len(moved), report.failed, report.skipped, report.unreached) == (2, 0, 4, 4)
    assert report.run is not None
    with Migrator(config) as migrator:
        run, told = migrator.get_run(report.run)
        assert (run.state, run.succeeded, run.failed, run.skipped) == (RunState.STOPPED, 2, 0, 4)
        assert sorted(r.tenant for r in told) == sorted(moved)
        assert {s.tenant for s in migrator.status() if s.heads == ("0002",)} == set(moved)


def test_a_second_interrupt_rolls_back_what_runs(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 3)
    write("0002", "0001", f"{NOTE}\nop.execute('SELECT pg_sleep(60)')")
    started = time.monotonic()
    report = interrupted(config, db, 2).report
    assert time.monotonic() - started < 30
    assert (report.succeeded, report.failed, report.unreached) == (0, 2, 1)
    with Migrator(config) as migrator:
        assert {s.heads for s in migrator.status()} == {("0001",)}
        assert len(migrator.find_members(only_failed=True)) == 2
    with db.connect() as connection:
        assert not connection.scalar(text(ASLEEP))


def test_a_second_interrupt_reaches_what_alembic_runs(config: TenantConfig, write: Write, db: Engine) -> None:
    """Between two of its short statements nothing can be cancelled."""
    write("0001", None, FIRST)
    fleet(config, 2)
    write(
        "0002",
        "0001",
        f"op.get_bind()\n{NOTE}\nfor _ in range(200):\n    op.execute('SELECT pg_sleep(0.05)')",
    )
    started = time.monotonic()
    report = interrupted(config, db, 2).report
    assert time.monotonic() - started < 8
    assert report.succeeded == 0
    assert report.failed + report.unreached == 2
    with Migrator(config) as migrator:
        assert {s.heads for s in migrator.status()} == {("0001",)}


def test_an_interrupt_at_the_very_end_is_one(
    config: TenantConfig, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", NOTE)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "end", interrupt)
    with Migrator(config) as migrator, pytest.raises(KeyboardInterrupt):
        migrator.migrate_all()


def test_an_end_that_cannot_be_written(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", NOTE)
    write("0003", "0002", "pass")
    with Migrator(config) as migrator:
        migrator.migrate_all()
        with db.begin() as connection:
            connection.exec_driver_sql("UPDATE tenant_t00.alembic_version SET version_num = '0002'")
            connection.exec_driver_sql(
                "CREATE RULE refuse AS ON UPDATE TO multitenant_runs DO INSTEAD SELECT 1/0"
            )
        report = migrator.migrate_all()
    assert (report.succeeded, report.failed) == (1, 0)


def test_a_callback_that_raises_at_a_failure_does_not_hide_it(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", "op.execute('SELECT nonexistent')")

    def raise_at_failures(_tenant: str, state: MigrationState) -> None:
        if state is MigrationState.FAILED:
            raise RuntimeError

    with Migrator(config) as migrator:
        with pytest.raises(RuntimeError):
            migrator.migrate_all(on_progress=raise_at_failures)
        assert len(migrator.find_members(only_failed=True)) == 1


def test_progress_tells_of_everybody(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 3)
    write("0002", "0001", NOTE)
    with db.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA tenant_t02 CASCADE")
    told: list[tuple[str, str]] = []
    with Migrator(config) as migrator:
        migrator.migrate_tenant("t00")
        migrator.migrate_all(on_progress=lambda tenant, state: told.append((tenant, state.value)))
    assert sorted(told) == [("t00", "skipped"), ("t01", "done"), ("t01", "running"), ("t02", "failed")]


def test_which_runs_have_canaries(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST, down='op.drop_table("items")')
    fleet(config, 1)
    with Migrator(config) as migrator:
        with pytest.raises(ConfigurationError, match="nobody"):
            migrator.rollback(to="base", canary=["nobody"])
        with pytest.raises(ConfigurationError, match="canary_factor"):
            migrator.rollback(to="base", canary=["t00"], canary_factor=2)


def test_a_callback_that_raises_without_a_word(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    write("0002", "0001", NOTE)

    def raise_at_the_end(_tenant: str, state: MigrationState) -> None:
        if state is MigrationState.DONE:
            raise RuntimeError

    with Migrator(config) as migrator:
        with pytest.raises(RuntimeError):
            migrator.migrate_all(concurrency=1, on_progress=raise_at_the_end)
        (run,) = migrator.list_runs()
        assert (run.state, run.succeeded, run.skipped) == (RunState.STOPPED, 1, 1)
        assert "RuntimeError" in str(run.reason)


def test_what_on_error_may_answer(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    write("0002", "0001", "op.execute('SELECT nonexistent')")
    with Migrator(config) as migrator:
        report = migrator.migrate_all(concurrency=1, on_error=lambda _t, _e: "stop")  # type: ignore[arg-type,return-value]
        assert "'stop'" in str(report.stopped)
        assert (report.failed, report.unreached) == (1, 1)
        with pytest.raises(ConfigurationError, match="on_error"):
            migrator.migrate_all(on_error=3)  # type: ignore[arg-type]


# -- what the ledger shows ------------------------------------------------------------------------------


def test_the_shared_migration_is_running_while_it_runs(
    config: TenantConfig, tmp_path: Path, db: Engine
) -> None:
    versions = tmp_path / "shared" / "versions"
    versions.mkdir(parents=True)
    (versions / "s1.py").write_text(
        "from alembic import op\nrevision = 's1'\ndown_revision = None\n"
        "def upgrade():\n    op.execute('SELECT pg_sleep(1)')\n"
    )
    with Migrator(config) as migrator:
        worker = threading.Thread(target=migrator.migrate_shared)
        worker.start()
        with Migrator(config) as other:
            wait_for(lambda: bool(other.list_runs()))
            with db.connect() as connection:
                named = text(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'multitenant run%'"
                )
                wait_for(lambda: bool(connection.scalar(named)))
            assert other.list_runs()[0].state is RunState.RUNNING
        worker.join()
        assert migrator.list_runs()[0].state is RunState.DONE


def test_a_run_of_that_number_in_another_database_is_another(
    config: TenantConfig, write: Write, db: Engine, admin: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", NOTE)
    with Migrator(config) as migrator:
        migrator.migrate_all()
        with db.begin() as connection:
            connection.execute(text("UPDATE multitenant_runs SET finished_at = NULL, state = 'running'"))
        with admin.connect() as connection:
            connection.exec_driver_sql("SET application_name = 'multitenant run 1'")
            assert migrator.list_runs()[0].state is RunState.LOST
            connection.exec_driver_sql("RESET application_name")


def test_who_failed_last_is_told_by_runs_and_not_by_clocks(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    with TenantManager(config) as manager:
        manager.create_tenants(["a", "shared"])
    write("0002", "0001", NOTE)
    with Migrator(config) as migrator:
        assert migrator.migrate_all().succeeded == 2
        with db.begin() as connection:
            connection.execute(
                text("UPDATE multitenant_run_results SET finished_at = now() + interval '1 hour'")
            )
        write("0003", "0002", "op.execute('SELECT nonexistent')")
        migrator.tenant_history.reload()
        assert migrator.migrate_all().failed == 2
        migrator.mark_shared_applied()
        assert [m.id for m in migrator.find_members(only_failed=True)] == ["a", "shared"]


def test_a_ledger_that_cannot_be_written_fails_nobody(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", NOTE)

    def refuse(*_: object, **__: object) -> None:
        raise psycopg.errors.SerializationFailure("could not serialize access")

    monkeypatch.setattr(Ledger, "note_sources", refuse)
    with Migrator(config) as migrator:
        assert migrator.migrate_all().succeeded == 1


# -- canaries -----------------------------------------------------------------------------------------


def test_a_named_canary_without_a_schema_has_failed(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 3)
    write("0002", "0001", NOTE)
    with db.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA tenant_t01 CASCADE")
    with Migrator(config) as migrator:
        report = migrator.migrate_all(canary=["t01"])
    assert "of the canaries, t01 failed" in str(report.stopped)
    assert (report.succeeded, report.failed, report.unreached) == (0, 1, 2)


def test_a_trial_that_fails_stops_the_run(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    with db.begin() as connection:
        connection.exec_driver_sql("INSERT INTO tenant_t00.items (name) VALUES ('x')")
    write("0002", "0001", "op.execute('SELECT 1 / (SELECT count(*) FROM items)')")
    with Migrator(config) as migrator:
        report = migrator.migrate_all(canary=["t00"], canary_factor=2)
    assert "how long an empty schema takes cannot be told" in str(report.stopped)
    assert (report.succeeded, report.unreached) == (1, 1)


# -- others at work -------------------------------------------------------------------------------------


def test_a_rival_passes_on_to_what_is_free(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    names = fleet(config, 8)
    write("0002", "0001", f"{NOTE}\nop.execute('SELECT pg_sleep(0.4)')")
    together = threading.Barrier(2)
    reports = []

    def run() -> None:
        with Migrator(config) as migrator:
            migrator.status()
            together.wait(20)
            reports.append(migrator.migrate_all(concurrency=2))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.succeeded for report in reports) == len(names)
    assert min(report.succeeded for report in reports) >= 2, "one of them has done nearly all of it"


def test_a_tenant_that_another_run_works_on_for_long_has_not_failed(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journey, "PATIENCE_S", 0.2)
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", NOTE)
    with db.connect() as other, Migrator(config) as migrator:
        other.exec_driver_sql("SET application_name = 'multitenant run 99'")
        other.execute(text("SELECT pg_advisory_lock(:key)"), {"key": lock_key("tenant_t00")})
        reports = []
        worker = threading.Thread(target=lambda: reports.append(migrator.migrate_all()))
        worker.start()
        time.sleep(1.5)
        assert not reports
        other.execute(text("SELECT pg_advisory_unlock_all()"))
        worker.join()
        other.exec_driver_sql("RESET application_name")
    assert (reports[0].succeeded, reports[0].failed) == (1, 0)
    assert reports[0].details[0].retries["locked"] >= 2


def test_before_tenant_is_told_once(config: TenantConfig, write: Write, db: Engine) -> None:
    from sqlalchemy_multitenant import MigrationHooks

    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", NOTE)
    told: list[str] = []
    hooks = MigrationHooks(
        before_tenant=lambda _t: told.append("before"), after_tenant=lambda _t, _r: told.append("after")
    )
    real = SchemaRunner._apply
    with Migrator(config, hooks=hooks) as migrator, db.connect() as other:
        other.execute(text("SELECT pg_advisory_lock(:key)"), {"key": lock_key("tenant_t00")})
        attempts: list[int] = []

        def release(self: SchemaRunner, *args: object) -> None:
            attempts.append(1)
            if len(attempts) == 2:
                other.execute(text("SELECT pg_advisory_unlock_all()"))
            real(self, *args)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(SchemaRunner, "_apply", release)
            assert migrator.migrate_all().succeeded == 1
    assert told == ["before", "after"]


# -- revisions that were edited -------------------------------------------------------------------------


def test_an_edit_is_found_from_the_first_created_tenant_on(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    with TenantManager(config) as manager:
        manager.create_tenant("a")
    write("0001", None, FIRST.replace("sa.String", "sa.Text"))
    with Migrator(config) as migrator:
        assert [edit.revision for edit in migrator.edited_revisions()] == ["0001"]
        migrator.migrate_all()
        assert [edit.revision for edit in migrator.edited_revisions()] == ["0001"]
    write("0001", None, FIRST)
    with Migrator(config) as migrator:
        assert migrator.edited_revisions() == []


def test_an_edit_is_found_though_the_run_was_killed(
    config: TenantConfig, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0001", None, FIRST)
    fleet(config, 3)
    write("0002", "0001", NOTE)

    class Killed(BaseException):
        """As SIGKILL: nothing more is done."""

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(FleetRun, "_end", kill)

    def after_one(_tenant: str, state: MigrationState) -> None:
        if state is MigrationState.DONE:
            told.append(state)
            if len(told) == 2:
                raise Killed

    told: list[MigrationState] = []
    with Migrator(config) as migrator, pytest.raises(Killed):
        migrator.migrate_all(concurrency=1, on_progress=after_one)
    write("0002", "0001", NOTE.replace("sa.String", "sa.Integer"))
    with Migrator(config) as migrator:
        assert [edit.revision for edit in migrator.edited_revisions()] == ["0002"]


def test_what_is_noted_is_what_was_run(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", NOTE)
    with Migrator(config) as migrator:
        migrator.status()
        write("0002", "0001", NOTE.replace("sa.String", "sa.Integer"))
        assert migrator.migrate_all().succeeded == 1
        assert [edit.revision for edit in migrator.edited_revisions()] == ["0002"]


def test_a_revision_that_everybody_has_taken_back_may_be_changed(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    write("0002", "0001", NOTE, down=NO_NOTE)
    with Migrator(config) as migrator:
        migrator.migrate_all()
        migrator.rollback("t00", steps=1)
    write("0002", "0001", NOTE.replace("sa.String", "sa.Integer"), down=NO_NOTE)
    with Migrator(config) as migrator:
        assert [edit.revision for edit in migrator.edited_revisions()] == ["0002"]  # t01 has it
        migrator.rollback(to="0001")
        assert migrator.edited_revisions() == []
        migrator.migrate_all()
        assert migrator.edited_revisions() == []


def test_with_the_last_tenant_what_it_had_is_forgotten(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    with TenantManager(config) as manager:
        manager.create_tenant("a")
        manager.drop_tenant("a")
    write("0001", None, FIRST.replace("sa.String", "sa.Text"))
    with TenantManager(config) as manager, Migrator(config) as migrator:
        manager.create_tenant("a")
        assert migrator.edited_revisions() == []


def test_what_is_dropped_is_dropped_whatever_comes_after(
    config: TenantConfig, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0001", None, FIRST)

    def refuse(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the server is away"))

    with TenantManager(config) as manager:
        manager.create_tenant("a")
        with monkeypatch.context() as patched:
            patched.setattr(Membership, "list", refuse)
            manager.drop_tenant("a")
        assert not manager.tenant_exists("a")


def test_a_ledger_that_cannot_be_made_is_told_once(
    config: TenantConfig, write: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write("0001", None, FIRST)

    def refuse(*_: object) -> None:
        raise OperationalError("CREATE", {}, Exception("permission denied"))

    monkeypatch.setattr(Ledger, "install", refuse)
    with TenantManager(config) as manager:
        assert len(manager.create_tenants(["a", "b", "c"]).created) == 3
    assert caplog.text.count("could not be noted") == 1


def test_a_rollback_whose_tenants_cannot_be_listed_afterwards_has_its_report(
    config: TenantConfig, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0001", None, FIRST, down='op.drop_table("items")')
    fleet(config, 1)
    find, calls = Migrator.find_members, []

    def find_once(self: Migrator, *args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise RuntimeError("the directory is down")
        return find(self, *args, **options)

    monkeypatch.setattr(Migrator, "find_members", find_once)
    with Migrator(config) as migrator:
        assert migrator.rollback(to="base").succeeded == 1


# -- going back -----------------------------------------------------------------------------------------


def test_steps_back_from_wherever_a_tenant_is(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST, down='op.drop_table("items")')
    fleet(config, 3)
    write("0002", "0001", NOTE, down=NO_NOTE)
    with Migrator(config) as migrator:
        migrator.rollback("t00", to="base")
        migrator.migrate_tenant("t02")
        assert [(p.plan.start, p.tenants) for p in migrator.plan_rollback(steps=2)] == [(("0002",), ("t02",))]
        report = migrator.rollback(steps=2)
        assert [r.state.value for r in report.details] == ["skipped", "failed", "done"]
        assert "it has 1 revisions, and 2 were to be taken back" in str(report.failures[0].error)


def test_steps_back_from_where_branches_meet(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    write("0002", "0001", "pass")
    write("0003", "0001", "pass")
    write("0004", ("0002", "0003"), "pass")
    fleet(config, 1)
    with Migrator(config) as migrator:
        (failure,) = migrator.rollback(steps=1).failures
        assert "branches meet at 0004" in str(failure.error)
        assert migrator.rollback(to="0001").succeeded == 1


def test_a_shared_revision_that_tenants_build_on_stays(
    config: TenantConfig, write: Write, tmp_path: Path
) -> None:
    versions = tmp_path / "shared" / "versions"
    versions.mkdir(parents=True)
    (versions / "s1.py").write_text(
        "from alembic import op\nrevision = 's1'\ndown_revision = None\n"
        "def upgrade():\n    op.execute('CREATE TABLE plans (id int)')\n"
        "def downgrade():\n    op.execute('DROP TABLE plans')\n"
    )
    write("0001", None, FIRST, imports="requires_shared = 's1'")
    with Migrator(config) as migrator, TenantManager(config) as manager:
        migrator.migrate_shared()
        manager.create_tenant("a")
        with pytest.raises(MigrationError, match="'0001' builds on it"):
            migrator.rollback_shared(to="base")
        manager.drop_tenant("a")
        assert migrator.rollback_shared(to="base").state is MigrationState.DONE
