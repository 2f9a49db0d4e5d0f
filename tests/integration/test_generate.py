"""Writing revisions: from the models, without a tenant, and never twice."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import (
    ARRAY,
    JSON,
    URL,
    CheckConstraint,
    Column,
    Computed,
    Engine,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID

from sqlalchemy_multitenant import (
    ConfigurationError,
    Connection,
    MigrationError,
    Migrations,
    Migrator,
    Schemas,
    TenantConfig,
    TenantManager,
)


def shared_models(schema: str | None = None) -> MetaData:
    metadata = MetaData()
    Table("plans", metadata, Column("id", Integer, primary_key=True), Column("name", String), schema=schema)
    return metadata


def tenant_models(shared: MetaData) -> MetaData:
    """A bit of everything that autogenerate can see."""
    metadata = MetaData()
    (plans,) = shared.tables.values()
    Table(
        "users",
        metadata,
        Column("id", Integer, Identity(), primary_key=True),
        Column("name", String(40), nullable=False, server_default="it's 100%"),
        Column("mood", Enum("happy", "grumpy", name="mood")),
        Column("tags", ARRAY(String)),
        Column("data", JSONB, server_default=text("'{}'::jsonb")),
        Column("key", UUID, server_default=func.gen_random_uuid()),
        Column("created", TIMESTAMP(timezone=True), server_default=func.now()),
        Column("price", Numeric(10, 2), server_default="0"),
        Column("double", Numeric, Computed("price * 2", persisted=True)),
        Column("plan_id", ForeignKey(plans.c.id)),
        CheckConstraint("price >= 0", name="positive"),
        UniqueConstraint("name", name="one_name"),
        Index("by_plan", "plan_id", "created"),
        comment="who may log in",
    )
    Table(
        "notes", metadata, Column("id", Integer, primary_key=True), Column("user_id", ForeignKey("users.id"))
    )
    return metadata


def make_config(url: URL, folder: Path, tenant: MetaData, shared: MetaData | None) -> TenantConfig:
    return TenantConfig(
        connection=Connection(url=url),
        schemas=Schemas(tenant=tenant, shared=shared),
        migrations=Migrations(tenant_dir=folder / "tenant", shared_dir=folder / "shared"),
    )


@pytest.fixture
def db(empty_url: URL):  # type: ignore[no-untyped-def]
    engine = create_engine(empty_url)
    yield engine
    engine.dispose()


def relations(db: Engine) -> set[str]:
    with db.connect() as connection:
        return set(
            connection.scalars(
                text("SELECT relname FROM pg_class WHERE relnamespace::regnamespace::text !~ '^(pg_|info)'")
            )
        )


@pytest.mark.parametrize("explicit", [None, "public"])
def test_what_was_generated_needs_no_more(
    empty_url: URL, tmp_path: Path, db: Engine, explicit: str | None
) -> None:
    shared = shared_models(explicit)
    if explicit:
        # A foreign key that names the schema is checked against that schema, so it has to be there.
        shared.create_all(db)
    config = make_config(empty_url, tmp_path, tenant_models(shared), None if explicit else shared)
    before = relations(db)
    with Migrator(config) as migrator:
        written = migrator.generate("first")
        assert [r.kind for r in written] == (["tenant"] if explicit else ["shared", "tenant"])
        assert {r.path.name for r in written} == {"0001_first.py"}
        assert "add table users" in written[-1].changes
        assert migrator.generate("again") == []
        assert relations(db) == before
        migrator.migrate_shared()
    with TenantManager(config) as manager:
        manager.create_tenant("a")
        columns = manager.get_db("a").execute(
            text("INSERT INTO users (mood, tags, price) VALUES ('happy', '{x}', 2) RETURNING name, double")
        )
        assert [tuple(row) for row in columns] == [("it's 100%", 4)]
    with Migrator(config) as migrator:
        assert migrator.generate("after") == []


def test_changes_are_found_by_kind(empty_url: URL, tmp_path: Path) -> None:
    shared = shared_models()
    tenant = tenant_models(shared)
    config = make_config(empty_url, tmp_path, tenant, shared)
    with Migrator(config) as migrator:
        migrator.generate("first")
        shared.tables["plans"].append_column(Column("price", Integer))
        tenant.tables["notes"].append_column(Column("text", String))
        assert [r.changes for r in migrator.generate("more", "shared")] == [("add column plans.price",)]
        assert [r.changes for r in migrator.generate("more", "tenant")] == [("add column notes.text",)]
        assert migrator.generate("more") == []
        assert migrator.tenant_history.heads() == ("0002",)


def test_a_name_and_a_kind_are_wanted(empty_url: URL, tmp_path: Path) -> None:
    with Migrator(make_config(empty_url, tmp_path, MetaData(), None)) as migrator:
        with pytest.raises(MigrationError, match="--name"):
            migrator.generate("  ")
        with pytest.raises(MigrationError, match="neither"):
            migrator.generate("x", "both")  # type: ignore[arg-type]


def test_a_failure_leaves_no_file(empty_url: URL, tmp_path: Path, db: Engine) -> None:
    """The shared revision is written first; the tenants' own history is broken."""
    shared = shared_models()
    versions = tmp_path / "tenant" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_x.py").write_text(
        "from alembic import op\nrevision = '0001'\ndown_revision = None\n"
        "def upgrade():\n    op.execute('SELECT nonexistent')\n"
    )
    before = relations(db)
    with Migrator(make_config(empty_url, tmp_path, tenant_models(shared), shared)) as migrator:
        with pytest.raises(MigrationError, match="nonexistent"):
            migrator.generate("first")
    assert list((tmp_path / "shared" / "versions").glob("*.py")) == []
    assert relations(db) == before


