"""A project with a folder of revisions, on a database of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent

import pytest
from sqlalchemy import URL, Engine, create_engine

from sqlalchemy_multitenant import Connection, Isolation, Migrations, Schemas, TenantConfig
from tests.integration.fleet import Write, tenant_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tenant"


@pytest.fixture
def write(folder: Path) -> Write:
    """Writes a revision file into the tenants' history."""
    (folder / "versions").mkdir(parents=True)

    def write(
        revision: str, after: str | None, upgrade: str, *, imports: str = "", down: str = "pass"
    ) -> None:
        body = f'''"""revision {revision}"""
import sqlalchemy as sa
from alembic import context, op
{imports}
revision = {revision!r}
down_revision = {after!r}

def upgrade():
{indent(dedent(upgrade).strip(), "    ")}

def downgrade():
{indent(down, "    ")}
'''
        (folder / "versions" / f"{revision}_test.py").write_text(body, encoding="utf-8")

    return write


@pytest.fixture
def config(empty_url: URL, folder: Path, tmp_path: Path) -> TenantConfig:
    return TenantConfig(
        connection=Connection(url=empty_url),
        isolation=Isolation(),
        schemas=Schemas(tenant=tenant_models),
        migrations=Migrations(tenant_dir=folder, shared_dir=tmp_path / "shared", lock_timeout_s=1.0),
    )


@pytest.fixture
def db(empty_url: URL) -> Iterator[Engine]:
    engine = create_engine(empty_url)
    yield engine
    engine.dispose()
