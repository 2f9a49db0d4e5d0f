"""Creating and dropping tenants: all or nothing, one winner, no left-overs given away."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, func, select, text

from sqlalchemy_multitenant import (
    ConfigurationError,
    Connection,
    InvalidTenantIdError,
    Migrations,
    MultitenantError,
    ProvisioningError,
    Schemas,
    TenantBusyError,
    TenantCollisionError,
    TenantConfig,
    TenantExistsError,
    TenantManager,
    TenantNotFoundError,
    TenantStatus,
)
from tests.conftest import MakeConfig
from tests.harness import Harness
from tests.models import SharedBase, TenantBase, User


def schemas_of(plain: Engine) -> set[str]:
    with plain.connect() as connection:
        return set(
            connection.scalars(text("SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|info)'"))
        )


def test_a_tenant_is_created_whole(harness: Harness, plain: Engine) -> None:
    record = harness.call("create_tenant", "new", metadata={"plan": "pro"})
    assert (record.id, record.status, record.schema) == ("new", TenantStatus.ACTIVE, "tenant_new")
    assert record.metadata == {"plan": "pro"}
    assert abs(datetime.now(UTC) - record.created_at) < timedelta(minutes=5)
    assert harness.call("tenant_exists", "new")
    assert harness.call("get_tenant", "new") == record
    assert [r.id for r in harness.call("list_tenants")] == ["a", "b", "new"]
    assert harness.session("new", lambda s: s.scalar(select(func.count()).select_from(User))) == 0


def test_a_tenant_that_exists_is_refused_and_untouched(harness: Harness) -> None:
    harness.session("a", lambda s: (s.add(User(name="ada")), s.commit()))
    with pytest.raises(TenantExistsError):
        harness.call("create_tenant", "a")
    assert harness.session("a", lambda s: s.scalars(select(User.name)).all()) == ["ada"]


@pytest.mark.parametrize("wrong", ["", "a b", "abc\n", "ghost,tenant_a", "x" * 64, "é", 'q"', "a;b", None, 7])
def test_what_can_be_no_id_is_refused_everywhere(tenants: TenantManager, wrong: str) -> None:
    for use in (tenants.create_tenant, tenants.get_db, tenants.drop_tenant, tenants.get_tenant):
        with pytest.raises(InvalidTenantIdError):
            use(wrong)
    assert not tenants.tenant_exists(wrong)


def test_names_over_63_bytes_are_refused_not_cut(tenants: TenantManager) -> None:
    long = "x" * 57
    with pytest.raises(InvalidTenantIdError, match="64 bytes"):
        tenants.create_tenant(long)
    with pytest.raises(InvalidTenantIdError, match="64 bytes"):
        tenants.get_db(long).scalars(select(User))
    tenants.create_tenant(long[:-1])
    tenants.create_tenant(long, schema="short")
    assert tenants.get_db(long).scalars(select(User)).all() == []


def test_ids_that_look_alike_are_different_tenants(tenants: TenantManager, plain: Engine) -> None:
    ids = ["a-b", "a_b", "a.b", "A-B", "x-y", "x--y"]
    for name in ids:
        tenants.create_tenant(name)
        with tenants.get_db(name).begin() as session:
            session.add(User(name=name))
    for name in ids:
        assert tenants.get_db(name).scalars(select(User.name)).all() == [name]
    assert {f"tenant_{name}" for name in ids} <= schemas_of(plain)


def underscored(tenant: str) -> str:
    return "tenant_" + tenant.lower().replace("-", "_")


def test_a_callable_that_makes_two_ids_meet_is_caught(make_config: MakeConfig) -> None:
    with TenantManager(make_config(schema_name=underscored)) as manager:
        manager.create_tenant("x-y")
        with manager.get_db("x-y").begin() as session:
            session.add(User(name="secret"))
        for second in ("x_y", "X-Y"):
            with pytest.raises(TenantCollisionError, match="x-y"):
                manager.create_tenant(second)
            with pytest.raises(TenantNotFoundError):
                manager.get_db(second).scalars(select(User.name))


def test_a_callable_that_makes_two_ids_meet_is_caught_without_a_catalog(
    make_config: MakeConfig, plain: Engine
) -> None:
    config = make_config(schema_name=underscored, migrations=Migrations(discover=lambda: ["x-y"]))
    with TenantManager(config) as manager:
        manager.create_tenant("x-y")
        assert manager.get_db("x-y").scalars(select(User)).all() == []
        with pytest.raises(TenantCollisionError):
            manager.get_db("x_y").scalars(select(User))
        with pytest.raises(TenantCollisionError):
            manager.create_tenant("x_y")
    # The first to ask in a process that has seen nothing yet.
    with TenantManager(config) as other, pytest.raises(TenantCollisionError):
        other.get_db("x_y").scalars(select(User))
    with TenantManager(config) as other:
        assert not other.tenant_exists("x_y")
    with TenantManager(config) as other, pytest.raises(TenantCollisionError):
        other.get_tenant("x_y")


def test_an_id_that_discover_does_not_list_has_no_schema_even_where_one_is_there(
    make_config: MakeConfig, plain: Engine
) -> None:
    listed = ["x-y"]
    config = make_config(schema_name=underscored, migrations=Migrations(discover=lambda: listed))
    with TenantManager(config) as manager:
        manager.create_tenant("x-y")
        listed.clear()
    with TenantManager(config) as other:
        with pytest.raises(TenantNotFoundError, match="does not list"):
            other.get_db("x-y").scalars(select(User))
        with pytest.raises(TenantNotFoundError, match="does not list"):
            other.get_tenant("x-y")
        assert not other.tenant_exists("x-y")
        listed.append("x-y")
        assert other.tenant_exists("x-y")
        assert other.get_db("x-y").scalars(select(User)).all() == []


@pytest.mark.parametrize("schema", ["public", "pg_catalog", "information_schema", "tenant_a", "", "x" * 64])
def test_an_override_cannot_name_what_belongs_to_others(
    tenants: TenantManager, plain: Engine, schema: str
) -> None:
    before = schemas_of(plain)
    with pytest.raises((InvalidTenantIdError, TenantExistsError)):
        tenants.create_tenant("new", schema=schema)
    assert schemas_of(plain) == before
    assert not tenants.tenant_exists("new")


def test_an_override_is_where_the_tenant_lives(tenants: TenantManager) -> None:
    tenants.create_tenant("new", schema="legacy")
    assert tenants.get_db("new").scalar(text("SELECT current_schema()")) == "legacy"
    with pytest.raises(TenantCollisionError):
        tenants.create_tenant("other", schema="legacy")


def test_left_over_data_is_not_given_to_a_new_customer(tenants: TenantManager, plain: Engine) -> None:
    with plain.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA tenant_new")
        connection.exec_driver_sql("CREATE TABLE tenant_new.users (name text)")
    with pytest.raises(TenantExistsError, match="belongs to no tenant"):
        tenants.create_tenant("new")
    assert not tenants.tenant_exists("new")
    with pytest.raises(TenantNotFoundError):
        tenants.get_db("new").scalars(text("SELECT name FROM users"))


def test_a_dropped_tenant_may_come_again_empty(harness: Harness) -> None:
    harness.session("a", lambda s: (s.add(User(name="old")), s.commit()))
    harness.call("drop_tenant", "a")
    assert not harness.call("tenant_exists", "a")
    with pytest.raises(TenantNotFoundError):
        harness.call("drop_tenant", "a")
    harness.call("create_tenant", "a")
    assert harness.session("a", lambda s: s.scalars(select(User.name)).all()) == []


def test_a_failed_create_leaves_nothing(make_config: MakeConfig, plain: Engine) -> None:
    before = schemas_of(plain)
    with plain.begin() as connection:
        connection.exec_driver_sql("DROP TABLE plans CASCADE")
    with TenantManager(make_config()) as manager:
        with pytest.raises(ProvisioningError, match="plans"):
            manager.create_tenant("new")
        assert not manager.tenant_exists("new")
    assert schemas_of(plain) == before


def test_many_creations_of_one_id_give_one_tenant(make_config: MakeConfig) -> None:
    managers = [TenantManager(make_config()) for _ in range(4)]

    def create(manager: TenantManager) -> str:
        try:
            manager.create_tenant("new")
        except MultitenantError as error:
            return type(error).__name__
        return "created"

    with ThreadPoolExecutor(8) as pool:
        outcomes = Counter(pool.map(create, managers * 2))
    for manager in managers:
        manager.close()
    assert outcomes == {"created": 1, "TenantExistsError": 7}


def test_many_creations_at_once_all_succeed(empty_url: URL) -> None:
    """On a database without a catalog, so that they all meet in its installation, too."""
    config = TenantConfig(connection=Connection(url=empty_url), schemas=Schemas(tenant=User2Base))
    managers = [TenantManager(config) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: managers[i % 4].create_tenant(f"t{i}"), range(20)))
    assert len(managers[0].list_tenants()) == 20
    for manager in managers:
        manager.close()


from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column  # noqa: E402


class User2Base(DeclarativeBase):
    pass


class Thing(User2Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)


def test_a_tenant_in_use_is_not_dropped(make_config: MakeConfig) -> None:
    config = make_config(migrations=Migrations(lock_timeout_s=0.2))
    with TenantManager(config) as manager, manager.get_db("a").session() as session:
        session.add(User(name="ada"))
        session.flush()
        with pytest.raises(TenantBusyError, match="in use"):
            manager.drop_tenant("a")
        session.commit()
        assert session.scalars(select(User.name)).all() == ["ada"]


def test_a_suspension_in_another_process_holds_at_once(tenants: TenantManager, url: URL) -> None:
    db = tenants.get_db("a")
    db.scalars(select(User)).all()
    code = f"""
