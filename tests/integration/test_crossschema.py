"""Queries over a tenant's and the shared tables, on a real database and under each driver."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import pytest
from pydantic import BaseModel, ValidationError
from sqlalchemy import URL, Engine, ForeignKey, create_engine, event, func, inspect, select, text
from sqlalchemy.exc import InvalidRequestError, MultipleResultsFound, NoResultFound, ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqlalchemy_multitenant import (
    AsyncCrossSchemaQuery,
    ConfigurationError,
    Connection,
    CrossSchemaQuery,
    Schemas,
    TenantConfig,
    TenantManager,
    TenantNotFoundError,
    cross_schema_raw,
    optional,
    with_shared_lookup,
)
from tests.conftest import MakeConfig
from tests.harness import AsyncHarness, Harness
from tests.models import Mood, Note, Plan, SharedBase, User


@pytest.fixture(autouse=True)
def rows(tenants: TenantManager) -> None:
    """Two tenants with the same ids and other names; two plans, one of them used by nobody."""
    with tenants.get_shared_db().begin() as session:
        session.add_all([Plan(id=1, name="gold"), Plan(id=2, name="unused")])
    for tenant in ("a", "b"):
        with tenants.get_db(tenant).begin() as session:
            session.add_all(
                [
                    User(id=1, name=f"{tenant}1", plan_id=1),
                    User(id=2, name=f"{tenant}2", mood=Mood.GRUMPY),
                    Note(id=1, text=f"{tenant} note", user_id=1),
                ]
            )


def start(harness: Harness, tenant: str = "a") -> Any:
    """A query over both schemas, with a tenant's `users` as its first table."""
    kind = AsyncCrossSchemaQuery if isinstance(harness, AsyncHarness) else CrossSchemaQuery
    manager: Any = harness.manager  # type: ignore[attr-defined]
    return kind(manager.get_db(tenant), manager.get_shared_db()).from_("tenant", User)


def got(harness: Harness, call: Any) -> Any:
    """The result of a call, awaited where it has to be."""
    if asyncio.iscoroutine(call):
        assert isinstance(harness, AsyncHarness)
        return harness.run(call)
    return call


def streamed(harness: Harness, rows: Any) -> list[Any]:
    async def collect() -> list[Any]:
        return [row async for row in rows]

    return harness.run(collect()) if isinstance(harness, AsyncHarness) else list(rows)


class TestQuery:
    def test_each_tenant_joins_its_own_rows(self, harness: Harness) -> None:
        for tenant in ("a", "b", "a"):
            query = start(harness, tenant).left_join("shared", Plan, User.plan_id == Plan.id)
            query = query.select(User.name, optional(Plan.name)).order_by(User.id)
            assert got(harness, query.all()) == [(f"{tenant}1", "gold"), (f"{tenant}2", None)]

    def test_every_way_to_run_it(self, harness: Harness) -> None:
        query = start(harness).select(User.id, User.mood).order_by(User.id)
        both = [(1, Mood.HAPPY), (2, Mood.GRUMPY)]
        assert got(harness, query.all()) == both
        assert got(harness, query.first()) == both[0]
        assert got(harness, query.where(User.id == 2).one()) == both[1]
        assert got(harness, query.where(User.id == 3).one_or_none()) is None
        assert got(harness, query.where(User.id == 3).first()) is None
        assert got(harness, query.scalars()).all() == [1, 2]
        assert streamed(harness, query.stream(batch=1)) == both
        with pytest.raises(MultipleResultsFound):
            got(harness, query.one())
        with pytest.raises(MultipleResultsFound):
            got(harness, query.one_or_none())
        with pytest.raises(NoResultFound):
            got(harness, query.where(User.id == 3).one())

    def test_rows_have_names(self, harness: Harness) -> None:
        row = got(
            harness, start(harness).select(User.name, func.count().label("n")).group_by(User.name).first()
        )
        assert (row.name, row.n) == ("a1", 1) or (row.name, row.n) == ("a2", 1)

    def test_right_and_full_joins(self, harness: Harness) -> None:
        right = start(harness).right_join("shared", Plan, User.plan_id == Plan.id)
        found = got(harness, right.select(optional(User.name), Plan.name).order_by(Plan.id).all())
        assert found == [("a1", "gold"), (None, "unused")]
        full = start(harness).full_join("shared", Plan, User.plan_id == Plan.id)
        found = got(harness, full.select(optional(User.name), optional(Plan.name)).all())
        assert sorted(found, key=str) == [("a1", "gold"), ("a2", None), (None, "unused")]

    def test_objects_come_back_detached(self, harness: Harness) -> None:
        query = start(harness).left_join("shared", Plan, User.plan_id == Plan.id).order_by(User.id)
        (user, plan), (other, nothing) = got(harness, query.select(User, optional(Plan)).all())
        assert (user.name, plan.name, other.name, nothing) == ("a1", "gold", "a2", None)
        assert inspect(user).detached
        assert inspect(plan).detached

    def test_ctes_and_subqueries(self, harness: Harness) -> None:
        notes = select(Note.user_id, func.count().label("n")).group_by(Note.user_id).cte("per_user")
        query = start(harness).left_join("tenant", notes, notes.c.user_id == User.id).order_by(User.id)
        assert got(harness, query.select(User.name, func.coalesce(notes.c.n, 0)).all()) == [
            ("a1", 1),
            ("a2", 0),
        ]

    def test_groups(self, harness: Harness) -> None:
        query = start(harness).inner_join("shared", Plan).group_by(Plan.name).having(func.count() > 0)
        assert got(harness, query.select(Plan.name, func.count(), func.max(User.id)).all()) == [
            ("gold", 1, 1)
        ]

    def test_it_is_the_plain_statement(self, harness: Harness) -> None:
        statement = start(harness).select(User.name).order_by(User.id).statement
        assert harness.session("b", lambda session: session.scalars(statement).all()) == ["b1", "b2"]

    def test_an_unknown_tenant_raises(self, harness: Harness) -> None:
        with pytest.raises(TenantNotFoundError):
            got(harness, start(harness, "nobody").select(User.id).all())


