"""An ordinary Alembic project with one schema becomes a multi-tenant one, its revisions as they are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL, Column, Engine, Integer, MetaData, String, Table, create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_multitenant import (
    ConfigurationError,
    Connection,
    MigrationError,
    Migrations,
    Migrator,
    ProvisioningError,
    Schemas,
    TenantCollisionError,
    TenantConfig,
    TenantExistsError,
    TenantManager,
)

ENV = """
from logging.config import fileConfig

from alembic import context
from alembic.operations import MigrateOperation, Operations
from sqlalchemy import MetaData, engine_from_config, pool

config = context.config
if config.config_file_name is not None:
    fileConfig(config.config_file_name)


@Operations.register_operation("note")
class NoteOp(MigrateOperation):
    def __init__(self, text):
        self.text = text

    @classmethod
    def note(cls, operations, text):
        return operations.invoke(cls(text))


@Operations.implementation_for(NoteOp)
def note(operations, operation):
    operations.execute(f"INSERT INTO items (name) VALUES ('{operation.text}')")


def include_name(name, kind, parents):
    return not (kind == "table" and name == "left_alone")


def include_object(thing, name, kind, reflected, compare_to):
    return not (kind == "column" and name.startswith("legacy_"))


def run_migrations_offline():
    context.configure(
        url=config.get_main_option("sqlalchemy.url"), target_metadata=MetaData(), literal_binds=True,
        include_name=include_name, include_object=include_object, compare_type=False,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online():
    engine = engine_from_config(config.get_section(config.config_ini_section), poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=MetaData())
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
"""

FIRST = """
    op.create_table("items", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String))
    op.create_table("left_alone", sa.Column("id", sa.Integer))
"""
THIRD = """
    op.add_column("items", sa.Column("legacy_kind", sa.String(10)))
    if not context.is_offline_mode():
        op.get_bind().execute(sa.text("UPDATE items SET legacy_kind = 'x'"))
"""
REVISIONS = {
    "1a2b": (None, FIRST),
    "3c4d": ("1a2b", "    op.note('by a custom operation')"),
    "5e6f": ("3c4d", THIRD),
}


def alembic(folder: Path, *arguments: str) -> None:
    subprocess.run(
        [Path(sys.executable).parent / "alembic", *arguments], cwd=folder, check=True, capture_output=True
    )


@pytest.fixture
def single(tmp_path: Path, empty_url: URL) -> Path:
    """A project as `alembic init` makes it, whose one schema is `public`, with a row of data."""
    alembic(tmp_path, "init", "alembic")
    ini = tmp_path / "alembic.ini"
    url = empty_url.render_as_string(hide_password=False).replace("%", "%%")
    lines = ini.read_text().splitlines()
    ini.write_text(
        "\n".join(f"sqlalchemy.url = {url}" if "sqlalchemy.url =" in line else line for line in lines)
    )
    (tmp_path / "alembic/env.py").write_text(ENV)
    for revision, (before, body) in REVISIONS.items():
        (tmp_path / f"alembic/versions/{revision}_.py").write_text(
            f"import sqlalchemy as sa\nfrom alembic import context, op\nrevision = {revision!r}\n"
            f"down_revision = {before!r}\n\n\ndef upgrade():\n{body}\n\n\ndef downgrade():\n    pass\n"
        )
    alembic(tmp_path, "upgrade", "head")
    return tmp_path


@pytest.fixture
def models() -> MetaData:
    metadata = MetaData()
    Table("items", metadata, Column("id", Integer, primary_key=True), Column("name", String(80)))
    return metadata


@pytest.fixture
def config(single: Path, empty_url: URL, models: MetaData) -> TenantConfig:
    return TenantConfig(
        connection=Connection(url=empty_url),
        schemas=Schemas(tenant=models, shared_schema="shared"),
        migrations=Migrations(tenant_dir=single / "alembic", shared_dir=single / "shared"),
    )


@pytest.fixture
def db(empty_url: URL):  # type: ignore[no-untyped-def]
    engine = create_engine(empty_url)
    yield engine
    engine.dispose()


def test_a_project_of_one_schema_becomes_one_of_many(single: Path, config: TenantConfig, db: Engine) -> None:
    files = {path: path.read_bytes() for path in single.rglob("*.py")}
    with db.begin() as connection:
        connection.exec_driver_sql("INSERT INTO items (name) VALUES ('the first customer''s')")
        connection.exec_driver_sql("ALTER SCHEMA public RENAME TO tenant_acme")
        connection.exec_driver_sql("CREATE SCHEMA public")
    with Migrator(config) as migrator, TenantManager(config) as manager:
        migrator.migrate_shared()
        record = manager.adopt_tenant("acme", metadata={"plan": "gold"})
        assert (record.schema, record.metadata) == ("tenant_acme", {"plan": "gold"})
        manager.create_tenant("globex")
        assert {s.tenant: (s.state, s.heads) for s in migrator.status()} == {
            "acme": ("ok", ("5e6f",)),
            "globex": ("ok", ("5e6f",)),
        }
        assert [v.tenant for v in migrator.verify() if not v.ok] == []
        names = {
            t: manager.get_db(t).scalars(text("SELECT name FROM items ORDER BY id")).all()
            for t in ("acme", "globex")
        }
        assert names == {
            "acme": ["by a custom operation", "the first customer's"],
            "globex": ["by a custom operation"],
        }
        # The env.py's options count: the models lack a column and a table, and one of a type is another.
        assert migrator.generate("nothing") == []
    after = {path: path.read_bytes() for path in single.rglob("*.py") if "__pycache__" not in path.parts}
    assert {path: after[path] for path in files} == files


def test_the_ids_of_new_revisions_are_of_the_projects_kind(config: TenantConfig, models: MetaData) -> None:
    models.tables["items"].append_column(Column("late", Integer))
    with Migrator(config) as migrator:
        (written,) = migrator.generate("late column")
        assert len(written.revision) == 12
        assert written.path.name == f"{written.revision}_late_column.py"
        assert written.changes == ("add column items.late",)


def test_what_cannot_be_adopted(config: TenantConfig, db: Engine) -> None:
    with db.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA legacy")
    with TenantManager(config) as manager:
        with pytest.raises(ProvisioningError, match="no schema 'tenant_acme'"):
            manager.adopt_tenant("acme")
        assert not manager.tenant_exists("acme")
        assert manager.adopt_tenant("acme", schema="legacy").schema == "legacy"
        with pytest.raises(TenantExistsError):
            manager.adopt_tenant("acme", schema="legacy")
        with pytest.raises(TenantCollisionError, match="acme"):
            manager.adopt_tenant("other", schema="legacy")


def test_an_env_py_that_cannot_be_read_is_told(single: Path, config: TenantConfig) -> None:
    env = single / "alembic/env.py"
    env.write_text("raise RuntimeError('set APP_SETTINGS')")
    with Migrator(config) as migrator, pytest.raises(MigrationError, match=r"env\.py.*APP_SETTINGS"):
        migrator.tenant_history.heads()
    env.write_text("from alembic import context\ncontext.configure(version_table='versions')")
    with Migrator(config) as migrator, pytest.raises(MigrationError, match="set migrations"):
        migrator.tenant_history.heads()
    env.write_text("from alembic import context\ncontext.get_context()")
    with Migrator(config) as migrator, pytest.raises(MigrationError, match="asks for the context"):
        migrator.tenant_history.heads()


ONLINE_ALONE = """
from alembic import context
from sqlalchemy import create_engine, pool


