"""What is compiled is what the revision would do; what that cannot be told of runs online."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from sqlalchemy_multitenant import Migrator, TenantConfig, TenantManager
from sqlalchemy_multitenant.isolation.sqltext import split_statements
from sqlalchemy_multitenant.migrations.pacing import LockOrder
from tests.integration.fleet import FIRST, Write, fleet, rows


def test_a_refusal_that_is_caught_is_one(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    with db.begin() as connection:
        connection.exec_driver_sql("INSERT INTO tenant_t00.items (name) VALUES ('x')")
    write(
        "0002",
        "0001",
        """
        try:
            names = list(op.get_bind().execute(sa.text("SELECT name FROM items")).scalars())
        except Exception:
            names = []
        for name in names:
            op.execute(f"INSERT INTO items (name) VALUES ('{name} again')")
        """,
    )
    with Migrator(config) as migrator:
        assert "get_bind" in str(migrator.plan()[0].plan.online)
        assert migrator.migrate_all().succeeded == 2
    assert rows(db, "t00", "SELECT name FROM items ORDER BY id") == ["x", "x again"]


@pytest.mark.parametrize("asks", ["op.get_context().as_sql", "op.get_context().impl.as_sql"])
def test_a_helper_may_ask_for_the_offline_mode(
    config: TenantConfig,
    write: Write,
    db: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asks: str,
) -> None:
    (tmp_path / "some_helper.py").write_text(
        f"from alembic import op\n\ndef fill():\n    if not {asks}:\n"
        "        op.execute(\"INSERT INTO items (name) VALUES ('filled')\")\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", "import some_helper\nsome_helper.fill()")
    try:
        with Migrator(config) as migrator:
            assert "offline mode" in str(migrator.plan()[0].plan.online)
            assert migrator.migrate_all().succeeded == 1
    finally:
        sys.modules.pop("some_helper", None)
    assert rows(db, "t00", "SELECT name FROM items") == ["filled"]


def test_a_revision_with_a_connection_of_its_own_is_run_and_not_only_recorded(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    fleet(config, 2)
    with db.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE public.calls (n int)")
    url = db.url.render_as_string(hide_password=False)
    write(
        "0002",
        "0001",
        f"""
        engine = sa.create_engine({url!r})
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO public.calls VALUES (1)")
        engine.dispose()
        """,
    )
    with Migrator(config) as migrator:
        assert "sends nothing" in str(migrator.plan()[0].plan.online)
        with db.begin() as connection:
            connection.exec_driver_sql("TRUNCATE public.calls")
        assert migrator.migrate_all().succeeded == 2
    assert rows(db, "t00", "SELECT count(*) FROM public.calls") == [2]


def test_an_empty_revision_is_compiled(config: TenantConfig, write: Write) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", "pass")
    with Migrator(config) as migrator:
        assert migrator.plan()[0].plan.online is None


def test_long_texts_are_split_at_once() -> None:
    """A regular expression that starts anew at each blank takes hours for this."""
    text = "INSERT INTO t VALUES ('" + "x;" * 1_000_000 + "')"
    body = "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$" + " ; " * 500_000 + "$$"
    assert split_statements(f"{text}; {body}; SELECT 1") == [text, body, "SELECT 1"]


# -- what is made ahead -------------------------------------------------------------------------------

OF_THE_CATALOG = (
    "op.get_bind()\n"
    'op.execute("INSERT INTO items (name) SELECT r.id FROM public.multitenant_tenants r '
    "JOIN pg_catalog.pg_namespace n ON n.nspname = r.schema_name "
    "JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid WHERE c.oid = 'items'::regclass\")"
)


def test_what_a_revision_reads_in_the_catalog_is_each_tenants_own(
    config: TenantConfig, write: Write, db: Engine
) -> None:
    write("0001", None, FIRST)
    write("0002", "0001", OF_THE_CATALOG)
    with TenantManager(config) as manager:
        for tenant in "abcdef":
            manager.create_tenant(tenant)
            assert rows(db, tenant, "SELECT name FROM items") == [tenant]


def test_spares_are_not_made_of_what_a_new_version_may_change(
    config: TenantConfig, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other_helper.py").write_text("NAMES = ['old']\n")
    monkeypatch.syspath_prepend(tmp_path)
    write("0001", None, FIRST)
    write("0002", "0001", "import other_helper\nop.get_bind()\nop.execute('SELECT 1')")
    try:
        with TenantManager(config) as manager:
            with pytest.raises(Exception, match="imports other_helper"):
                manager.keep_spares(1)
            manager.create_tenant("a")
    finally:
        sys.modules.pop("other_helper", None)


# -- locks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statements", "may_wait"),
    [
        (["ALTER TABLE a ADD x int", "ALTER TABLE a ADD y int", "CREATE INDEX i ON a (x)"], [False] * 3),
        (["ALTER TABLE a ADD x int", "ALTER TABLE b ADD y int"], [False, True]),
        (["ALTER TABLE a ADD x int", 'CREATE UNIQUE INDEX i ON "b" (x)'], [False, True]),
        (["ALTER TABLE a ADD x int", "CREATE TABLE c (id int)", "UPDATE a SET x = 1"], [False] * 3),
        (["ALTER TABLE a ADD x int", "CREATE TABLE c (id int REFERENCES b)"], [False, True]),
        (["CREATE TABLE c (id int)", "ALTER TABLE b ADD x int", "DROP VIEW v"], [False, False, True]),
        (["ALTER TABLE a ADD x int", "ALTER TABLE a ADD FOREIGN KEY (x) REFERENCES b"], [False, True]),
        (
            ["ALTER TABLE a ADD x int", "SET LOCAL lock_timeout = '50ms'", "ALTER TABLE b ADD x int"],
            [False] * 3,
        ),
        (["SELECT 1", "ALTER TABLE IF EXISTS ONLY a ADD x int", "TRUNCATE a, b"], [False, False, True]),
    ],
)
def test_which_statements_may_wait_while_others_are_locked(
    statements: list[str], may_wait: list[bool]
) -> None:
    order = LockOrder()
    assert [order.may_wait(statement) for statement in statements] == may_wait