from sqlalchemy_multitenant import *
from tests.models import *
config = TenantConfig(connection=Connection(url={url.render_as_string(hide_password=False)!r}),
                      schemas=Schemas(tenant=TenantBase, shared=SharedBase))
with TenantManager(config) as manager:
    manager.drop_tenant("a")
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60, cwd=root)
    with pytest.raises(TenantNotFoundError):
        db.scalars(select(User))


def test_status_is_checked(tenants: TenantManager) -> None:
    with pytest.raises(ConfigurationError, match="frozen"):
        tenants.set_tenant_status("a", "frozen")
    with pytest.raises(ConfigurationError, match="drop_tenant"):
        tenants.set_tenant_status("a", "dropped")
    with pytest.raises(TenantNotFoundError):
        tenants.set_tenant_status("ghost", "active")
    tenants.set_tenant_status("a", TenantStatus.SUSPENDED)
    assert tenants.get_tenant("a").status is TenantStatus.SUSPENDED
    assert tenants.tenant_exists("a")


def test_status_changes_at_once_from_many_threads(tenants: TenantManager) -> None:
    def flip(i: int) -> None:
        tenants.set_tenant_status("ab"[i % 2], ("suspended", "active")[i // 2 % 2])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(flip, range(60)))
    for name in "ab":
        tenants.set_tenant_status(name, "active")
        assert tenants.get_db(name).scalars(select(User)).all() == []


def test_discovery_replaces_the_catalog(make_config: MakeConfig, plain: Engine) -> None:
    with plain.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE companies (id text, active bool)")
        connection.exec_driver_sql("INSERT INTO companies VALUES ('a', true), ('b', true), ('c', false)")

    def discover(connection):  # type: ignore[no-untyped-def]
        return connection.scalars(text("SELECT id FROM companies WHERE active ORDER BY id"))

    with TenantManager(make_config(migrations=Migrations(discover=discover))) as manager:
        assert [r.id for r in manager.list_tenants()] == ["a", "b"]
        assert manager.get_db("a").scalars(select(User)).all() == []
        with pytest.raises(TenantNotFoundError):
            manager.get_db("c").scalars(select(User))
        assert manager.tenant_exists("a")
        assert not manager.tenant_exists("c")
        with pytest.raises(ConfigurationError, match="discover"):
            manager.set_tenant_status("a", "suspended")
        with pytest.raises(ConfigurationError, match="discover"):
            manager.create_tenant("d", schema="elsewhere")
        with pytest.raises(TenantExistsError):
            manager.create_tenant("a")
        manager.drop_tenant("b")
        with pytest.raises(TenantNotFoundError):
            manager.get_db("b").scalars(select(User))


def test_a_shared_schema_of_another_name(empty_url: URL) -> None:
    from sqlalchemy import create_engine

    engine = create_engine(empty_url)
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Common"')
        connection.exec_driver_sql('SET LOCAL search_path TO "Common"')
        SharedBase.metadata.create_all(connection, checkfirst=False)
    engine.dispose()
    schemas = Schemas(tenant=TenantBase, shared=SharedBase, shared_schema="Common")
    with TenantManager(TenantConfig(connection=Connection(url=empty_url), schemas=schemas)) as manager:
        manager.create_tenant("a")
        assert manager.get_db("a").scalars(select(User)).all() == []
        manager.set_tenant_status("a", "suspended")
        with pytest.raises(MultitenantError, match="suspended"):
            manager.get_db("a").scalars(select(User))


def test_a_drop_waits_for_nobody_forever_and_two_drops_have_one_winner(make_config: MakeConfig) -> None:
    outcomes: list[str] = []
    with TenantManager(make_config()) as one, TenantManager(make_config()) as two:

        def drop(manager: TenantManager) -> None:
            try:
                manager.drop_tenant("a")
            except MultitenantError as error:
                outcomes.append(type(error).__name__)
            else:
                outcomes.append("dropped")

        threads = [threading.Thread(target=drop, args=(m,)) for m in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(outcomes) == ["TenantNotFoundError", "dropped"]


def test_an_id_that_is_not_listed_gets_nobodys_schema(make_config: MakeConfig) -> None:
    """However many ask at once, and whoever comes first."""
    listed = ["x-y"]

    def discover() -> list[str]:
        time.sleep(0.05)
        return list(listed)

    config = make_config(schema_name=underscored, migrations=Migrations(discover=discover))
    with TenantManager(config) as manager:
        manager.create_tenant("x-y")
        with manager.get_db("x-y").begin() as session:
            session.add(User(name="secret"))
    with TenantManager(config) as manager, ThreadPoolExecutor(6) as pool:

        def ask(tenant: str) -> object:
            try:
                return manager.get_db(tenant).scalars(select(User.name)).all()
            except MultitenantError as error:
                return type(error).__name__

        answers = list(pool.map(ask, ["zz", "x_y", "X-Y", "x-y", "x_y", "x-y"]))
        assert [a for a in answers if isinstance(a, list)] == [["secret"], ["secret"]]
        listed.append("late-one")
        manager.create_tenant("late-one")
        assert ask("late-one") == []
        assert ask("late_one") == "TenantCollisionError"
