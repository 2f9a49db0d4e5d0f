"""Questions to all tenants: the answers are those of a loop over the tenants, and nobody else's."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from asyncpg import ConnectionDoesNotExistError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    CHAR,
    URL,
    DateTime,
    Engine,
    Enum,
    Interval,
    Numeric,
    Select,
    TypeDecorator,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    event,
    exists,
    func,
    insert,
    inspect,
    literal,
    literal_column,
    select,
    table,
    text,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy import String as SqlString
from sqlalchemy.dialects.postgresql import JSONB, distinct_on
from sqlalchemy.exc import DBAPIError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column, with_loader_criteria

from sqlalchemy_multitenant import (
    ConfigurationError,
    Connection,
    CrossTenantQuery,
    Hooks,
    InvalidTenantIdError,
    Migrations,
    Schemas,
    TenantConfig,
    TenantError,
    TenantManager,
    TenantNotFoundError,
    TenantQueryError,
    TenantSuspendedError,
    aggregate_all,
    for_all_tenants,
)
from sqlalchemy_multitenant.crossschema import question
from sqlalchemy_multitenant.crossschema.handles import layout_of
from sqlalchemy_multitenant.crossschema.union import TenantSelect
from sqlalchemy_multitenant.crossschema.work import Work
from tests.conftest import Databases, MakeConfig, MakeHarness
from tests.harness import AsyncHarness, Harness
from tests.models import Mood, Note, Plan, SharedBase, TenantBase, User

IDS = ("a", "b", "c-1", "Two Words".replace(" ", "."), "e")


@pytest.fixture(scope="session")
def fleet_template(admin: Engine, server_url: Any, template: str) -> Iterator[str]:
    """A database with tenants of which each has as many users as its place in `IDS`, one in an odd schema."""
    name = f"{template}_fleet"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
    config = TenantConfig(
        connection=Connection(url=server_url.set(database=name)),
        schemas=Schemas(tenant=TenantBase, shared=SharedBase),
    )
    with TenantManager(config) as manager:
        for tenant in IDS[2:4]:
            manager.create_tenant(tenant)
        manager.create_tenant("e", schema='odd "50%" :näme')
        with manager.get_shared_db().begin() as session:
            session.add_all([Plan(id=1, name="gold"), Plan(id=2, name="free")])
        for place, tenant in enumerate(IDS):
            with manager.get_db(tenant).begin() as session:
                for number in range(1, place + 1):
                    mood = Mood.GRUMPY if number % 2 else Mood.HAPPY
                    user = User(
                        id=number, name=f"{tenant}{number}", mood=mood, plan_id=number if number < 3 else None
                    )
                    session.add(user)
                    session.flush()
                    session.add(Note(id=number, text=f"note {number}", user_id=number))
    yield name
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def url(databases: Databases, fleet_template: str) -> Any:
    return databases.make(fleet_template)


@pytest.fixture(autouse=True)
def two_a_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tenants are three statements then, over two connections."""
    monkeypatch.setattr(question, "TENANTS_A_STATEMENT", 2)


@pytest.fixture
def wrong_use() -> TenantManager:
    """A manager that cannot connect: what it is used for is refused before."""
    nowhere = Connection(url="postgresql://nobody@127.0.0.1:1/nothing")
    return TenantManager(
        TenantConfig(connection=nowhere, schemas=Schemas(tenant=TenantBase, shared=SharedBase))
    )


def ask(harness: Harness, statement: Any, **options: Any) -> list[Any]:
    manager: Any = harness.manager  # type: ignore[attr-defined]
    answers = for_all_tenants(manager, statement, **options)
    if not isinstance(harness, AsyncHarness):
        return list(answers)

    async def collect() -> list[Any]:
        return [row async for row in answers]

    return harness.run(collect())


def total(harness: Harness, statement: Any, **options: Any) -> list[Any]:
    manager: Any = harness.manager  # type: ignore[attr-defined]
    answer: Any = aggregate_all(manager, statement, **options)
    return harness.run(answer) if isinstance(harness, AsyncHarness) else answer


def loop(harness: Harness, statement: Any, params: Any = None) -> list[Any]:
    """The same, tenant by tenant in their own transactions."""
    rows: list[Any] = []
    for tenant in sorted(IDS):
        found = harness.connection(tenant, lambda c: c.execute(statement, params or {}).all())
        rows += [(tenant, *row) for row in found]
    return rows


OTHER = aliased(User)

QUESTIONS: list[Any] = [
    select(func.count()).select_from(User),
    select(func.count(User.id), func.max(User.name), func.min(User.mood)),
    select(User.id, User.name, User.mood).order_by(User.id),
    select(User.mood, User.mood).where(User.mood == Mood.HAPPY).order_by(User.id),
    select(User.name).where(User.mood.in_([Mood.HAPPY, Mood.GRUMPY]), User.id.in_([1, 3])).order_by(User.id),
    select(User.mood, func.count()).group_by(User.mood).order_by(User.mood),
    select(User.name).order_by(User.id.desc()).limit(2).offset(1),
    select(User.id, User.id, Note.id).join(Note).order_by(User.id),
    select(User.name, Plan.name).outerjoin(Plan, User.plan_id == Plan.id).order_by(User.id),
    select(User.name).where(User.notes.any(Note.text == "note 2")),
    select(User.id, select(func.count()).where(OTHER.id < User.id).scalar_subquery()).order_by(User.id),
    select(User.id, func.row_number().over(order_by=User.name.desc())).order_by(User.id),
    select(case((User.mood == Mood.HAPPY, User.mood), else_=User.mood)).order_by(User.id),
    select(exists().where(User.mood == Mood.GRUMPY)),
    select(cast(User.mood, SqlString), func.concat(User.name, "%", ":x")).order_by(User.id),
    select(User.mood).distinct().order_by(User.mood),
    select(Plan.id, Plan.name).order_by(Plan.id),
    select(literal_column("1")),
    union_all(select(User.id), select(Note.id)).order_by("id"),
]
big = select(User.id, User.mood).where(User.id > 1).cte("big")
QUESTIONS += [
    select(func.count()).select_from(big),
    select(big.c.mood, big.c.id).order_by(big.c.id),
    select(User.name).where(User.id.in_(select(big.c.id))).order_by(User.id),
    select(func.array_agg(User.name), func.jsonb_agg(User.id)),
]
ONE_BY_ONE: list[Any] = [
    text("SELECT name, mood::text FROM users ORDER BY id"),
    select(text("name")).select_from(User).order_by(User.id),
    select(literal_column("name")).select_from(User).order_by(User.id),
    select(column("name")).select_from(table("users")).order_by(column("id")),
    select(User.name).with_for_update(read=True),
]


