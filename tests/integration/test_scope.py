"""The scope of a transaction: what it survives, what it refuses, what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time

import pytest
from sqlalchemy import (
    DDL,
    URL,
    Connection,
    Engine,
    Executable,
    Integer,
    insert,
    literal_column,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from sqlalchemy_multitenant import (
    AsyncTenantManager,
    ConfigurationError,
    InvalidTenantIdError,
    NoTenantError,
    TenantManager,
    TenantNotFoundError,
    TenantSuspendedError,
)
from tests.conftest import MakeConfig, MakeHarness
from tests.harness import Harness
from tests.models import Plan, User


def names(on: Session | Connection) -> list[str]:
    return list(on.execute(text("SELECT name FROM users ORDER BY name")).scalars())


@pytest.fixture(autouse=True)
def rows(plain: Engine) -> None:
    with plain.begin() as connection:
        connection.exec_driver_sql("INSERT INTO tenant_a.users (name, mood) VALUES ('ada', 'HAPPY')")
        connection.exec_driver_sql("INSERT INTO tenant_b.users (name, mood) VALUES ('bob', 'GRUMPY')")


def leave_behind(harness: Harness, *statements: str) -> None:
    """Run statements as tenant a, commit, and give the connection back."""

    def body(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement))
        connection.commit()

    harness.connection("a", body)


@pytest.mark.parametrize(
    "statement",
    [
        "SET search_path = tenant_a",
        "SELECT set_config('search_path', 'tenant_a', false)",
        "SET SESSION search_path TO 'public'",
    ],
)
def test_a_search_path_of_the_applications_own_does_not_survive(harness: Harness, statement: str) -> None:
    leave_behind(harness, statement)
    assert harness.connection("b", names) == ["bob"]
    path = harness.connection("b", lambda c: c.scalar(text("SHOW search_path")))
    assert path == "tenant_b, public, pg_temp"


def test_a_role_of_the_applications_own_does_not_survive(harness: Harness, admin: Engine) -> None:
    with admin.connect() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS somebody")
        connection.exec_driver_sql("CREATE ROLE somebody")
    me = harness.connection("a", lambda c: c.scalar(text("SELECT current_user")))
    leave_behind(harness, "SET ROLE somebody")
    assert harness.connection("b", lambda c: c.scalar(text("SELECT current_user"))) == me
    leave_behind(harness, "SET SESSION AUTHORIZATION somebody")
    assert harness.connection("b", lambda c: c.scalar(text("SELECT session_user"))) == me


def test_settings_do_not_survive_even_a_rollback_of_the_next_user(harness: Harness) -> None:
    leave_behind(harness, "SET statement_timeout = 12345", "SELECT set_config('app.user', 'ada', false)")

    def look(connection: Connection) -> list[object]:
        seen = []
        for _ in range(2):
            seen.append(connection.scalar(text("SHOW statement_timeout")))
            seen.append(connection.scalar(text("SELECT current_setting('app.user', true)")))
            connection.rollback()
        return seen

    assert harness.connection("b", look) in (["0", None] * 2, ["0", ""] * 2)


def test_temporary_tables_do_not_survive_nor_shadow(harness: Harness) -> None:
    leave_behind(
        harness,
        "CREATE TEMP TABLE users AS SELECT * FROM users",
        "CREATE TEMP TABLE staging AS SELECT 'ada' AS name",
    )
    assert harness.connection("b", names) == ["bob"]
    with pytest.raises(DBAPIError, match="staging"):
        harness.connection("b", lambda c: c.execute(text("SELECT * FROM staging")))

    def shadow(connection: Connection) -> list[str]:
        connection.execute(text("CREATE TEMP TABLE users AS SELECT 'nobody' AS name"))
        return names(connection)

    assert harness.connection("b", shadow) == ["bob"]


def test_session_locks_and_last_values_do_not_survive(harness: Harness) -> None:
    leave_behind(harness, "SELECT pg_advisory_lock(42)", "SELECT nextval('users_id_seq')")

    def look(connection: Connection) -> int | None:
        return connection.scalar(
            text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42")
        )

    assert harness.connection("b", look) == 0
    with pytest.raises(DBAPIError, match="lastval is not yet defined"):
        harness.connection("b", lambda c: c.execute(text("SELECT lastval()")))


@pytest.mark.parametrize("via", ["connection", "session", "engine"])
def test_autocommit_is_refused(tenants: TenantManager, via: str) -> None:
    db = tenants.get_db("a")
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        if via == "connection":
            with db.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("SELECT 1"))
        elif via == "session":
            with db.session() as session:
                session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        else:
            with db.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                connection.execute(text("SELECT 1"))


def test_autocommit_is_refused_under_asyncio(harness: Harness) -> None:
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        harness.connection("a", names, execution_options={"isolation_level": "AUTOCOMMIT"})
    assert harness.connection("b", names) == ["bob"]


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_isolation_levels_are_scoped(harness: Harness, level: str) -> None:
    def body(connection: Connection) -> tuple[object, ...]:
        shown = connection.scalar(text("SHOW transaction_isolation"))
        return shown, connection.get_isolation_level(), names(connection)

    options = {"isolation_level": level}
    assert harness.connection("a", body, execution_options=options) == (level.lower(), level, ["ada"])
    plain = harness.connection("b", body)
    assert plain == ("read committed", "READ COMMITTED", ["bob"])


def test_read_only_and_deferrable_are_scoped(harness: Harness) -> None:
    options = {"isolation_level": "SERIALIZABLE", "postgresql_readonly": True, "postgresql_deferrable": True}

    def body(connection: Connection) -> tuple[object, ...]:
        read_only = connection.scalar(text("SHOW transaction_read_only"))
        return read_only, connection.scalar(text("SHOW transaction_deferrable")), names(connection)

    assert harness.connection("a", body, execution_options=options) == ("on", "on", ["ada"])
    assert harness.connection("b", body) == ("off", "off", ["bob"])


def test_savepoints_keep_the_scope(harness: Harness) -> None:
    def body(session: Session) -> list[list[str]]:
        seen = []
        with session.begin_nested() as savepoint:
            session.execute(text("SET LOCAL search_path TO tenant_b"))
            savepoint.rollback()
        seen.append(names(session))
        with session.begin_nested():
            seen.append(names(session))
        seen.append(names(session))
        return seen

    assert harness.session("a", body) == [["ada"]] * 3


def test_streaming_is_scoped(harness: Harness, plain: Engine) -> None:
    with plain.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO tenant_a.users (name, mood) SELECT 'a' || i, 'HAPPY' FROM generate_series(1, 500) i"
        )

    def stream(connection: Connection) -> int:
        result = connection.execution_options(stream_results=True, max_row_buffer=50).execute(
            select(User.name)
        )
        return sum(name.startswith("a") for (name,) in result)

    def by_parts(session: Session) -> int:
        users = session.scalars(select(User).execution_options(yield_per=100))
        return sum(user.name.startswith("a") for user in users)

    assert harness.connection("a", stream) == 501
    assert harness.session("a", by_parts) == 501
    assert harness.session("b", lambda s: s.scalars(select(User.name)).all()) == ["bob"]


def test_a_stream_as_the_first_statement_for_an_unknown_tenant_raises(harness: Harness) -> None:
    with pytest.raises(TenantNotFoundError):
        harness.connection(
            "ghost", lambda c: c.execution_options(stream_results=True).execute(select(User.name)).all()
        )


def test_copy_is_scoped(tenants: TenantManager) -> None:
    def copy_out(connection: Connection) -> str:
        driver = connection.connection.driver_connection
        with driver.cursor().copy("COPY (SELECT name FROM users) TO STDOUT") as copy:
            return b"".join(copy).decode().strip()

    with tenants.get_db("a").connect() as connection:
        connection.execute(text("SELECT 1"))
        assert copy_out(connection) == "ada"
    with tenants.get_db("b").connect() as connection:
        connection.begin()
        assert copy_out(connection) == "bob"
        driver = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("COPY plans (name) FROM STDIN") as copy:
            copy.write_row(("free",))
        connection.commit()
    with tenants.get_db("a").connect() as connection:
        assert connection.scalar(select(Plan.name)) == "free"


def test_copy_outside_a_transaction_raises(tenants: TenantManager) -> None:
    with tenants.get_db("a").connect() as connection:
        driver = connection.connection.driver_connection
        with pytest.raises(NoTenantError), driver.cursor().copy("COPY users TO STDOUT"):
            pass
        with pytest.raises(NoTenantError), driver.pipeline():
            driver.execute("SELECT 1")
        with pytest.raises(NoTenantError):
            driver.execute("SELECT 1")


def test_executemany_is_scoped(harness: Harness) -> None:
    def body(connection: Connection) -> list[str]:
        connection.execute(
            text("INSERT INTO users (name, mood) VALUES (:n, 'HAPPY')"), [{"n": "x"}, {"n": "y"}]
        )
        return names(connection)

    assert harness.connection("a", body) == ["ada", "x", "y"]
    assert harness.connection("b", names) == ["bob"]


@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT",
        "rollback",
        "COMMIT AND CHAIN",
        "SELECT 1; COMMIT; BEGIN",
        "/* a /* nested */ comment */ commit",
        "-- hello\nABORT",
        "END",
        "begin",
        "START  TRANSACTION",
        "PREPARE TRANSACTION 'x'",
    ],
)
def test_transaction_control_as_text_is_refused(harness: Harness, statement: str) -> None:
    with pytest.raises(NoTenantError, match="SQL text"):
        harness.connection("a", lambda c: c.exec_driver_sql(statement))
    with pytest.raises(NoTenantError, match="SQL text"):
        harness.session("a", lambda s: s.execute(text(statement)))
    assert harness.connection("b", names) == ["bob"]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 'COMMIT; ROLLBACK'",
        "SELECT 1 AS commit",
        "DO $$ BEGIN PERFORM 1; END $$",
        "SAVEPOINT s",
        "SELECT $x$;commit;$x$",
        'SELECT 1 AS ";commit"',
    ],
)
def test_what_only_looks_like_transaction_control_is_let_through(harness: Harness, statement: str) -> None:
    harness.connection("a", lambda c: c.exec_driver_sql(statement) and None)


def test_a_transaction_that_ended_behind_our_back_is_noticed(tenants: TenantManager) -> None:
    """Even where the driver is used past SQLAlchemy."""
    with tenants.get_db("a").connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.connection.driver_connection.execute("COMMIT")
        with pytest.raises(NoTenantError):
            connection.execute(text("SELECT name FROM users"))


def test_two_phase_transactions_are_refused(tenants: TenantManager) -> None:
    with tenants.get_db("a").connect() as connection, pytest.raises(ConfigurationError, match="two-phase"):
        connection.begin_twophase()


def test_a_begin_without_a_statement_is_harmless(harness: Harness) -> None:
    for _ in range(3):
        harness.connection("a", lambda c: c.begin() and None)
        harness.connection("a", lambda c: c.begin().commit())
        harness.connection("ghost", lambda c: None)
    assert harness.connection("b", names) == ["bob"]


def test_suspension_by_plain_sql_holds_at_the_next_transaction(harness: Harness, plain: Engine) -> None:
    assert harness.connection("a", names) == ["ada"]
    with plain.begin() as connection:
        connection.exec_driver_sql("UPDATE multitenant_tenants SET status = 'suspended' WHERE id = 'a'")
    with pytest.raises(TenantSuspendedError):
        harness.connection("a", names)
    assert harness.connection("b", names) == ["bob"]
    with plain.begin() as connection:
        connection.exec_driver_sql("UPDATE multitenant_tenants SET status = 'active' WHERE id = 'a'")
    assert harness.connection("a", names) == ["ada"]


def test_a_move_to_another_schema_holds_at_the_next_transaction(harness: Harness, plain: Engine) -> None:
    def across(connection: Connection) -> list[list[str]]:
        seen = [names(connection)]
        connection.rollback()
        with plain.begin() as other:
            other.exec_driver_sql("ALTER SCHEMA tenant_a RENAME TO moved")
            other.exec_driver_sql("UPDATE multitenant_tenants SET schema_name = 'moved' WHERE id = 'a'")
        seen.append(names(connection))
        seen.append([str(connection.scalar(text("SELECT current_schema()")))])
        return seen

    assert harness.connection("a", across) == [["ada"], ["ada"], ["moved"]]


def test_a_deleted_record_is_refused(harness: Harness, plain: Engine) -> None:
    assert harness.connection("a", names) == ["ada"]
    with plain.begin() as connection:
        connection.exec_driver_sql("DELETE FROM multitenant_tenants WHERE id = 'a'")
    with pytest.raises(TenantNotFoundError):
        harness.connection("a", names)
    with plain.begin() as connection:
        connection.exec_driver_sql("TRUNCATE multitenant_tenants")
    with pytest.raises(TenantNotFoundError):
        harness.connection("b", names)


def test_many_changes_at_once_disturb_nobody(harness: Harness, plain: Engine) -> None:
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            with plain.begin() as connection:
                connection.exec_driver_sql("UPDATE multitenant_tenants SET status = status WHERE id = 'b'")
            time.sleep(0.002)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for _ in range(150):
            assert harness.connection("a", names) == ["ada"]
    finally:
        stop.set()
        thread.join()


def test_a_terminated_backend_is_an_ordinary_error(harness: Harness, plain: Engine) -> None:
    def kill(connection: Connection) -> None:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with plain.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        time.sleep(0.05)
        connection.execute(text("SELECT 1"))

    with pytest.raises(DBAPIError) as caught:
        harness.connection("a", kill)
    assert caught.value.connection_invalidated
    assert harness.connection("b", names) == ["bob"]


@pytest.mark.parametrize("pre_ping", [False, True])
def test_a_connection_that_died_in_the_pool_is_replaced_unseen(
    make_harness_: MakeHarness, plain: Engine, pre_ping: bool
) -> None:
    harness = make_harness_(pool_size=1, pre_ping=pre_ping)
    pid = harness.connection("a", lambda c: c.scalar(text("SELECT pg_backend_pid()")))
    with plain.connect() as other:
        other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    time.sleep(0.05)
    assert harness.connection("a", names) == ["ada"]
    assert harness.connection("b", names) == ["bob"]


def test_a_timeout_of_the_server_passes_through(harness: Harness) -> None:
    def slow(connection: Connection) -> None:
        connection.execute(text("SET LOCAL statement_timeout = 20"))
        connection.execute(text("SELECT pg_sleep(5)"))

    with pytest.raises(OperationalError if harness.name != "asyncpg" else DBAPIError, match="timeout"):
        harness.connection("a", slow)
    assert harness.connection("b", names) == ["bob"]


def test_a_table_that_shadows_a_tenants_is_refused_at_start(
    make_harness_: MakeHarness, plain: Engine
) -> None:
    with plain.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE public.users (name text)")
    with pytest.raises(ConfigurationError, match=r"public\.users"):
        make_harness_(pool_size=1).connection("a", names)


def test_the_shared_schema_has_a_handle_of_its_own(tenants: TenantManager) -> None:
    shared = tenants.get_shared_db()
    shared.execute(insert(Plan).values(name="pro"))
    assert shared.scalars(select(Plan.name)).all() == ["pro"]
    with pytest.raises(DBAPIError, match="users"):
        shared.execute(text("SELECT * FROM users"))
    joined = select(User.name, Plan.name).join(Plan, Plan.id == User.plan_id, isouter=True)
    assert [tuple(row) for row in tenants.get_db("a").execute(joined)] == [("ada", None)]


def test_percent_and_quotes_in_schema_names(make_config: MakeConfig) -> None:
    config = make_config(schema_name="we\"ird %s '{id}' \\ x")
    with TenantManager(config) as manager:
        manager.create_tenant("odd-one")
        with manager.get_db("odd-one").begin() as session:
            session.add(User(name="odd"))
        assert manager.get_db("odd-one").scalars(select(User.name)).all() == ["odd"]
        manager.drop_tenant("odd-one")
        with pytest.raises(TenantNotFoundError):
            manager.get_db("odd-one").scalars(select(User.name))


def test_one_shot_results_outlive_their_connection(tenants: TenantManager) -> None:
    db = tenants.get_db("a")
    updated = db.execute(text("UPDATE users SET name = 'eve'"))
    assert updated.rowcount == 1  # type: ignore[attr-defined]
    (user,) = db.scalars(select(User))
    assert user.name == "eve"
    assert db.scalar(select(User.name)) == "eve"
    assert db.scalar(select(User.name).where(User.id == 999)) is None
    result = db.execute(select(User.id, User.name))
    assert [row.name for row in result] == ["eve"]


def test_a_role_that_may_not_use_the_schema_is_told_and_sees_nothing_else(
    make_harness_: MakeHarness, admin: Engine, plain: Engine, url: URL
) -> None:
    """PostgreSQL would pass over the schema in silence, and run everything in the shared one."""
    role = f"app_{secrets.token_hex(4)}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
    try:
        with plain.begin() as connection:
            connection.exec_driver_sql(f"GRANT SELECT ON multitenant_tenants TO {role}")
            connection.exec_driver_sql(f"GRANT CREATE ON SCHEMA public TO {role}")
            connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA tenant_b TO {role}")
        # The role comes with the session, so that this holds on servers that want passwords, too.
        harness = make_harness_(pool_size=1, url=url.set(username=role))
        with pytest.raises(ConfigurationError, match="GRANT USAGE"):
            harness.connection("a", lambda c: c.scalar(text("SELECT current_schema()")))
        assert harness.connection("b", lambda c: c.scalar(text("SELECT current_schema()"))) == "tenant_b"
    finally:
        with plain.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP ROLE {role}")


@pytest.mark.parametrize(
    "statement",
    [
        DDL("COMMIT AND CHAIN"),
        text("COMMIT AND CHAIN").columns(id=Integer),
        select(literal_column("1; COMMIT AND CHAIN")),
        select(User.id).where(text("true; COMMIT AND CHAIN")),
        select(User.id).with_statement_hint("; COMMIT AND CHAIN"),
        text("SELECT 1; -- x\rCOMMIT AND CHAIN"),
    ],
    ids=str,
)
def test_transaction_control_is_found_wherever_it_is(harness: Harness, statement: Executable) -> None:
    with pytest.raises(NoTenantError, match="SQL text"):
        harness.session("a", lambda s: s.execute(statement))
    assert harness.connection("b", names) == ["bob"]


def test_what_loses_the_scope_unseen_finds_nothing(tenants: TenantManager, plain: Engine) -> None:
    """Past SQLAlchemy, at the driver, nobody looks at the text."""
    with plain.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE public.precious AS SELECT 1")
    with tenants.get_db("a").connect() as connection:
        connection.execute(text("SELECT 1"))
        driver = connection.connection.driver_connection
        driver.execute("COMMIT AND CHAIN")
        with pytest.raises(Exception, match="precious"):
            driver.execute("SELECT * FROM precious")
    with tenants.get_db("a").connect() as connection:
        connection.execute(text("RESET ALL"))
        with pytest.raises(DBAPIError, match="users"):
            names(connection)


def test_a_cursor_of_an_earlier_user_serves_nobody_else(make_config: MakeConfig) -> None:
    with TenantManager(make_config(pool_size=1)) as manager:
        with manager.get_db("a").connect() as connection:
            connection.execute(text("SELECT 1"))
            cursor = connection.connection.cursor()
            stream = connection.connection.driver_connection.cursor("streaming")
            stream.execute("SELECT name FROM users")
        with manager.get_db("b").connect() as connection:
            connection.execute(text("SELECT 1"))
            for stale in (cursor, stream):
                with pytest.raises(NoTenantError, match="earlier user"):
                    stale.execute("SELECT name FROM users")
            with pytest.raises(NoTenantError, match="earlier user"):
                stream.fetchone()
            assert names(connection) == ["bob"]
        stream.close()


def test_a_reset_that_failed_is_made_up_for(harness: Harness, plain: Engine) -> None:
    """The session's own timeout must not let the clean-up fail, nor be forgotten."""
    leave_behind(
        harness,
        "CREATE TEMP TABLE left_over AS SELECT 1",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
        "PREPARE theirs AS SELECT name FROM users",
        "SET statement_timeout = 5",
    )
    assert harness.connection("b", names) == ["bob"]
    for statement in ("SELECT * FROM left_over", "EXECUTE theirs"):
        with pytest.raises(DBAPIError):
            harness.connection("b", lambda c: c.execute(text(statement)))