def test_a_stream_that_is_left_gives_its_connection_back(make_config: MakeConfig) -> None:
    with TenantManager(make_config(pool_size=1, pool_timeout_s=1)) as manager:
        query = CrossSchemaQuery(manager.get_db("a"), manager.get_shared_db()).from_("tenant", User)
        stream = query.select(User.id).stream(batch=1)
        assert next(stream) in ((1,), (2,))
        stream.close()
        assert len(query.select(User.id).all()) == 2


class ZooBase(DeclarativeBase):
    pass


class Animal(ZooBase):
    __tablename__ = "animals"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    plan_id: Mapped[int | None]
    toys: Mapped[list[Toy]] = relationship(lazy="joined")
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "animal",
    }


class Dog(Animal):
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_identity": "dog"
    }


class Toy(ZooBase):
    __tablename__ = "toys"

    id: Mapped[int] = mapped_column(primary_key=True)
    animal_id: Mapped[int] = mapped_column(ForeignKey(Animal.id))


class TestInheritance:
    """Classes that share a table, and collections that are loaded with their owners."""

    @pytest.fixture
    def zoo(self, empty_url: URL) -> Iterator[TenantManager]:
        schemas = Schemas(tenant=ZooBase, shared=SharedBase)
        engine = create_engine(empty_url)
        SharedBase.metadata.create_all(engine)
        engine.dispose()
        with TenantManager(TenantConfig(connection=Connection(url=empty_url), schemas=schemas)) as manager:
            manager.create_tenant("zoo")
            with manager.get_shared_db().begin() as session:
                session.add_all([Plan(id=1, name="gold"), Plan(id=2, name="unused")])
            with manager.get_db("zoo").begin() as session:
                session.add(Animal(id=1, plan_id=1))
                session.add(Dog(id=2, plan_id=1, toys=[Toy(id=1), Toy(id=2)]))
            yield manager

    def test_only_rows_of_the_class(self, zoo: TenantManager) -> None:
        query = CrossSchemaQuery(zoo.get_db("zoo"), zoo.get_shared_db())
        dogs = query.from_("tenant", Dog)
        assert dogs.select(func.count()).one() == (1,)
        joined = dogs.left_join("shared", Plan, Dog.plan_id == Plan.id)
        assert joined.select(Dog.id, optional(Plan.name)).all() == [(2, "gold")]
        plans = query.from_("shared", Plan).left_join("tenant", Dog, Dog.plan_id == Plan.id)
        found = plans.select(optional(Dog.id), Plan.name).order_by(Plan.id).all()
        assert found == [(2, "gold"), (None, "unused")]
        for join in (dogs.right_join, dogs.full_join):
            with pytest.raises(ConfigurationError, match="some rows of its table"):
                join("shared", Plan, Dog.plan_id == Plan.id)

    def test_an_owner_comes_once(self, zoo: TenantManager) -> None:
        db, shared = zoo.get_db("zoo"), zoo.get_shared_db()
        query = CrossSchemaQuery(db, shared).from_("tenant", Animal).select(Animal).order_by(Animal.id)
        assert [animal.id for (animal,) in query.all()] == [1, 2]
        assert [animal.id for animal in query.scalars()] == [1, 2]
        assert len(query.where(Animal.id == 2).one()[0].toys) == 2
        looked_up = with_shared_lookup(db, shared, Animal, Plan, foreign_key=Animal.plan_id)
        assert len(looked_up) == 2

    def test_what_is_executed_in_one_shot_asks_for_unique(self, zoo: TenantManager) -> None:
        db = zoo.get_db("zoo")
        with pytest.raises(InvalidRequestError, match="unique"):
            db.execute(select(Animal)).all()
        assert len(db.scalars(select(Animal)).unique().all()) == 2