def test_the_answers_are_those_of_a_loop(harness: Harness) -> None:
    config: TenantConfig = harness.manager.config  # type: ignore[attr-defined]
    for statement in QUESTIONS:
        assert TenantSelect.of(statement, config.schemas) is not None, statement
        assert ask(harness, statement) == loop(harness, statement), statement


def test_what_only_one_tenant_can_be_asked(harness: Harness) -> None:
    config: TenantConfig = harness.manager.config  # type: ignore[attr-defined]
    for statement in ONE_BY_ONE[:4]:
        assert TenantSelect.of(statement, config.schemas) is None, statement
        assert ask(harness, statement) == loop(harness, statement), statement


def test_a_lock_needs_a_transaction_that_writes(harness: Harness) -> None:
    (statement,) = ONE_BY_ONE[4:]
    with pytest.raises(TenantQueryError, match="read-only"):
        ask(harness, statement)
    assert ask(harness, statement, read_only=False) == loop(harness, statement)


def test_parameters(harness: Harness) -> None:
    statement = select(User.name).where(User.id == func.coalesce(text(":wanted"), 1))
    assert ask(harness, statement, params={"wanted": 2}) == loop(harness, statement, {"wanted": 2})
    together = select(User.name).where(User.id == bindparam("wanted", type_=User.id.type))
    assert ask(harness, together, params={"wanted": 3}) == loop(harness, together, {"wanted": 3})
    with pytest.raises(StatementError, match="wanted"):
        ask(harness, together)


def test_rows_have_names(harness: Harness) -> None:
    for row in ask(harness, select(User.name, func.count().label("n")).group_by(User.name), tenants=["b"]):
        assert (row.tenant, row.name, row.n) == ("b", "b1", 1)
    for row in ask(harness, text("SELECT name, 1 AS n FROM users"), tenants=["b"]):
        assert (row.tenant, row.name, row.n) == ("b", "b1", 1)


class Loud(TypeDecorator[str]):
    """What a type makes of a column where it is selected, as PostGIS's types do."""

    impl = SqlString
    cache_ok = True

    def column_expression(self, column: Any) -> Any:
        return func.upper(column)


def test_names_and_types_are_the_same_however_many_are_asked(harness: Harness) -> None:
    loud = type_coerce(User.name, Loud())
    statements = [
        select(User.id, User.name),
        select(User.id.label("x"), User.name.label("x")),
        select(User.name.label("tenant"), loud.label("loud")),
        select(func.pg_catalog.current_schema()).select_from(User),
    ]
    for statement in statements:
        together = ask(harness, statement, tenants=["b", "e"])
        alone = ask(harness, statement, tenants=["b"]) + ask(harness, statement, tenants=["e"])
        assert together == alone
        assert {row._fields for row in together} == {("tenant", *alone[0]._fields[1:])}
    assert ask(harness, select(loud), tenants=["a", "b", "e"])[0] == ("b", "B1")
    # What has no name gets none that the statement has.
    (row, *_) = ask(harness, select(User.name.label("c1"), User.id + 1), tenants=["b", "e"])
    assert (row.c1, row) == ("b1", ("b", "b1", 2))


def test_objects_are_each_tenants_own_and_detached(harness: Harness) -> None:
    found = ask(harness, select(User, User.id).order_by(User.id))
    assert [(tenant, user.name) for tenant, user, _ in found] == loop(
        harness, select(User.name).order_by(User.id)
    )
    assert len({id(user) for _, user, _ in found}) == len(found)
    assert all(inspect(user).detached for _, user, _ in found)


def test_few_statements_for_many(harness: Harness) -> None:
    manager: Any = harness.manager  # type: ignore[attr-defined]
    engine = manager.get_shared_db().engine
    sent: list[str] = []
    event.listen(
        getattr(engine, "sync_engine", engine), "before_cursor_execute", lambda *given: sent.append(given[2])
    )
    ask(harness, select(func.count()).select_from(User))
    assert len([statement for statement in sent if "count(*)" in statement]) == 3
    # Each has settings before it and the check of the catalog after it; of one alone the schema is looked at.
    assert len(sent) == 10


class TestSelection:
    def test_some_tenants(self, harness: Harness) -> None:
        statement = select(func.count()).select_from(User)
        assert ask(harness, statement, tenants=["e", "b"]) == [("e", 4), ("b", 1)]
        assert ask(harness, statement, tenants=["b", "b"]) == [("b", 1)]
        assert ask(harness, statement, tenants=[]) == []

    def test_unknown_and_suspended_ones(self, harness: Harness) -> None:
        harness.call("set_tenant_status", "b", "suspended")
        statement = select(func.count()).select_from(User)
        with pytest.raises(TenantNotFoundError, match="'nobody'"):
            ask(harness, statement, tenants=["a", "nobody"])
        with pytest.raises(TenantSuspendedError, match="'b'"):
            ask(harness, statement, tenants=["a", "b"])
        with pytest.raises(InvalidTenantIdError):
            ask(harness, statement, tenants=["a", "no id"])
        answers = ask(harness, statement, tenants=["nobody", "a", "b"], errors="return")
        assert [(type(x), x.tenant) for x in answers[:2]] == [
            (TenantNotFoundError, "nobody"),
            (TenantSuspendedError, "b"),
        ]
        assert answers[2:] == [("a", 0)]

    def test_by_status(self, harness: Harness) -> None:
        harness.call("set_tenant_status", "b", "suspended")
        for statement in (select(func.count()).select_from(User), text("SELECT count(*) FROM users")):
            assert ask(harness, statement, where_status="suspended") == [("b", 1)]
            assert [t for t, _ in ask(harness, statement)] == sorted(set(IDS) - {"b"})
            assert [t for t, _ in ask(harness, statement, where_status=None)] == sorted(IDS)

    def test_a_dropped_tenant_is_not_asked(self, harness: Harness) -> None:
        harness.call("drop_tenant", "b")
        assert "b" not in {row[0] for row in ask(harness, select(User.id), where_status=None)}


