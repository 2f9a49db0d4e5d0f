"""What `multitenant init` and `generate` write into a project."""

SCRIPT_TEMPLATE = '''"""${message}

Revision: ${up_revision}
After: ${down_revision or 'nothing' | comma,n}
Created: ${create_date}
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision: str = ${repr(up_revision)}
down_revision: str | Sequence[str] | None = ${repr(down_revision)}
branch_labels: str | Sequence[str] | None = ${repr(branch_labels)}
depends_on: str | Sequence[str] | None = ${repr(depends_on)}
% if config.attributes.get("requires_shared"):
# The shared revision that has to be there first.
requires_shared: str | None = ${repr(config.attributes["requires_shared"])}
% endif


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
'''

SQL_TEMPLATE = '''"""{message}

Revision: {revision}
After: {after}
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = {revision!r}
down_revision: str | Sequence[str] | None = {down_revision!r}
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
{requires_shared}
UPGRADE = r"""
-- Statements with semicolons between them. They name no schema: the search path is the tenant's.
"""

DOWNGRADE = r"""
"""


def upgrade() -> None:
    _run(UPGRADE)


def downgrade() -> None:
    _run(DOWNGRADE)


def _run(sql: str) -> None:
    if sql.strip():
        op.execute(sa.text(sql.replace(":", r"\\:")))  # a colon would begin a parameter
'''

CONFIG_TEMPLATE = '''"""The multi-tenancy of this project. The `multitenant` command looks for this file."""

from pathlib import Path

from models import SharedBase, TenantBase
from sqlalchemy_multitenant import Connection, Isolation, Migrations, Schemas, TenantConfig

here = Path(__file__).parent

config = TenantConfig(
    # Without a url: $DATABASE_URL, or else this database on the embedded server, if its extra is installed.
    connection=Connection(embedded_database="{database}", pool_size=10),
    isolation=Isolation(strategy="schema", schema_name="tenant_{id}"),
    schemas=Schemas(tenant=TenantBase, shared=SharedBase),
    migrations=Migrations(
        tenant_dir=here / "migrations/tenant",
        shared_dir=here / "migrations/shared",
    ),
)
'''

MODELS_TEMPLATE = '''"""The models: what each tenant has, and what all of them share."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class SharedBase(DeclarativeBase):
    """Tables that exist once, in the shared schema."""


class TenantBase(DeclarativeBase):
    """Tables that each tenant has, in a schema of its own. They name no schema."""


class Plan(SharedBase):
    __tablename__ = "plans"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class User(TenantBase):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    plan_id: Mapped[int | None] = mapped_column(ForeignKey(Plan.id))
'''
