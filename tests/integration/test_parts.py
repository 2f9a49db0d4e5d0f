"""Revisions that end their transaction (autocommit_block): nothing of them is lost, or done twice."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text

from sqlalchemy_multitenant import MigrationError, MigrationHooks, Migrator, TenantConfig, TenantManager
from sqlalchemy_multitenant.migrations import parts
from sqlalchemy_multitenant.migrations.guards import SchemaLockedError
from sqlalchemy_multitenant.migrations.queue import WorkQueue
from sqlalchemy_multitenant.migrations.report import MigrationState
from sqlalchemy_multitenant.migrations.runner import SchemaRunner
from tests.integration.fleet import FIRST, Write, fleet, rows

BLOCK = "with op.get_context().autocommit_block():\n"
INDEX = '    op.create_index("by_name", "items", ["name"], unique=True, postgresql_concurrently=True)\n'
NO_INDEX = '    op.drop_index("by_name", postgresql_concurrently=True)\n'
NO_NOTE = 'op.drop_column("items", "note")'
ADD_NOTE = 'op.add_column("items", sa.Column("note", sa.String))\n'
DOUBLED = "INSERT INTO tenant_t00.items (name) VALUES ('a'), ('a')"
COUNT = "op.execute('UPDATE counter SET n = n + 1')"
DEADLOCK = "op.execute(\"DO $$ BEGIN RAISE USING ERRCODE = '40P01'; END $$\")"
FIRST_WITH_COUNTER = f"{FIRST}\nop.execute('CREATE TABLE counter AS SELECT 0 AS n')"


def do(db: Engine, *statements: str) -> None:
    with db.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def indexes(db: Engine, tenant: str = "t00") -> list[object]:
    sql = f"SELECT indexdef FROM pg_indexes WHERE schemaname = 'tenant_{tenant}' AND indexname = 'by_name'"
    return rows(db, tenant, sql)


def at(db: Engine, tenant: str = "t00") -> list[object]:
    return rows(db, tenant, "SELECT version_num FROM alembic_version")


@pytest.fixture
def half_done(config: TenantConfig, write: Write, db: Engine) -> TenantConfig:
    """One tenant, whose second revision has added its column, and cannot build its index."""
    write("0001", None, FIRST, down='op.drop_table("items")')
    fleet(config, 1)
    do(db, DOUBLED)
    write("0002", "0001", f"{ADD_NOTE}{BLOCK}{INDEX}", down="op.drop_column('items', 'note')")
    with Migrator(config) as migrator:
        assert migrator.migrate_all().failed == 1
    return config


# -- what was left half done ------------------------------------------------------------------------


def test_nothing_else_is_run_past_a_revision_that_is_half_done(half_done: TenantConfig, db: Engine) -> None:
    with Migrator(half_done) as migrator:
        (failure,) = migrator.rollback(to="base").failures
        assert "0002" in str(failure.error)
        assert "half applied" in str(failure.error)
        assert "`multitenant migrate` finish it" in str(failure.error)
        do(db, "DELETE FROM tenant_t00.items")
        assert migrator.migrate_all().succeeded == 1
        assert migrator.rollback(to="base").succeeded == 1
        assert migrator.migrate_all().succeeded == 1
    assert len(indexes(db)) == 1


def test_who_marks_it_as_applied_vouches_for_it(half_done: TenantConfig, db: Engine) -> None:
    do(db, "DROP INDEX tenant_t00.by_name", "DELETE FROM tenant_t00.items")
    with Migrator(half_done) as migrator:
        assert migrator.mark_applied().succeeded == 1
        assert migrator.rollback(to="0001").succeeded == 1
        assert migrator.migrate_all().succeeded == 1
    assert len(indexes(db)) == 1


def test_a_tenant_that_comes_again_has_no_past(half_done: TenantConfig, db: Engine) -> None:
    with TenantManager(half_done) as manager:
        manager.drop_tenant("t00")
        manager.create_tenant("t00")
    with Migrator(half_done) as migrator:
        do(db, "DROP INDEX tenant_t00.by_name")
        assert migrator.rollback("t00", steps=1).succeeded == 1
        assert migrator.migrate_all().succeeded == 1
    assert len(indexes(db)) == 1
    assert rows(db, "t00", "SELECT note FROM items") == []


def test_a_downgrade_that_is_half_done_comes_first(config: TenantConfig, write: Write, db: Engine) -> None:
    down = f"op.execute('UPDATE counter SET n = n - 1')\n{BLOCK}    op.execute('DROP INDEX missing')"
    write("0001", None, FIRST_WITH_COUNTER)
    write("0002", "0001", COUNT, down=down)
    fleet(config, 1)
    write("0003", "0002", f"{BLOCK}    op.execute('SELECT 1')")
    with Migrator(config) as migrator:
        assert migrator.rollback(to="0001").failed == 1
        (failure,) = migrator.migrate_all().failures
        assert "half undone" in str(failure.error)
        do(db, "CREATE INDEX missing ON tenant_t00.items (id)")
        assert migrator.rollback(to="0001").succeeded == 1
        assert rows(db, "t00", "SELECT n FROM counter") == [0]
        assert migrator.migrate_all().succeeded == 1
    assert rows(db, "t00", "SELECT n FROM counter") == [1]


# -- indexes ------------------------------------------------------------------------------------------


def test_an_index_of_the_name_that_is_another_is_not_taken_for_it(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    do(db, "CREATE INDEX by_name ON tenant_t00.items (id)")
    write("0002", "0001", f"{BLOCK}{INDEX}")
    with Migrator(config) as migrator:
        for _ in range(2):
            (failure,) = migrator.migrate_all().failures
            assert "already exists" in str(failure.error)
        do(db, "DROP INDEX tenant_t00.by_name")
        assert migrator.migrate_all().succeeded == 1
    assert "UNIQUE" in str(indexes(db))


@pytest.mark.parametrize("is_made", [True, False])
def test_an_index_whose_end_was_not_noted(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    """The connection is lost between the two."""
    write("0001", None, FIRST)
    if not is_made:
        write("0002", "0001", 'op.create_index("by_name", "items", ["name"])')
    fleet(config, 1)
    write("0003", "0001" if is_made else "0002", f"{BLOCK}{INDEX if is_made else NO_INDEX}")
    send = parts.InParts._send_patiently
    lost: list[str] = []

    def lose_once(self: parts.InParts, sql: str) -> None:
        send(self, sql)
        if not lost:
            lost.append(sql)
            self.driver.close()
            raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(parts.InParts, "_send_patiently", lose_once)
    with Migrator(config) as migrator:
        report = migrator.migrate_all()
        assert report.succeeded == 1, report.failures
    assert lost
    assert len(indexes(db)) == is_made


def test_what_follows_an_index_waits_no_longer_than_else(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    note = "    op.execute(\"INSERT INTO items (name) VALUES (current_setting('lock_timeout'))\")"
    write("0002", "0001", f"{BLOCK}{INDEX}{note}")
    with Migrator(config) as migrator:
        assert migrator.migrate_all().succeeded == 1
    assert rows(db, "t00", "SELECT name FROM items") == ["1s"]


# -- trying again -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [COUNT, "op.execute('DO $$ BEGIN UPDATE counter SET n = n + 1; END $$')"])
def test_rows_are_changed_together_with_their_note(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    write("0001", None, FIRST_WITH_COUNTER)
    fleet(config, 1)
    write("0002", "0001", f"{BLOCK}    {count}\n    op.execute('VACUUM items')")
    send = parts.send_all  # type: ignore[attr-defined]
    lost: list[list[bytes]] = []

    def lose_once(driver: psycopg.Connection[object], messages: list[bytes]) -> object:
        answer = send(driver, messages)
        if not lost and any(b"counter" in message for message in messages):
            lost.append(messages)
            driver.close()
            raise psycopg.OperationalError("the connection is lost")
        return answer

    monkeypatch.setattr(parts, "send_all", lose_once)
    with Migrator(config) as migrator:
        assert migrator.migrate_all().succeeded == 1
    assert lost
    assert rows(db, "t00", "SELECT n FROM counter") == [1]


ONLINE = "op.get_bind()\n"


def test_what_alembic_runs_outside_of_transactions_is_not_tried_again_by_itself(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST_WITH_COUNTER)
    fleet(config, 1)
    write("0002", "0001", f"{ONLINE}{COUNT}\n{BLOCK}    op.execute('SELECT 1')\n{DEADLOCK}")
    with Migrator(config) as migrator:
        (failure,) = migrator.migrate_all().failures
    assert failure.attempts == 1
    assert "begins from its first line again" in str(failure.error)
    assert rows(db, "t00", "SELECT n FROM counter") == [1]


def test_an_error_that_is_swallowed_is_not_committed(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    swallowed = "try:\n    op.execute('SELECT nonexistent')\nexcept Exception:\n    pass"
    write("0002", "0001", f"{ONLINE}{BLOCK}    op.execute('SELECT 1')\n{ADD_NOTE}{swallowed}")
    with Migrator(config) as migrator:
        (failure,) = migrator.migrate_all().failures
    assert "has not rolled it back" in str(failure.error)
    assert at(db) == ["0001"]


def test_a_lock_that_a_block_gives_up_is_noticed_where_others_have_come(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST_WITH_COUNTER)
    fleet(config, 1)
    write("0002", "0001", f"{COUNT}\n{BLOCK}    op.execute('SELECT pg_advisory_unlock_all()')\n{ADD_NOTE}")
    begin = parts.InParts._begin_again

    with Migrator(config) as migrator, pytest.MonkeyPatch.context() as patched:

        def come(self: parts.InParts, *args: object, **kwargs: object) -> None:
            do(db, "UPDATE tenant_t00.alembic_version SET version_num = 'elsewhere'")
            begin(self, *args, **kwargs)  # type: ignore[arg-type]

        patched.setattr(parts.InParts, "_begin_again", come)
        (failure,) = migrator.migrate_all().failures
    assert "elsewhere" in str(failure.error)
    assert rows(db, "t00", "SELECT n FROM counter") == [1]


# -- what is told -------------------------------------------------------------------------------------


def test_where_a_tenant_is_that_went_a_part_of_the_way(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", ADD_NOTE)
    write("0003", "0002", f"{BLOCK}    op.execute('VACUUM items')")
    write("0004", "0003", f"{BLOCK}{INDEX}")
    do(db, DOUBLED)
    with Migrator(config) as migrator:
        report = migrator.migrate_all()
        (failure,) = report.failures
        assert (failure.start, failure.end, failure.applied) == (("0001",), ("0003",), ("0002", "0003"))
        assert at(db) == ["0003"]
        assert report.run is not None
        (told,) = migrator.get_run(report.run)[1]
        assert (told.start, told.end) == (("0001",), ("0003",))


def test_a_second_attempt_tells_of_the_first_as_well(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", ADD_NOTE)
    write("0003", "0002", f"{BLOCK}    op.execute('VACUUM items')")
    send = parts.send_all  # type: ignore[attr-defined]
    lost: list[list[bytes]] = []

    def lose_once(driver: psycopg.Connection[object], messages: list[bytes]) -> object:
        if not lost and messages == [b"VACUUM items"]:
            lost.append(messages)
            driver.close()
            raise psycopg.OperationalError("the connection is lost")
        return send(driver, messages)

    monkeypatch.setattr(parts, "send_all", lose_once)
    with Migrator(config) as migrator:
        report = migrator.migrate_all()
        (done,) = report.details
        assert (done.state, done.start, done.end) == (MigrationState.DONE, ("0001",), ("0003",))
        assert done.applied == ("0002", "0003")
        assert report.run is not None
        (told,) = migrator.get_run(report.run)[1]
        assert (told.start, told.end, told.attempts) == (("0001",), ("0003",), 2)


def test_steps_back_are_counted_from_where_they_began(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0001", None, FIRST)
    for number in (2, 3, 4):
        down = f"{BLOCK}    op.execute('VACUUM items')"
        write(f"000{number}", f"000{number - 1}", "op.execute('SELECT 1')", down=down)
    fleet(config, 1)
    send = parts.send_all  # type: ignore[attr-defined]
    sent: list[list[bytes]] = []

    def lose_the_second(driver: psycopg.Connection[object], messages: list[bytes]) -> object:
        if messages == [b"VACUUM items"]:
            sent.append(messages)
            if len(sent) == 2:
                driver.close()
                raise psycopg.OperationalError("the connection is lost")
        return send(driver, messages)

    monkeypatch.setattr(parts, "send_all", lose_the_second)
    with Migrator(config) as migrator:
        report = migrator.rollback("t00", steps=2)
        assert report.succeeded == 1, report.failures
    assert at(db) == ["0002"]


def test_hooks_are_told_of_each_revision_once(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    for number in (2, 3):
        body = f"op.execute('SELECT 1')\n{BLOCK}    op.execute('SELECT 2')\nop.execute('SELECT 3')"
        write(f"000{number}", f"000{number - 1}", body)
    told: list[tuple[str, str]] = []
    hooks = MigrationHooks(
        before_migration=lambda _tenant, revision: told.append(("before", revision)),
        after_migration=lambda _tenant, revision, _ms: told.append(("after", revision)),
    )
    with Migrator(config, hooks=hooks) as migrator:
        assert migrator.migrate_all().succeeded == 1
    assert told == [("before", "0002"), ("after", "0002"), ("before", "0003"), ("after", "0003")]


@pytest.mark.parametrize(
    "ends",
    ["op.execute('SELECT nonexistent')", "op.execute(\"DO $$ BEGIN RAISE USING ERRCODE = '40P01'; END $$\")"],
)
def test_a_revision_that_has_ended_its_transactions_is_recorded_at_once(
    config: TenantConfig, write: Write, db: Engine, ends: str
) -> None:
    """The next one fails, for good or for a while."""
    write("0001", None, FIRST_WITH_COUNTER)
    fleet(config, 1)
    write("0002", "0001", f"{ONLINE}{COUNT}\n{BLOCK}    op.execute('VACUUM items')")
    write("0003", "0002", ends)
    with Migrator(config) as migrator:
        for _ in range(2):
            (failure,) = migrator.migrate_all().failures
            assert failure.end == ("0002",)
    assert rows(db, "t00", "SELECT n FROM counter") == [1]
    assert at(db) == ["0002"]


def test_a_note_ends_with_its_revision(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", f"{ADD_NOTE}{BLOCK}    op.execute('VACUUM items')", down=NO_NOTE)
    write("0003", "0002", f"{ONLINE}{BLOCK}    op.execute('SELECT nonexistent')")
    with Migrator(config) as migrator:
        assert migrator.migrate_all().failed == 1
        assert at(db) == ["0002"]
        assert migrator.rollback(to="0001").succeeded == 1
    write("0003", "0002", "pass")
    with Migrator(config) as migrator:
        assert migrator.migrate_all().succeeded == 1


def test_what_has_done_nothing_is_no_half(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST, down='op.drop_table("items")')
    fleet(config, 1)
    do(db, DOUBLED)
    write("0002", "0001", f"{BLOCK}{INDEX}")
    with Migrator(config) as migrator:
        assert migrator.migrate_all().failed == 1
        assert migrator.rollback(to="base").succeeded == 1
        assert migrator.migrate_all().succeeded == 1


def test_a_block_that_was_taken_out_of_a_revision_that_is_half_done(
    half_done: TenantConfig, write: Write
) -> None:
    write("0002", "0001", ADD_NOTE)
    with Migrator(half_done) as migrator:
        (failure,) = migrator.migrate_all().failures
    assert "has no autocommit_block any more" in str(failure.error)


def test_a_concurrent_index_needs_a_name(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", f"{BLOCK}    op.execute('CREATE INDEX CONCURRENTLY ON items (name)')")
    with Migrator(config) as migrator:
        (failure,) = migrator.migrate_all().failures
    assert "needs a name" in str(failure.error)


def test_what_a_revision_sets_is_set_again(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    do(db, DOUBLED)
    sets = "op.execute(\"SET app.who = 'me'\")\n"
    after = "op.execute(\"INSERT INTO items (name) VALUES (current_setting('app.who'))\")"
    write("0002", "0001", f"{sets}{ADD_NOTE}{BLOCK}{INDEX}{after}")
    with Migrator(config) as migrator:
        assert migrator.migrate_all().failed == 1
        do(db, "DELETE FROM tenant_t00.items")
        report = migrator.migrate_all()
        assert report.succeeded == 1, report.failures
    assert rows(db, "t00", "SELECT name FROM items") == ["me"]


def test_a_tenant_that_went_a_part_of_the_way_when_the_run_was_stopped(
    config: TenantConfig, write: Write, db: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had gone back to the queue, since another one had come."""
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", f"{ADD_NOTE}{BLOCK}    op.execute('VACUUM items')")
    write("0003", "0002", f"{BLOCK}    op.execute('VACUUM items')\n{DEADLOCK}")
    real, calls = SchemaRunner._apply, []

    def be_locked(self: SchemaRunner, *args: Any) -> None:
        calls.append(args)
        if len(calls) > 1:
            raise SchemaLockedError("t00")
        real(self, *args)

    monkeypatch.setattr(SchemaRunner, "_apply", be_locked)
    monkeypatch.setattr(WorkQueue, "again", lambda self, _job, _s: self.stop())
    with Migrator(config) as migrator:
        report = migrator.migrate_all()
        (failure,) = report.failures
        assert (failure.start, failure.end, failure.applied) == (("0001",), ("0002",), ("0002",))
        assert [m.id for m in migrator.find_members(only_failed=True)] == ["t00"]


def test_an_unknown_half_is_never_guessed(half_done: TenantConfig, write: Write, db: Engine) -> None:
    """The revision that is half done is in no plan any more."""
    with db.begin() as connection:
        connection.execute(text("UPDATE multitenant_steps SET revision = 'gone'"))
    with Migrator(half_done) as migrator, pytest.raises(MigrationError, match="gone"):
        migrator.migrate_tenant("t00")