ACTIVATE = "UPDATE multitenant_tenants SET status = 'active' WHERE id = 'b'"


class TestMeanwhile:
    """What happens to a tenant between the look at the catalog and the question; the audit's hook is then."""

    @pytest.mark.parametrize(
        "statement",
        [
            select(User.name).order_by(User.id),
            text("SELECT name FROM users ORDER BY id"),
            select(User.name, User),
        ],
        ids=["together", "text", "objects"],
    )
    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ("UPDATE multitenant_tenants SET status = 'suspended' WHERE id = 'b'", TenantSuspendedError),
            (
                'ALTER SCHEMA tenant_b RENAME TO gone; ALTER SCHEMA "tenant_Two.Words" RENAME TO tenant_b; '
                "UPDATE multitenant_tenants SET schema_name = 'gone' WHERE id = 'b'",
                TenantQueryError,
            ),
            ("DELETE FROM multitenant_tenants WHERE id = 'b'", TenantNotFoundError),
        ],
        ids=["suspended", "moved", "deleted"],
    )
    def test_it_is_refused_and_the_others_are_not(
        self, make_harness_: MakeHarness, plain: Engine, statement: Any, change: str, error: type[TenantError]
    ) -> None:
        def in_between(_query: CrossTenantQuery) -> None:
            with plain.begin() as connection:
                for part in change.split("; "):
                    connection.exec_driver_sql(part)

        harness = make_harness_(pool_size=2, hooks=Hooks(on_cross_tenant_query=in_between))
        answers = ask(harness, statement, errors="return", tenants=["a", "b", "c-1", "e"])
        assert [type(answer) for answer in answers if isinstance(answer, TenantError)] == [error]
        rows = [answer for answer in answers if not isinstance(answer, TenantError)]
        assert {row[0] for row in rows} == {"c-1", "e"}
        assert all(row[1].startswith(row[0]) for row in rows)

    def test_a_status_that_does_not_matter(self, make_harness_: MakeHarness, plain: Engine) -> None:
        changes = iter(["suspended", "active"] * 2)

        def in_between(_query: CrossTenantQuery) -> None:
            with plain.begin() as connection:
                connection.exec_driver_sql(
                    f"UPDATE multitenant_tenants SET status = '{next(changes)}' WHERE id = 'b'"
                )

        harness = make_harness_(hooks=Hooks(on_cross_tenant_query=in_between))
        for statement in (select(User.name), text("SELECT name FROM users")):
            for _ in range(2):
                assert "b" in {row[0] for row in ask(harness, statement, where_status=None)}

    def test_one_that_is_not_suspended_any_more(self, make_harness_: MakeHarness, plain: Engine) -> None:
        def in_between(_query: CrossTenantQuery) -> None:
            with plain.begin() as connection:
                connection.exec_driver_sql(ACTIVATE)

        harness = make_harness_(pool_size=2, hooks=Hooks(on_cross_tenant_query=in_between))
        for statement in (select(User.name), text("SELECT name FROM users")):
            for tenant in ("b", "e"):
                harness.call("set_tenant_status", tenant, "suspended")
            assert {row[0] for row in ask(harness, statement, where_status="suspended")} == {"e"}

    def test_one_that_has_moved_is_not_passed_over(self, make_harness_: MakeHarness, plain: Engine) -> None:
        def in_between(_query: CrossTenantQuery) -> None:
            with plain.begin() as connection:
                connection.exec_driver_sql("ALTER SCHEMA tenant_b RENAME TO moved")
                connection.exec_driver_sql("CREATE SCHEMA tenant_b")
                connection.exec_driver_sql("CREATE TABLE tenant_b.users AS TABLE moved.users")
                connection.exec_driver_sql(
                    "UPDATE multitenant_tenants SET schema_name = 'moved' WHERE id = 'b'"
                )

        harness = make_harness_(hooks=Hooks(on_cross_tenant_query=in_between))
        with pytest.raises(TenantQueryError, match="ask again"):
            ask(harness, select(User.name))

    def test_one_that_was_not_named_is_passed_over(self, make_harness_: MakeHarness, plain: Engine) -> None:
        def in_between(_query: CrossTenantQuery) -> None:
            with plain.begin() as connection:
                connection.exec_driver_sql(
                    "UPDATE multitenant_tenants SET status = 'suspended' WHERE id = 'b'"
                )

        for statement in (select(User.name), text("SELECT name FROM users"), select(func.count(User.id))):
            harness = make_harness_(pool_size=2, hooks=Hooks(on_cross_tenant_query=in_between))
            assert "b" not in {row[0] for row in ask(harness, statement)}
            assert "e" in {row[0] for row in ask(harness, statement)}
            with plain.begin() as connection:
                connection.exec_driver_sql(ACTIVATE)

    def test_a_dropped_schema(self, make_harness_: MakeHarness, plain: Engine) -> None:
        def in_between(_query: CrossTenantQuery) -> None:
            with plain.begin() as connection:
                connection.exec_driver_sql("DROP SCHEMA tenant_b CASCADE")

        harness = make_harness_(hooks=Hooks(on_cross_tenant_query=in_between))
        with pytest.raises(TenantError, match="'b'"):
            ask(harness, text("SELECT count(*) FROM users"))
        with pytest.raises(TenantError, match="'b'"):
            ask(make_harness_(), select(func.count()).select_from(User))

    def test_whatever_isolation_the_server_prefers(self, make_harness_: MakeHarness, plain: Engine) -> None:
        """The check must not look at a snapshot that is older than the rows."""
        with plain.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(
                f"ALTER DATABASE {plain.url.database} SET default_transaction_isolation = 'repeatable read'"
            )
        harness = make_harness_()
        for statement in (
            text("SHOW transaction_isolation"),
            select(func.current_setting("transaction_isolation")),
        ):
            assert {row[1] for row in ask(harness, statement)} == {"read committed"}