class TestNatural:
    """What the documentation names first: SQLAlchemy's own joins and relationships."""

    def test_an_outer_join(self, harness: Harness) -> None:
        statement = select(User.name, Plan.name).outerjoin(Plan, User.plan_id == Plan.id).order_by(User.id)
        found = harness.session("b", lambda session: [tuple(row) for row in session.execute(statement)])
        assert found == [("b1", "gold"), ("b2", None)]

    def test_a_relationship_to_a_shared_model(self, harness: Harness) -> None:
        def plans(session: Any) -> list[str | None]:
            users = session.scalars(select(User).order_by(User.id))
            return [user.plan.name if user.plan else None for user in users]

        assert harness.session("a", plans) == ["gold", None]


class TestLookup:
    def look(self, harness: Harness, tenant: str = "a", **options: Any) -> Any:
        manager: Any = harness.manager  # type: ignore[attr-defined]
        pair = manager.get_db(tenant), manager.get_shared_db()
        return got(harness, with_shared_lookup(*pair, User, Plan, foreign_key=User.plan_id, **options))

    def test_fields(self, harness: Harness) -> None:
        for tenant in ("a", "b"):
            found = self.look(harness, tenant, fields=(Plan.id, Plan.name), order_by=User.id)
            assert [(user.name, *rest) for user, *rest in found] == [
                (f"{tenant}1", 1, "gold"),
                (f"{tenant}2", None, None),
            ]

    def test_the_whole_object(self, harness: Harness) -> None:
        found = self.look(harness, order_by=[User.id.desc()])
        assert [(user.id, plan and plan.name) for user, plan in found] == [(2, None), (1, "gold")]

    def test_where_and_limit(self, harness: Harness) -> None:
        assert len(self.look(harness, fields=(Plan.id,), limit=1)) == 1
        assert [u.id for u, _ in self.look(harness, fields=(Plan.id,), where=Plan.name == "gold")] == [1]
        both = [User.id > 0, Plan.id.is_(None)]
        assert [u.id for u, _ in self.look(harness, fields=(Plan.id,), where=both)] == [2]


class AsNamedTuple(NamedTuple):
    name: str
    plan: str | None


class AsTypedDict(TypedDict):
    name: str
    plan: str | None


@dataclass
class AsDataclass:
    name: str
    plan: str | None


class AsModel(BaseModel):
    name: str
    plan: str | None


JOIN = """
    SELECT u.name, p.name AS plan  -- $tenant :no
    FROM $tenant.users u LEFT JOIN $shared.plans p ON p.id = u.plan_id
    WHERE u.name <> '$tenant :no 100%' AND u.id <= :most ORDER BY u.id
"""