def include_object(thing, name, kind, reflected, compare_to):
    return name != "left_alone" and not (kind == "column" and name.startswith("legacy_"))


def run_migrations_online():
    url = context.config.get_main_option("sqlalchemy.url").replace("driver", "postgresql")
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, include_object=include_object, compare_type=False)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("offline mode is not supported")
run_migrations_online()
"""
ASYNC = ONLINE_ALONE.replace(
    "from sqlalchemy import create_engine, pool",
    """
import asyncio
from sqlalchemy.ext.asyncio import async_engine_from_config


def do_run(connection):
    context.configure(connection=connection, include_object=include_object, compare_type=False)
    context.run_migrations()


async def run_async():
    engine = async_engine_from_config({}, prefix="sqlalchemy.")
    async with engine.connect() as connection:
        await connection.run_sync(do_run)
    await engine.dispose()
""",
).replace("\nrun_migrations_online()\n", "\nasyncio.run(run_async())\n")


@pytest.mark.parametrize("env", [ONLINE_ALONE, ASYNC], ids=["sync", "async"])
def test_options_of_the_online_branch_count(single: Path, config: TenantConfig, env: str) -> None:
    operation = ENV[ENV.index("@Operations.reg") : ENV.index("def include_name")]
    imports = "from alembic.operations import MigrateOperation, Operations\n"
    (single / "alembic/env.py").write_text(imports + operation + env)
    with Migrator(config) as migrator:
        assert migrator.generate("nothing") == []
        assert "include_object" in migrator.tenant_history.options


def test_an_option_that_cannot_be_told_is_named(single: Path, config: TenantConfig) -> None:
    (single / "alembic/env.py").write_text(
        "from alembic import context\nif context.is_offline_mode():\n    context.configure(url='')\nelse:\n"
        "    mine = lambda *_: False\n    context.configure(include_object=mine, compare_type=True)\n"
    )
    with Migrator(config) as migrator, pytest.raises(MigrationError, match="include_object cannot be told"):
        migrator.tenant_history.heads()


def test_reading_an_env_py_leaves_nothing_behind(
    single: Path, config: TenantConfig, db: Engine, monkeypatch: pytest.MonkeyPatch, url: URL
) -> None:
    """The application's own modules are imported as they are, and its engine does not connect."""
    shown = url.render_as_string(hide_password=False)
    (single / "their_db.py").write_text(
        "from sqlalchemy import create_engine, event\n"
        f"engine = create_engine({shown!r})\nconnected = []\n"
        "@event.listens_for(engine, 'connect')\ndef note(*_):\n    connected.append(1)\n"
    )
    env = ONLINE_ALONE.replace(
        "engine = create_engine(url, poolclass=pool.NullPool)", "engine = their_db.engine"
    )
    operation = ENV[ENV.index("@Operations.reg") : ENV.index("def include_name")]
    imports = "import their_db\nfrom alembic.operations import MigrateOperation, Operations\n"
    (single / "alembic/env.py").write_text(imports + operation + env)
    monkeypatch.syspath_prepend(single)
    with Migrator(config) as migrator:
        assert migrator.generate("nothing") == []
    import their_db  # type: ignore[import-not-found]

    assert their_db.connected == []
    with their_db.engine.connect() as connection, pytest.raises(DBAPIError):
        connection.execute(text("SELECT no_such_function()"))
    assert their_db.connected == [1]
    their_db.engine.dispose()
    del sys.modules["their_db"]


def test_discovery_adopts_by_itself(config: TenantConfig, db: Engine) -> None:
    discovering = replace(config, migrations=replace(config.migrations, discover=lambda: ["acme"]))
    with TenantManager(discovering) as manager, pytest.raises(ConfigurationError, match="discover"):
        manager.adopt_tenant("acme")