class TestErrors:
    @pytest.fixture(autouse=True)
    def one_is_behind(self, plain: Engine) -> None:
        with plain.begin() as connection:
            connection.exec_driver_sql('ALTER TABLE "tenant_c-1".users RENAME name TO nom')

    @pytest.mark.parametrize(
        "statement",
        [select(User.name), text("SELECT name FROM users"), select(User), select(func.max(User.name))],
    )
    def test_the_tenant_is_named(self, harness: Harness, statement: Any) -> None:
        with pytest.raises(TenantQueryError, match="does not exist") as caught:
            ask(harness, statement)
        assert caught.value.tenant == "c-1"
        assert isinstance(caught.value.__cause__, DBAPIError)

    @pytest.mark.parametrize("statement", [select(User.name), text("SELECT name FROM users")], ids=str)
    def test_as_values_the_others_have_all_their_rows(self, harness: Harness, statement: Any) -> None:
        answers = ask(harness, statement, errors="return", batch=1)
        (error,) = [answer for answer in answers if isinstance(answer, TenantError)]
        assert error.tenant == "c-1"
        rows = sorted(answer for answer in answers if not isinstance(answer, TenantError))
        assert rows == sorted(
            (t, f"{t}{n}") for p, t in enumerate(IDS) for n in range(1, p + 1) if t != "c-1"
        )

    def test_one_that_comes_in_the_midst_of_the_rows(self, harness: Harness) -> None:
        statement = select(User.id, 10 / (User.id - 3)).order_by(User.id)
        answers = ask(harness, statement, errors="return", batch=1)
        failed = {answer.tenant for answer in answers if isinstance(answer, TenantError)}
        assert failed == {"Two.Words", "e"}  # the ones with a user 3
        assert {row[0] for row in answers if not isinstance(row, TenantError)} == {"b", "c-1"}
        with pytest.raises(TenantQueryError, match="division by zero") as caught:
            ask(harness, statement, batch=1)
        assert caught.value.tenant in failed

    def test_one_that_all_have(self, harness: Harness) -> None:
        statement = select(func.no_such_function(User.id))
        answers = ask(harness, statement, errors="return")
        assert [answer.tenant for answer in answers] == sorted(IDS)
        with pytest.raises(TenantQueryError, match="no_such_function"):
            ask(harness, statement)

    def test_a_role_that_may_not_read_one(self, make_harness_: MakeHarness, plain: Engine, url: URL) -> None:
        role = f"reader_{secrets.token_hex(4)}"
        with plain.begin() as connection:
            connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
            connection.exec_driver_sql(f'GRANT USAGE ON SCHEMA public, tenant_a, "tenant_c-1" TO {role}')
            connection.exec_driver_sql(f"GRANT SELECT ON public.multitenant_tenants TO {role}")
            connection.exec_driver_sql(f'GRANT SELECT ON tenant_a.users, "tenant_c-1".users TO {role}')
        try:
            harness = make_harness_(url=url.set(username=role, password="x"))
            for statement in (select(User.id), text("SELECT id FROM users"), select(func.count(User.id))):
                answers = ask(harness, statement, errors="return", tenants=["a", "b", "c-1"])
                assert [answer.tenant for answer in answers if isinstance(answer, TenantError)] == ["b"]
                assert {answer[0] for answer in answers if not isinstance(answer, TenantError)} >= {"c-1"}
            harness.call("close")
        finally:
            with plain.begin() as connection:
                connection.exec_driver_sql(f"DROP OWNED BY {role}")
                connection.exec_driver_sql(f"DROP ROLE {role}")

    def test_a_timeout(self, harness: Harness) -> None:
        slow = select(func.pg_sleep(User.id * 0 + 0.4)).where(User.name == "b1")
        with pytest.raises(TenantQueryError, match="timeout") as caught:
            ask(harness, slow, statement_timeout_s=0.2, tenants=["a", "b"])
        assert caught.value.tenant == "b"
        assert len(ask(harness, slow, statement_timeout_s=None, tenants=["a", "b"])) == 1

    def test_a_union_that_takes_too_long_is_asked_in_parts(self, harness: Harness) -> None:
        slow = select(func.pg_sleep(cast(0.3, Numeric)).label("slept"))
        assert len(ask(harness, slow, statement_timeout_s=0.5)) == len(IDS)

    def test_what_python_cannot_read(self, harness: Harness, plain: Engine) -> None:
        with plain.begin() as connection:
            connection.exec_driver_sql("ALTER TYPE tenant_b.mood ADD VALUE 'UNKNOWN'")
        with plain.begin() as connection:
            connection.exec_driver_sql("UPDATE tenant_b.users SET mood = 'UNKNOWN'")
        answers = ask(harness, select(User.mood), errors="return")
        assert [a.tenant for a in answers if isinstance(a, TenantError)] == ["b"]
        assert {a[0] for a in answers if not isinstance(a, TenantError)} == {"Two.Words", "c-1", "e"}

    def test_a_pool_that_is_used_up_is_no_tenants(self, make_harness_: MakeHarness) -> None:
        harness = make_harness_(pool_size=1, pool_timeout_s=0.2)

        def ask_inside(_connection: Any) -> None:
            with TenantManager(harness.manager.config) as manager:  # type: ignore[attr-defined]
                inner = for_all_tenants(manager, text("SELECT generate_series(1, 9)"), batch=1)
                next(inner)
                with pytest.raises(PoolTimeoutError):
                    list(for_all_tenants(manager, text("SELECT 1"), errors="return"))
                inner.close()

        ask_inside(None)

    def test_a_lost_connection_is_no_tenants(self, harness: Harness) -> None:
        statement = select(func.pg_terminate_backend(func.pg_backend_pid()))
        # asyncpg's own error comes as it is, where rows are fetched from a cursor.
        with pytest.raises((DBAPIError, ConnectionDoesNotExistError)):
            ask(harness, statement, errors="return")
        assert ask(harness, select(func.count()).select_from(User), tenants=["b"]) == [("b", 1)]

    def test_too_few_locks_are_shared_out(self, harness: Harness) -> None:
        # What the server would say if its lock table were full; the next statements have fewer tenants.
        manager: Any = harness.manager  # type: ignore[attr-defined]
        layout = layout_of(manager.get_db("a"))
        work = Work(
            question.Question(layout, True, select(User.id), {}, 1, None, True),
            returns_errors=False,
            limit=None,
            concurrency=1,
        )
        work._together, work._at_once = True, 4

        class Full(Exception):
            sqlstate = "53200"

        tenants: Any = [type("Record", (), {"id": str(n)})() for n in range(8)]
        work.begin(tenants, [])
        (first,) = work.take()
        assert len(first) == 4
        assert work.fail(first, OperationalError("x", {}, Full())) == []
        assert [len(unit) for _ in range(4) for unit in work.take()] == [2, 2, 2, 2]


