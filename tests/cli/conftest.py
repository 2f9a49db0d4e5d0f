"""Projects of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, MetaData, create_engine, make_url

from sqlalchemy_multitenant import Connection, Migrations, Migrator, Schemas, TenantConfig, TenantManager
from sqlalchemy_multitenant.migrations.scaffold import scaffold
from tests.cli.project import SECRET, Project


@pytest.fixture
def blank(tmp_path: Path, empty_url: URL) -> Iterator[Project]:
    """An empty folder and an empty database."""
    engine = create_engine(empty_url)
    folder = tmp_path / "project"
    folder.mkdir()
    yield Project(folder, empty_url, engine)
    engine.dispose()


@pytest.fixture
def offline(tmp_path: Path) -> Project:
    """A scaffolded project whose server is not there."""
    folder = tmp_path / "project"
    scaffold(folder)
    url = make_url(f"postgresql+psycopg://u:{SECRET}@127.0.0.1:1/nothing")
    return Project(folder, url, create_engine(url))


@pytest.fixture
def project(blank: Project) -> Project:
    """A project with one revision of each kind, and the tenants a, b and c."""
    scaffold(blank.folder)
    blank.revision(1, "op.create_table('plans', sa.Column('id', sa.Integer, primary_key=True))", "shared")
    blank.revision(1, "op.create_table('users', sa.Column('id', sa.Integer, primary_key=True))")
    folders = blank.folder / "migrations"
    config = TenantConfig(
        connection=Connection(url=blank.url),
        schemas=Schemas(tenant=MetaData()),
        migrations=Migrations(tenant_dir=folders / "tenant", shared_dir=folders / "shared"),
    )
    with Migrator(config) as migrator, TenantManager(config) as manager:
        migrator.migrate_shared()
        for tenant in "abc":
            manager.create_tenant(tenant)
    return blank
