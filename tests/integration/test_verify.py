"""Every tenant's catalogue against what the revisions build."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from sqlalchemy_multitenant import MigrationError, Migrator, TenantConfig, TenantManager
from tests.integration.fleet import FIRST, Write, fleet, restore

EVERYTHING = '''
op.execute("""
CREATE TYPE mood AS ENUM ('happy', 'it''s', 'grumpy');
CREATE DOMAIN positive AS int DEFAULT 1 CHECK (VALUE > 0);
CREATE TYPE span AS RANGE (subtype = int);
CREATE TYPE pair AS (a int, b text);
CREATE SEQUENCE numbers INCREMENT 2;
CREATE TABLE users (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name varchar(40) NOT NULL DEFAULT 'it''s',
    mood mood DEFAULT 'happy',
    size positive,
    number int DEFAULT nextval('numbers'),
    double int GENERATED ALWAYS AS (size * 2) STORED,
    CONSTRAINT one_name UNIQUE (name),
    CHECK (name <> '')
);
CREATE TABLE notes (id bigserial PRIMARY KEY, user_id int REFERENCES users ON DELETE CASCADE, text text);
CREATE TABLE log (id int, day date) PARTITION BY RANGE (day);
CREATE TABLE log_2026 PARTITION OF log FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE INDEX by_text ON notes (lower(text)) WHERE text IS NOT NULL;
CREATE VIEW names AS SELECT u.name, n.text FROM users u JOIN notes n ON n.user_id = u.id;
CREATE MATERIALIZED VIEW counts AS SELECT mood, count(*) FROM users GROUP BY mood;
CREATE FUNCTION total(m mood) RETURNS bigint LANGUAGE sql STABLE
    AS 'SELECT count(*) FROM users WHERE mood = m';
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER touched BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch();
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON notes FOR SELECT TO PUBLIC USING (user_id > 0);
CREATE RULE kept AS ON DELETE TO notes DO INSTEAD NOTHING;
CREATE STATISTICS together ON name, mood FROM users;
COMMENT ON TABLE users IS 'who may log in';
CREATE AGGREGATE sum_up(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE TABLE "a.b" ();
CREATE TABLE a ("b.c" int);
CREATE TABLE kinds (kind varchar(10) CHECK (kind IN ('x', 'y')))
    WITH (fillfactor = 70, autovacuum_enabled = off);
CREATE INDEX some_kinds ON kinds (kind) WHERE kind IN ('x', 'y');
""")
'''

CHANGES = {
    "ALTER TABLE users ADD COLUMN extra int": "column users.extra is in no revision",
    "ALTER TABLE notes DROP COLUMN text CASCADE": "column notes.text is missing",
    "ALTER TABLE users ALTER COLUMN number TYPE bigint": "column users.number",
    "ALTER TABLE users ALTER COLUMN name DROP NOT NULL": "column users.name",
    "ALTER TABLE users ALTER COLUMN mood SET DEFAULT 'grumpy'": "column users.mood",
    "ALTER TABLE users DROP CONSTRAINT one_name": "constraint users.one_name is missing",
    "ALTER TABLE users ADD CHECK (size < 100) NOT VALID": "constraint users.users_size_check",
    "DROP INDEX by_text": "index by_text is missing",
    "CREATE INDEX mine ON users (mood)": "index mine is in no revision",
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'by_text'::regclass": "invalid",
    "ALTER TYPE mood ADD VALUE 'sad'": "enum mood",
    "ALTER DOMAIN positive SET DEFAULT 2": "domain positive",
    "ALTER TYPE pair ADD ATTRIBUTE c int": "column pair.c",
    "ALTER SEQUENCE numbers INCREMENT 3": "sequence numbers",
    "ALTER SEQUENCE numbers OWNED BY users.number": "sequence numbers",
    "CREATE OR REPLACE VIEW names AS SELECT u.name, 'x'::text AS text FROM users u": "view names",
    "CREATE OR REPLACE FUNCTION total(m mood) RETURNS bigint LANGUAGE sql STABLE AS 'SELECT 1::bigint'": (
        "function total(m mood)"
    ),
    "ALTER FUNCTION total(mood) SECURITY DEFINER": "security definer",
    "DROP TRIGGER touched ON users": "trigger users.touched is missing",
    "ALTER TABLE users DISABLE TRIGGER touched": "trigger users.touched",
    "ALTER TABLE notes DISABLE ROW LEVEL SECURITY": "table notes",
    "ALTER POLICY own ON notes USING (true)": "policy notes.own",
    "DROP RULE kept ON notes": "rule notes.kept is missing",
    "ALTER TABLE log DETACH PARTITION log_2026": "table log_2026",
    "DROP STATISTICS together": "statistics together is missing",
    "COMMENT ON TABLE users IS 'somebody'": "table users",
    "ALTER TABLE users SET (fillfactor = 70)": "table users",
    "CREATE TABLE mine ()": "table mine is in no revision",
    "ALTER TABLE users REPLICA IDENTITY FULL": "table users",
    "ALTER TABLE users DISABLE TRIGGER ALL": "triggers D",
    "ALTER TABLE notes DISABLE RULE kept": "rule notes.kept",
    "CREATE OR REPLACE AGGREGATE sum_up(int) (SFUNC = int4pl, STYPE = int, INITCOND = '7')": "from '7'",
    "CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)": "operator ===",
    "CREATE COLLATION mine (provider = libc, locale = 'C')": "collation mine",
    "CREATE TEXT SEARCH CONFIGURATION mine (COPY = simple)": "text search configuration mine",
    'ALTER TABLE "a.b" ADD COLUMN c int': 'column "a.b".c',
}


def test_tenants_that_are_alike_have_no_differences(config: TenantConfig, write: Write) -> None:
    write("0001", None, EVERYTHING)
    fleet(config, 3)
    with TenantManager(config) as manager:
        manager.create_tenant("odd", schema='tenant\'s "odd"')
    write("0002", "0001", "op.add_column('users', sa.Column('late', sa.Text))")
    checked: list[str] = []
    with Migrator(config) as migrator:
        migrator.migrate_tenants(["t01", "odd"])
        found = migrator.verify(concurrency=2, on_progress=checked.append)
    assert [(v.tenant, v.ok, v.differences) for v in found] == [
        (name, True, ()) for name in ("odd", "t00", "t01", "t02")
    ]
    assert sorted(checked) == ["odd", "t00", "t01", "t02"]


def test_each_difference_is_named(config: TenantConfig, write: Write, db: Engine) -> None:
    write("0001", None, EVERYTHING)
    names = fleet(config, len(CHANGES) + 1)
    for name, change in zip(names, CHANGES, strict=False):
        with db.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL search_path TO tenant_{name}")
            connection.exec_driver_sql(change)
    with Migrator(config) as migrator:
        *changed, untouched = migrator.verify()
    assert untouched.ok
    for verification, (change, expected) in zip(changed, CHANGES.items(), strict=True):
        text = "; ".join(map(str, verification.differences))
        assert expected in text, (change, text)
        # Nothing else is blamed, but what hangs on it.
        assert len(verification.differences) <= 5, (change, text)


def test_an_archive_that_is_restored_is_as_the_revisions_build_it(
    config: TenantConfig, write: Write, db: Engine, tmp_path: Path
) -> None:
    write("0001", None, EVERYTHING)
    fleet(config, 2)
    file = tmp_path / "t00.dump"
    with TenantManager(config) as manager, Migrator(config) as migrator:
        manager.drop_tenant("t00", archive=file)
        restore(db, file)
        manager.adopt_tenant("t00")
        assert [(v.tenant, v.differences) for v in migrator.verify()] == [("t00", ()), ("t01", ())]


def test_the_schemas_name_in_a_functions_settings_is_no_difference(
    config: TenantConfig, write: Write
) -> None:
    body = "LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS 'SELECT 1'"
    write("0001", None, f'op.execute("CREATE FUNCTION safe() RETURNS int {body}")')
    fleet(config, 2)
    with TenantManager(config) as manager, Migrator(config) as migrator:
        manager.create_tenant("odd", schema='tenant\'s "odd"')
        assert [(v.tenant, v.differences) for v in migrator.verify()] == [
            ("odd", ()),
            ("t00", ()),
            ("t01", ()),
        ]
        with pytest.raises(MigrationError, match="search path of a function"):
            manager.keep_spares(1)


def test_new_tenants_need_no_revision_of_their_own(config: TenantConfig, write: Write, db: Engine) -> None:
    """Whatever a live tenant has outside of transactions, a new one has in its transaction."""
    write("0001", None, FIRST)
    fleet(config, 1)
    write(
        "0002",
        "0001",
        """
        op.get_bind()
        with op.get_context().autocommit_block():
            op.execute("CREATE INDEX CONCURRENTLY online ON items (name)")
        """,
    )
    write(
        "0003",
        "0002",
        """
        with op.get_context().autocommit_block():
            op.execute("-- an index\\nCREATE INDEX CONCURRENTLY compiled ON items (name)")
            op.execute("VACUUM ANALYZE items")
        """,
    )
    with Migrator(config) as migrator, TenantManager(config) as manager:
        report = migrator.migrate_all()
        assert report.failed == 0, report.details
        manager.create_tenant("new")
        assert [(v.tenant, v.differences) for v in migrator.verify()] == [("new", ()), ("t00", ())]


def test_what_cannot_be_compared_is_told(
    config: TenantConfig, write: Write, db: Engine, folder: Path
) -> None:
    write("0001", None, FIRST)
    fleet(config, 3)
    with db.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA tenant_t00 CASCADE")
        connection.exec_driver_sql("UPDATE tenant_t01.alembic_version SET version_num = 'gone'")
    with Migrator(config) as migrator:
        gone, unknown, fine = migrator.verify()
        assert "does not exist" in str(gone.problem)
        assert "gone" in str(unknown.problem)
        assert fine.ok
    for path in (folder / "versions").glob("*.py"):
        path.unlink()
    with Migrator(config) as migrator, pytest.raises(MigrationError, match="no revisions"):
        migrator.verify()


def test_who_was_taken_back_to_the_beginning_is_as_who_never_left_it(
    config: TenantConfig, write: Write
) -> None:
    """But for an empty version table."""
    write("0001", None, FIRST, down='op.drop_table("items")')
    fleet(config, 1)
    with Migrator(config) as migrator:
        migrator.rollback(to="base")
        (tenant,) = migrator.verify()
    assert tenant.ok, tenant.differences