class TestSessionsSeeOtherwise:
    """What a session would do to a statement, a union must not leave out."""

    def test_hooks_of_all_sessions(self, harness: Harness) -> None:
        def hide(state: Any) -> None:
            state.statement = state.statement.options(with_loader_criteria(User, User.id > 2))

        event.listen(Session, "do_orm_execute", hide)
        try:
            found = ask(harness, select(User.id).order_by(User.id))
        finally:
            event.remove(Session, "do_orm_execute", hide)
        assert {row[1] for row in found} == {3, 4}

    def test_criteria(self, harness: Harness) -> None:
        statement = select(User.id).options(with_loader_criteria(User, User.id > 3))
        assert ask(harness, statement) == [("e", 4)]

    def test_what_depends_on_the_search_path(self, harness: Harness, plain: Engine) -> None:
        with plain.begin() as connection:
            for schema in ("public", "tenant_b"):
                connection.exec_driver_sql(
                    f"CREATE FUNCTION {schema}.fee() RETURNS text LANGUAGE sql AS $$ SELECT '{schema}' $$"
                )
        for function in (func.current_schema(), func.to_regclass("users").op("::")(text("text")), func.fee()):
            assert ask(harness, select(function)) == loop(harness, select(function))


class TestOrder:
    """Of tenants whose unit was asked together with one that failed."""

    @pytest.mark.parametrize("limit", [None, 2])
    def test_one_by_one(self, harness: Harness, plain: Engine, limit: int | None) -> None:
        with plain.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE tenant_b.users RENAME name TO nom")
        statement = select(func.max(User.name))
        tenants = [row.tenant for row in ask(harness, statement, errors="return", limit=limit)]
        assert tenants == sorted(IDS)[:limit]

    def test_enums_that_only_unions_cannot(self, harness: Harness) -> None:
        statement = select(func.coalesce(User.mood, User.mood)).order_by(User.id)
        assert ask(harness, statement, limit=4) == loop(harness, statement)[:4]


class TestTypesThatDiffer:
    def test_a_type_that_is_each_tenants_own_is_asked_one_by_one(
        self, harness: Harness, plain: Engine
    ) -> None:
        with plain.begin() as connection:
            for schema in (
                connection.execute(text("SELECT schema_name FROM multitenant_tenants")).scalars().all()
            ):
                quoted = '"' + schema.replace('"', '""') + '"'
                connection.exec_driver_sql(
                    f"CREATE DOMAIN {quoted}.title AS text".replace("%", "%%"),
                )
                connection.exec_driver_sql(
                    f"CREATE FUNCTION {quoted}.greet(name text) RETURNS text LANGUAGE sql AS "
                    f"$$ SELECT current_schema() || ' ' || name $$".replace("%", "%%")
                )
        statement = select(User.id, func.greet(User.name)).order_by(User.id)
        assert ask(harness, statement) == loop(harness, statement)


class TestWrites:
    def test_are_refused_by_default(self, harness: Harness) -> None:
        for statement in (
            update(User).values(name="x"),
            delete(Note).returning(Note.id),
            text("DELETE FROM notes"),
            text("SET TRANSACTION READ WRITE"),
            text("WITH gone AS (DELETE FROM notes RETURNING id) SELECT id FROM gone"),
        ):
            with pytest.raises(TenantQueryError):
                ask(harness, statement)
        assert [n for _, n in ask(harness, select(func.count()).select_from(Note))] == [3, 0, 1, 2, 4]

    def test_are_each_tenants_own(self, harness: Harness) -> None:
        statement = update(User).where(User.id == 1).values(name="x").returning(User.name)
        assert ask(harness, statement, read_only=False, tenants=["b", "e"]) == [("b", "x"), ("e", "x")]
        found = ask(harness, select(func.count()).select_from(User).where(User.name == "x"))
        assert {t for t, n in found if n} == {"b", "e"}

    def test_inserts_and_what_has_no_number(self, harness: Harness) -> None:
        rows = [{"id": 70, "name": "x", "mood": Mood.HAPPY}, {"id": 71, "name": "y", "mood": Mood.HAPPY}]
        users: Any = User.__table__
        for statement in (insert(User).values(rows), insert(users).values(rows)):
            answers = ask(harness, statement, read_only=False, tenants=["a", "b"])
            assert [(row.tenant, row.rows) for row in answers] == [("a", 2), ("b", 2)]
            ask(harness, delete(User).where(User.id >= 70), read_only=False, tenants=["a", "b"])
        one = {"id": 80, "name": "z", "mood": Mood.HAPPY}
        assert ask(harness, insert(User), params=one, read_only=False, tenants=["a"])[0].rows == 1
        assert ask(harness, text("SET LOCAL work_mem = '5MB'"), tenants=["a"]) == [("a", None)]

    def test_several_sets_of_parameters_are_refused(self, harness: Harness) -> None:
        with pytest.raises(ConfigurationError, match="params"):
            ask(harness, update(User), params=[{"name": "alice"}], read_only=False)

    def test_without_rows_tell_how_many_they_changed(self, harness: Harness) -> None:
        answers = ask(harness, delete(Note), read_only=False)
        assert [(row.tenant, row.rows) for row in answers] == [
            ("Two.Words", 3),
            ("a", 0),
            ("b", 1),
            ("c-1", 2),
            ("e", 4),
        ]

    def test_stop_at_the_first_failure(self, harness: Harness, plain: Engine) -> None:
        with plain.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE tenant_b.users RENAME TO people")
        with pytest.raises(TenantQueryError, match="'b'"):
            ask(harness, delete(Note).where(Note.user_id.in_(select(User.id))), read_only=False)
        left = dict(ask(harness, select(func.count()).select_from(Note)))
        assert left == {"Two.Words": 0, "a": 0, "b": 1, "c-1": 2, "e": 4}

    def test_a_tenant_that_moved_is_not_changed(self, make_harness_: MakeHarness, plain: Engine) -> None:
        def in_between(_query: CrossTenantQuery) -> None:
            with plain.begin() as connection:
                connection.exec_driver_sql("ALTER SCHEMA tenant_b RENAME TO moved")
                connection.exec_driver_sql('ALTER SCHEMA "tenant_c-1" RENAME TO tenant_b')
                connection.exec_driver_sql(
                    "UPDATE multitenant_tenants SET schema_name = 'moved' WHERE id = 'b'"
                )

        harness = make_harness_(hooks=Hooks(on_cross_tenant_query=in_between))
        with pytest.raises(TenantQueryError, match="ask again"):
            ask(harness, delete(Note), read_only=False, tenants=["b"])
        with plain.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM tenant_b.notes")) == 2