def test_the_interrupted_statement_is_not_sent(make_config: MakeConfig, url: URL, plain: Engine) -> None:
    """A first statement that is cancelled while BEGIN is still on its way never starts."""

    async def main() -> float:
        async with AsyncTenantManager(make_config(pool_size=1)) as manager:
            async with manager.get_db("a").connect() as connection:
                await connection.execute(text("SELECT 1"))
            with plain.begin() as holder:
                holder.exec_driver_sql("LOCK TABLE multitenant_tenants IN ACCESS EXCLUSIVE MODE")
                manager._handles.clear()
                started = time.monotonic()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2), manager.get_db("a").connect() as connection:
                        await connection.execute(text("SELECT pg_sleep(20)"))
                return time.monotonic() - started

    assert asyncio.run(main()) < 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_shares_no_connection(make_config: MakeConfig) -> None:
    with TenantManager(make_config(pool_size=1)) as manager:
        assert manager.get_db("a").scalars(select(User.name)).all() == ["ada"]
        children = []
        for tenant, name in (("a", "ada"), ("b", "bob")) * 2:
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    for _ in range(20):
                        if manager.get_db(tenant).scalars(select(User.name)).all() != [name]:
                            break
                    else:
                        code = 0
                finally:
                    os._exit(code)
            children.append(pid)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
        assert manager.get_db("a").scalars(select(User.name)).all() == ["ada"]