def test_enum_types_are_made_and_extended_in_place(empty_url: URL, tmp_path: Path) -> None:
    """Alembic sees neither a new type of an existing table nor a new label."""

    def models(*labels: str) -> MetaData:
        metadata = MetaData()
        columns: list[Column[str]] = [Column("mood", Enum(*labels, name="mood"))] if labels else []
        Table("users", metadata, Column("id", Integer, primary_key=True), *columns)
        return metadata

    def generate(name: str, *labels: str) -> tuple[str, ...]:
        with Migrator(make_config(empty_url, tmp_path, models(*labels), None)) as migrator:
            return tuple(change for revision in migrator.generate(name) for change in revision.changes)

    assert generate("first") == ("add table users",)
    with TenantManager(make_config(empty_url, tmp_path, models(), None)) as manager:
        manager.create_tenant("a")
    assert generate("mood", "b", "d") == ("add column users.mood", "add enum mood")
    assert generate("more", "a", "b", "c", "d", "e") == tuple(
        f"add value {label} to enum mood" for label in "ace"
    )
    config = make_config(empty_url, tmp_path, models("a", "b", "c", "d", "e"), None)
    with Migrator(config) as migrator:
        assert migrator.migrate_tenants(["a"]).failed == 0
    with TenantManager(config) as manager:
        labels = manager.get_db("a").scalars(text("SELECT unnest(enum_range(NULL::mood))::text")).all()
        assert labels == list("abcde")


def test_changes_of_a_column_are_told_each(empty_url: URL, tmp_path: Path) -> None:
    shared = shared_models()
    tenant = tenant_models(shared)
    with Migrator(make_config(empty_url, tmp_path, tenant, shared)) as migrator:
        migrator.generate("first")
        name = tenant.tables["users"].c.name
        name.type, name.nullable = String(80), True
        (changed,) = migrator.generate("wider")
        assert changed.changes == ("modify type of users.name; modify nullable of users.name",)
        assert migrator.generate("again") == []


def test_a_default_that_has_no_equality_counts_as_changed(empty_url: URL, tmp_path: Path) -> None:
    def models(default: str) -> MetaData:
        metadata = MetaData()
        Table(
            "users",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("box", JSON, server_default=default),
        )
        return metadata

    for name, default, expected in (("first", "{}", 1), ("again", "{}", 0), ("other", "[]", 1)):
        with Migrator(make_config(empty_url, tmp_path, models(default), None)) as migrator:
            assert len(migrator.generate(name)) == expected, name