def test_types_that_have_a_length_are_added_up(harness: Harness) -> None:
    padded = cast(User.name, CHAR(5))
    found = total(harness, select(padded, func.count()).select_from(User).group_by(padded).order_by(padded))
    assert [tuple(row) for row in found][:2] == [("Two.W", 3), ("b1   ", 1)]


class TestLimits:
    def test_a_limit_stops_the_reading(self, harness: Harness) -> None:
        many = select(func.generate_series(1, 10_000_000).label("n"))
        for errors in ("raise", "return"):
            assert ask(harness, many, limit=2, batch=10, errors=errors, statement_timeout_s=5) == [
                ("Two.Words", 1),
                ("Two.Words", 2),
            ]

    def test_a_limit_over_all(self, harness: Harness) -> None:
        statement = select(User.name).order_by(User.id)
        everything = loop(harness, statement)
        for limit in (0, 1, 4, 100):
            assert ask(harness, statement, limit=limit) == everything[:limit]
            assert ask(harness, text("SELECT name FROM users ORDER BY id"), limit=limit) == everything[:limit]
        assert ask(harness, select(func.count()).select_from(User), limit=2) == [("Two.Words", 3), ("a", 0)]

    def test_one_connection_will_do(self, make_harness_: MakeHarness) -> None:
        harness = make_harness_(pool_size=1, pool_timeout_s=1)
        statement = select(func.count()).select_from(User)
        assert ask(harness, statement, concurrency=50) == loop(harness, statement)

    @pytest.mark.parametrize(
        "options",
        [
            {"batch": 0},
            {"batch": "1"},
            {"limit": -1},
            {"limit": True},
            {"concurrency": 0},
            {"statement_timeout_s": 0},
            {"statement_timeout_s": "1"},
            {"where_status": "gone"},
            {"where_status": "dropped"},
            {"read_only": None},
            {"tenants": "a"},
            {"errors": "ignore"},
            {"tenant": "a"},
        ],
        ids=str,
    )
    def test_wrong_options(self, wrong_use: TenantManager, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError):
            for_all_tenants(wrong_use, select(User.id), **options)

    def test_something_else_than_a_statement(self, wrong_use: TenantManager) -> None:
        with pytest.raises(ConfigurationError, match="statement"):
            for_all_tenants(wrong_use, "SELECT 1")  # type: ignore[call-overload]


def test_rows_are_read_as_they_are_asked_for(make_config: MakeConfig) -> None:
    with TenantManager(make_config(pool_size=1, pool_timeout_s=0.5)) as manager:
        many = select(func.generate_series(1, 300_000).label("n"))
        answers = for_all_tenants(manager, many, batch=10)
        assert next(answers)[1] == 1
        metrics = manager.metrics()
        assert metrics["multitenant_pool_connections_active"] == 1
        answers.close()
        assert manager.metrics()["multitenant_pool_connections_active"] == 0
        assert list(for_all_tenants(manager, many, limit=2)) == [("Two.Words", 1), ("Two.Words", 2)]


@pytest.mark.parametrize("driver", ["psycopg-async", "asyncpg"])
def test_a_generator_that_is_left_under_asyncio_gives_its_connection_back(make_harness_: MakeHarness) -> None:
    harness = make_harness_(pool_size=1, pool_timeout_s=0.5)
    manager: Any = harness.manager  # type: ignore[attr-defined]

    async def leave() -> None:
        for statement in (
            select(func.generate_series(1, 100_000)),
            text("SELECT generate_series(1, 100000)"),
        ):
            answers = for_all_tenants(manager, statement, batch=10)
            async for row in answers:
                assert row[1] == 1
                break
            await answers.aclose()
            async for _ in for_all_tenants(manager, select(User.id)):
                pass

    assert isinstance(harness, AsyncHarness)
    harness.run(leave())


def test_tenants_are_used_by_others_meanwhile(tenants: TenantManager) -> None:
    """Threads that ask all, and threads that work for one: nobody sees another's."""

    def one(tenant: str) -> set[str]:
        names: set[str] = set()
        for _ in range(20):
            names |= set(tenants.get_db(tenant).scalars(select(User.name)))
        return names

    def everyone(_: int) -> list[Any]:
        return [row for _ in range(5) for row in for_all_tenants(tenants, select(User.name))]

    with ThreadPoolExecutor(4) as threads:
        asked = threads.map(everyone, range(2))
        own = dict(zip(IDS, threads.map(one, IDS), strict=True))
        assert all(row[1].startswith(row[0]) for rows in asked for row in rows)
    assert all(name.startswith(tenant) for tenant, names in own.items() for name in names)