@pytest.mark.parametrize("schema", ["public", "$user", "pg_catalog"])
def test_a_record_that_names_no_place_for_a_tenant_is_refused(
    harness: Harness, plain: Engine, schema: str
) -> None:
    with plain.begin() as connection:
        if schema == "$user":
            connection.exec_driver_sql('CREATE SCHEMA "$user"')
        connection.execute(
            text("UPDATE multitenant_tenants SET schema_name = :schema WHERE id = 'a'"), {"schema": schema}
        )
    with pytest.raises(InvalidTenantIdError, match=r"own|reserved"):
        harness.connection("a", names)


def test_a_change_by_replication_or_by_a_trigger_is_noticed(harness: Harness, plain: Engine) -> None:
    assert harness.connection("a", names) == ["ada"]
    with plain.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql("UPDATE multitenant_tenants SET status = 'suspended' WHERE id = 'a'")
    with pytest.raises(TenantSuspendedError):
        harness.connection("a", names)


def test_a_rollback_takes_effect_though_nobody_waits_for_it(harness: Harness, plain: Engine) -> None:
    """The connection rests in the pool; its locks must not."""
    harness.connection("a", lambda c: c.execute(text("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")))
    with plain.begin() as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
        connection.exec_driver_sql("LOCK TABLE tenant_a.users IN ACCESS EXCLUSIVE MODE")
    assert harness.connection("b", names) == ["bob"]