def test_what_may_be_a_rename_is_warned_of(empty_url: URL, tmp_path: Path) -> None:
    def generate(name: str, *tables: tuple[str, str]) -> tuple[str, ...]:
        metadata = MetaData()
        for table, column in tables:
            Table(table, metadata, Column("id", Integer, primary_key=True), Column(column, String(40)))
        with Migrator(make_config(empty_url, tmp_path, metadata, None)) as migrator:
            return tuple(warning for revision in migrator.generate(name) for warning in revision.warnings)

    assert generate("first", ("users", "name"), ("notes", "text")) == ()
    (column,) = generate("second", ("users", "full_name"), ("notes", "text"))
    assert "op.alter_column('users', 'name', new_column_name='full_name')" in column
    (table,) = generate("third", ("users", "full_name"), ("remarks", "text"))
    assert "op.rename_table('notes', 'remarks')" in table
    assert generate("fourth", ("users", "full_name")) == ()


def test_sql_may_be_written_by_hand(empty_url: URL, tmp_path: Path, db: Engine) -> None:
    shared = shared_models()
    config = make_config(empty_url, tmp_path, tenant_models(shared), shared)
    with Migrator(config) as migrator:
        migrator.generate("first")
        migrator.migrate_shared()
        written = migrator.generate_sql('Fill "it"')
        assert (written.kind, written.revision, written.path.name) == ("tenant", "0002", "0002_fill_it.py")
        source = written.path.read_text()
        up = "INSERT INTO notes (id) VALUES (1);\nINSERT INTO users (name) VALUES ('10:30 %s \\ x'::text);"
        source = source.replace("-- Statements", f"{up}\n-- Statements", 1)
        source = source.replace('DOWNGRADE = r"""\n', 'DOWNGRADE = r"""\nDELETE FROM users;\n', 1)
        written.path.write_text(source)
        migrator.tenant_history.reload()
        assert migrator.tenant_history.plan_upgrade(()).online is None
        assert migrator.generate_sql("more", "shared").path.name == "0002_more.py"
        with pytest.raises(MigrationError, match="--name"):
            migrator.generate_sql(" ")
    with TenantManager(config) as manager:
        with Migrator(config) as migrator:
            migrator.migrate_shared()
        manager.create_tenant("a")
        assert manager.get_db("a").scalars(text("SELECT name FROM users")).all() == ["10:30 %s \\ x"]
        with Migrator(config) as migrator:
            assert migrator.rollback("a", steps=1).succeeded == 1
        assert manager.get_db("a").scalars(text("SELECT name FROM users")).all() == []


def test_names_and_ids_are_the_projects_own(
    empty_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(empty_url, tmp_path, MetaData(), None)
    own = replace(config.migrations, file_template="%(year)d_%(slug)s-%(rev)s", revision_ids="random")
    with Migrator(replace(config, migrations=own)) as migrator:
        first, second = migrator.generate_sql("First things"), migrator.generate_sql("second")
    assert re.fullmatch(r"20\d\d_first_things-[0-9a-f]{12}\.py", first.path.name)
    assert second.revision != first.revision
    numbered = replace(config.migrations, revision_ids="number")
    with Migrator(replace(config, migrations=numbered)) as migrator:
        assert migrator.generate_sql("third").path.name == "0001_third.py"
    monkeypatch.setattr("secrets.token_hex", lambda size: "104684357559")
    with Migrator(replace(config, migrations=own)) as migrator:
        migrator.generate_sql("without a letter")
    with Migrator(replace(config, migrations=numbered)) as migrator:
        assert migrator.generate_sql("fifth").path.name == "0002_fifth.py"
    for wrong in (
        {"file_template": "%(slug)s"},
        {"file_template": "%(rev)s/%(x)s"},
        {"revision_ids": "uuid"},
    ):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            replace(config.migrations, **wrong)  # type: ignore[arg-type]