class TestAudit:
    def test_is_told_before_anything_is_asked(self, make_harness_: MakeHarness) -> None:
        told: list[CrossTenantQuery] = []
        harness = make_harness_(hooks=Hooks(on_cross_tenant_query=told.append))
        ask(harness, select(User.name).where(User.name == "secret"), tenants=["b", "e"], asked_by="ann")
        total(harness, select(func.count()).select_from(User), asked_by="bob")
        ask(harness, delete(Note), read_only=False, tenants=["a"])
        assert [(q.asked_by, q.tenants, q.read_only) for q in told] == [
            ("ann", ("b", "e"), True),
            ("bob", tuple(sorted(IDS)), True),
            (None, ("a",), False),
        ]
        assert "users.name" in told[0].sql
        assert "secret" not in told[0].sql
        assert told[2].sql == "DELETE FROM notes"

    def test_what_cannot_be_recorded_does_not_happen(self, make_harness_: MakeHarness) -> None:
        def refuse(_query: CrossTenantQuery) -> None:
            raise PermissionError("not you")

        harness = make_harness_(hooks=Hooks(on_cross_tenant_query=refuse))
        for statement, options in ((select(User.id), {}), (delete(Note), {"read_only": False})):
            with pytest.raises(PermissionError, match="not you"):
                ask(harness, statement, **options)
        with pytest.raises(PermissionError):
            total(harness, select(func.count()))
        assert harness.connection("e", lambda c: c.scalar(select(func.count()).select_from(Note))) == 4


def test_with_discover_in_place_of_the_catalog(make_harness_: MakeHarness, plain: Engine) -> None:
    harness = make_harness_(migrations=Migrations(discover=lambda: ["a", "b", "c-1", "gone"]))
    statement = select(func.count()).select_from(User)
    answers = ask(harness, statement, errors="return")
    assert [answer for answer in answers if not isinstance(answer, TenantError)] == [
        ("a", 0),
        ("b", 1),
        ("c-1", 2),
    ]
    assert [answer.tenant for answer in answers if isinstance(answer, TenantError)] == ["gone"]
    with plain.begin() as connection:  # of which a tenant without a schema must not become a reader
        connection.exec_driver_sql("CREATE TABLE stray AS SELECT 1 AS x")
    with pytest.raises(TenantNotFoundError, match="gone"):
        ask(harness, text("SELECT x FROM stray"), tenants=["gone"])


TOTALS: list[tuple[Any, list[Any]]] = [
    (select(func.count()).select_from(User), [(10,)]),
    (
        select(func.count(), func.sum(User.id), func.min(User.name), func.max(User.id)),
        [(10, 20, "Two.Words1", 4)],
    ),
    (select(func.avg(User.id)), [(Decimal("2.0000000000000000"),)]),
    (select(func.count().filter(User.mood == Mood.HAPPY)).select_from(User), [(4,)]),
    (select(func.avg(User.id).filter(User.mood == Mood.HAPPY)), [(Decimal("2.5"),)]),
    (
        select(User.mood, func.count()).group_by(User.mood).order_by(func.count()),
        [(Mood.HAPPY, 4), (Mood.GRUMPY, 6)],
    ),
    (
        select(User.id, func.count().label("n"))
        .group_by(User.id)
        .order_by(User.id.desc())
        .limit(2)
        .offset(1),
        [(3, 2), (2, 3)],
    ),
    (select(User.id).distinct().order_by(User.id), [(1,), (2,), (3,), (4,)]),
    (select(User.id).group_by(User.id).order_by("id"), [(1,), (2,), (3,), (4,)]),
    (
        select(User.id, User.name).order_by(User.id.desc(), User.name).limit(3),
        [(4, "e4"), (3, "Two.Words3"), (3, "e3")],
    ),
    (select(User.name).order_by(User.name.desc()).limit(2).offset(2), [("e2",), ("e1",)]),
    (
        select(Plan.name, func.count(User.id))
        .join(User, User.plan_id == Plan.id)
        .group_by(Plan.name)
        .order_by(Plan.name),
        [("free", 3), ("gold", 4)],
    ),
    (select(func.sum(User.id)).where(User.id > 100), [(None,)]),
    (select(func.count()).select_from(big), [(6,)]),
]