class TestRaw:
    def run(self, harness: Harness, sql: str, *args: Any, tenant: str = "a", **options: Any) -> Any:
        manager: Any = harness.manager  # type: ignore[attr-defined]
        return got(harness, cross_schema_raw(manager.get_db(tenant), sql, *args, **options))

    @pytest.mark.parametrize("into", [AsNamedTuple, AsTypedDict, AsDataclass, AsModel])
    def test_rows_of_a_class(self, harness: Harness, into: type[Any]) -> None:
        for tenant in ("a", "b"):
            found = self.run(harness, JOIN, {"most": 2}, into=into, tenant=tenant)
            assert all(isinstance(row, dict if into is AsTypedDict else into) for row in found)
            read = [row if isinstance(row, dict) else {"name": row.name, "plan": row.plan} for row in found]
            assert read == [
                {"name": f"{tenant}1", "plan": "gold"},
                {"name": f"{tenant}2", "plan": None},
            ]

    def test_plain_rows(self, harness: Harness) -> None:
        (row,) = self.run(harness, JOIN, {"most": 1})
        assert (row, row.plan) == (("a1", "gold"), "gold")

    def test_tenant_stands_for_the_tenant_and_nothing_else(self, harness: Harness, plain: Engine) -> None:
        with plain.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE only_shared AS SELECT 1 AS x")
        assert self.run(harness, "SELECT x FROM $shared.only_shared") == [(1,)]
        with pytest.raises(ProgrammingError, match="does not exist"):
            self.run(harness, "SELECT x FROM $tenant.only_shared")

    def test_a_schema_whose_name_changed_meanwhile(self, harness: Harness, plain: Engine) -> None:
        assert self.run(harness, "SELECT count(*) FROM $tenant.users") == [(2,)]
        with plain.begin() as connection:
            connection.exec_driver_sql("ALTER SCHEMA tenant_a RENAME TO moved")
            connection.exec_driver_sql("ALTER SCHEMA tenant_b RENAME TO tenant_a")
            connection.exec_driver_sql("UPDATE multitenant_tenants SET schema_name = 'moved' WHERE id = 'a'")
        found = self.run(harness, "SELECT name FROM $tenant.users ORDER BY id")
        assert found == [("a1",), ("a2",)]

    def test_a_string_that_looks_like_a_drivers_parameter(self, harness: Harness) -> None:
        found = self.run(harness, "SELECT '%(a)s' AS x, $$%(a)s$$ AS y, :a::int AS z", {"a": 1})
        assert found == [("%(a)s", "%(a)s", 1)]

    def test_what_it_changes_is_committed(self, harness: Harness) -> None:
        sql = "UPDATE $tenant.users SET name = :name WHERE id = 1"
        assert self.run(harness, f"{sql} RETURNING id, name", {"name": "x"}) == [(1, "x")]
        assert self.run(harness, sql, {"name": "y"}) == []
        assert self.run(harness, "SELECT name FROM users WHERE id = 1") == [("y",)]
        assert self.run(harness, "SELECT name FROM users WHERE id = 1", tenant="b") == [("b1",)]

    def test_a_mismatch_commits_nothing(self, harness: Harness) -> None:
        sql = "UPDATE $tenant.users SET name = 'x' RETURNING id"
        with pytest.raises(ConfigurationError, match="no column name, plan; no field for id"):
            self.run(harness, sql, into=AsDataclass)
        with pytest.raises(ConfigurationError, match="returns no rows; add RETURNING"):
            self.run(harness, "DELETE FROM $tenant.notes", into=AsDataclass)
        assert self.run(harness, "SELECT count(*) FROM users WHERE name = 'x'") == [(0,)]
        assert self.run(harness, "SELECT count(*) FROM notes") == [(1,)]

    def test_no_rows_are_held_against_the_class_as_well(self, harness: Harness) -> None:
        with pytest.raises(ConfigurationError, match="no field for one"):
            self.run(harness, "SELECT 'x' AS name, NULL AS plan, 1 AS one WHERE false", into=AsDataclass)

    def test_null_is_no_str(self, harness: Harness) -> None:
        sql = "SELECT NULL AS name, NULL AS plan"
        with pytest.raises(
            ConfigurationError, match=r"AsDataclass.name = None: .*NoneType, and the field is str"
        ):
            self.run(harness, sql, into=AsDataclass)
        with pytest.raises(ValidationError):
            self.run(harness, sql, into=AsModel)


def test_a_reference_to_a_shared_table_is_a_foreign_key(tenants: TenantManager) -> None:
    with tenants.get_db("a").connect() as connection:
        found = connection.execute(
            text("SELECT confrelid::regclass::text FROM pg_constraint WHERE conname = 'users_plan_id_fkey' "
                 "AND connamespace = current_schema()::regnamespace")
        ).scalars()  # fmt: skip
        assert list(found) == ["plans"]


def test_a_raw_query_with_tenant_costs_one_round_trip_more(tenants: TenantManager) -> None:
    db = tenants.get_db("a")
    sent: list[str] = []

    @event.listens_for(db.engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    cross_schema_raw(db, "SELECT 1 FROM $tenant.users")
    cross_schema_raw(db, "SELECT 1 FROM $shared.plans")
    assert len(sent) == 3