def test_a_connection_that_is_lost_while_it_rolls_back_is_replaced_unseen(
    harness: Harness, plain: Engine
) -> None:
    def lose(connection: Connection) -> None:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with plain.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    if harness.name == "asyncpg":  # which has noticed by then, and waits for its ROLLBACK
        with pytest.raises(DBAPIError):
            harness.connection("a", lambda c: (lose(c), c.scalar(text("SELECT 1"))))
    else:
        harness.connection("a", lose)
    assert harness.connection("b", names) == ["bob"]


def test_a_transaction_without_a_statement(harness: Harness) -> None:
    for end in (Connection.commit, Connection.rollback, lambda _: None):
        harness.connection("a", lambda c: (c.begin(), end(c)))
        assert harness.connection("b", names) == ["bob"]
    for _ in range(2):
        with pytest.raises(TenantNotFoundError):
            harness.connection("ghost", lambda c: (c.begin(), c.execute(text("SELECT 1"))))
    assert harness.connection("b", names) == ["bob"]


@pytest.mark.parametrize("size", [0, 100])
def test_what_asyncpg_has_prepared_ends_with_its_transaction(
    make_config: MakeConfig, url: URL, size: int
) -> None:
    """A prepared statement and a cursor keep their connection, which then serves another tenant."""
    asyncpg_url = url.set(drivername="postgresql+asyncpg")
    args = {"prepared_statement_cache_size": size}

    async def main() -> None:
        async with AsyncTenantManager(
            make_config(url=asyncpg_url, pool_size=1, connect_args=args)
        ) as manager:
            async with manager.get_db("a").connect() as connection:
                await connection.execute(text("SELECT name FROM users"))
                raw = await connection.get_raw_connection()
                assert raw.driver_connection is not None
                statement = await raw.driver_connection.prepare("SELECT name FROM users")
                assert [row["name"] for row in await statement.fetch()] == ["ada"]
                await connection.rollback()
                with pytest.raises(Exception, match="released back"):
                    await statement.fetch()
            async with manager.get_db("b").connect() as connection:
                assert (await connection.scalars(text("SELECT name FROM users"))).all() == ["bob"]
                with pytest.raises(Exception, match="released back"):
                    await statement.fetch()

    asyncio.run(main())