class TestAggregateAll:
    def test_one_answer_over_all(self, harness: Harness) -> None:
        for statement, expected in TOTALS:
            assert total(harness, statement) == expected, statement

    def test_it_is_that_of_one_table_with_all_rows(self, harness: Harness, plain: Engine) -> None:
        with plain.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA together")
            connection.exec_driver_sql("CREATE TABLE together.users AS TABLE tenant_a.users WITH NO DATA")
            connection.exec_driver_sql("ALTER TABLE together.users ALTER mood TYPE text")
            for schema in (
                connection.execute(text("SELECT schema_name FROM multitenant_tenants")).scalars().all()
            ):
                quoted = ('"' + schema.replace('"', '""') + '"').replace("%", "%%")
                connection.exec_driver_sql(
                    f"INSERT INTO together.users (id, name, mood, plan_id) "
                    f"SELECT id, name, mood::text, plan_id FROM {quoted}.users"
                )
        statement = (
            select(User.plan_id, func.count(), func.sum(User.id), func.avg(User.id), func.max(User.name))
            .group_by(User.plan_id)
            .order_by(User.plan_id)
        )
        with plain.connect() as connection:
            connection.exec_driver_sql("SET search_path = together")
            assert total(harness, statement) == list(connection.execute(statement))

    def test_names_and_no_tenants(self, harness: Harness) -> None:
        ((row),) = total(
            harness, select(func.count().label("users"), func.sum(User.id)).select_from(User), tenants=[]
        )
        assert (row.users, row[1]) == (0, None)
        assert total(harness, select(User.id).limit(3), tenants=[]) == []

    @pytest.mark.parametrize(
        ("statement", "message"),
        [
            (select(User.id), "neither an aggregate nor a LIMIT"),
            (select(User).limit(1), "one tenant at a time"),
            (text("SELECT 1"), "one tenant at a time"),
            (select(func.count(User.id.distinct())), "distinct values"),
            (select(func.count() + 1), "each by itself"),
            (select(func.array_agg(User.id)), "each by itself"),
            (select(User.id, func.count()).group_by(User.id).having(func.count() > 1), "HAVING"),
            (select(func.count()).group_by(User.id), "select it, too"),
            (select(User.id).order_by(User.name).limit(1), "select it, too"),
            (select(User.id).order_by("nix").limit(1), "select it, too"),
            (select(User.id).ext(distinct_on(User.name)).limit(1), "DISTINCT ON"),
            (select(func.max(User.mood)), "an enum of its own"),
            (select(User.mood).order_by(User.mood).limit(1), "an enum of its own"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_cannot_be_put_together(
        self, wrong_use: TenantManager, statement: Any, message: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=message):
            aggregate_all(wrong_use, statement)

    def test_types_that_the_models_are_too_narrow_for(self, harness: Harness) -> None:
        """The server's own types count, and not the declared ones."""
        rows = select(func.sum(cast(User.id, Numeric(2, 1))), func.avg(cast(User.id, Numeric(2, 1))))
        assert total(harness, rows) == [(Decimal("20.0"), Decimal("2.0000000000000000"))]
        longer = select(func.max(cast(User.name, SqlString(4)) + func.repeat("x", 40)).label("x"))
        assert len(total(harness, longer)[0][0]) == 42
        parts = select(func.sum(func.coalesce(User.plan_id, cast(0.5, Numeric))))
        assert total(harness, parts) == [(Decimal("11.5"),)]
        keys = select(func.lower(User.name), func.count()).group_by(func.lower(User.name))
        assert sorted(total(harness, keys))[:2] == [("b1", 1), ("c-11", 1)]
        named = (
            select(func.lower(User.name).label("low"), func.count()).group_by("low").order_by("low").limit(1)
        )
        assert total(harness, named) == [("b1", 1)]
        ages = select(func.avg(cast(func.concat(User.id, " days"), Interval)))
        assert total(harness, ages) == [(timedelta(days=2),)]

    def test_parameters_of_the_statement(self, harness: Harness) -> None:
        wanted = bindparam("wanted", type_=User.id.type)
        statement = select(func.count()).select_from(User).where(User.id == wanted)
        assert total(harness, statement, params={"wanted": 1}) == [(4,)]
        first = select(User.id).order_by((User.id == wanted).desc(), User.id).limit(1)
        assert total(harness, first, params={"wanted": 3}) == [(3,)]
        with pytest.raises(ConfigurationError, match="limit"):
            total(harness, statement, limit=1)

    def test_the_tenant_that_it_fails_for_is_named(self, harness: Harness, plain: Engine) -> None:
        with plain.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE tenant_b.users RENAME name TO nom")
        with pytest.raises(TenantQueryError, match="'b'"):
            total(harness, select(func.max(User.name)))

    def test_a_sum_that_no_longer_fits_its_type(self, harness: Harness) -> None:
        huge = select(func.sum(User.id * 0 + 2_000_000_000)).where(User.id > 0)
        assert total(harness, huge) == [(20_000_000_000,)]


# -- random data ----------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = 'it\'s "blue" 100% :really'


class OddBase(DeclarativeBase):
    pass


class Odd(OddBase):
    __tablename__ = 'Odd "table" 100% :x'

    id: Mapped[int] = mapped_column('the "id" :y', primary_key=True)
    colour: Mapped[Colour] = mapped_column(
        "Colour %", Enum(Colour, name='odd "Colour" %', values_callable=lambda e: [m.value for m in e])
    )
    colours: Mapped[list[Colour] | None] = mapped_column(
        ARRAY(Enum(Colour, name='odd "Colour" %', values_callable=lambda e: [m.value for m in e]))
    )
    numbers: Mapped[list[int] | None] = mapped_column(ARRAY(Numeric))
    document: Mapped[Any] = mapped_column(JSONB)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    words: Mapped[str | None]


TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "colour": st.sampled_from(Colour),
            "colours": st.none() | st.lists(st.sampled_from(Colour), max_size=3),
            "numbers": st.none() | st.lists(st.decimals(-1000, 1000, places=3), max_size=3),
            "document": DOCUMENTS,
            "at": st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
            "words": st.none() | TEXTS,
        }
    ),
    max_size=4,
)
COLUMNS: tuple[Any, ...] = (Odd.id, Odd.colour, Odd.colours, Odd.numbers, Odd.document, Odd.at, Odd.words)


def odd_statements() -> st.SearchStrategy[Select[*tuple[Any, ...]]]:
    filters: st.SearchStrategy[Any] = st.sampled_from(
        [
            Odd.colour == Colour.BLUE,
            Odd.colour.in_([Colour.RED, Colour.BLUE]),
            Odd.words.like("%a%"),
            Odd.document["a"].is_not(None),
            Odd.at > datetime(2000, 1, 1, tzinfo=UTC),
            literal(1) == any_(Odd.numbers),
            Odd.id > 1,
        ]
    )

    def build(columns: list[Any], criteria: list[Any], limit: int | None) -> Select[*tuple[Any, ...]]:
        return select(*columns).where(*criteria).order_by(Odd.id).limit(limit)

    return st.builds(
        build,
        st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=5),
        st.lists(filters, max_size=2, unique_by=id),
        st.none() | st.integers(0, 3),
    )


@pytest.fixture
def odd_harness(make_harness_: MakeHarness, databases: Databases) -> Harness:
    config_url = databases.make()
    config = TenantConfig(connection=Connection(url=config_url), schemas=Schemas(tenant=OddBase))
    with TenantManager(config) as manager:
        for tenant in ("one", "two", "three"):
            manager.create_tenant(tenant, schema=f'{tenant} "schema" % :z')
    return make_harness_(url=config_url, schemas=config.schemas)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_data_and_questions(odd_harness: Harness, data: st.DataObject) -> None:
    tenants = ("one", "three", "two")
    for tenant in tenants:
        rows = data.draw(ROWS)

        def fill(session: Any, rows: Any = rows) -> None:
            session.execute(delete(Odd))
            session.add_all([Odd(id=n, **row) for n, row in enumerate(rows, 1)])
            session.commit()

        odd_harness.session(tenant, fill)
    for _ in range(4):
        statement = data.draw(odd_statements())
        expected: list[Any] = []
        for tenant in tenants:
            found = odd_harness.connection(tenant, lambda c: c.execute(statement).all())
            expected += [(tenant, *row) for row in found]
        assert ask(odd_harness, statement) == expected
