"""Revisions that take another role: what they make is the tenant's, or nothing is made."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from sqlalchemy_multitenant import Migrator, ProvisioningError, TenantConfig, TenantManager
from tests.integration.fleet import FIRST, Write, fleet

MAKE = "op.execute('CREATE TABLE notes (id int)')\nop.execute('RESET SESSION AUTHORIZATION')"
TAKES = {
    "local": "op.execute('SET LOCAL ROLE {role}')",
    "session": "op.execute('SET ROLE {role}')",
    "authorization": "op.execute('SET SESSION AUTHORIZATION {role}')",
    "function": "op.execute(\"SELECT set_config('role', '{role}', true)\")",
    "online": "op.get_bind().exec_driver_sql('SET ROLE {role}')",
    "outside": "with op.get_context().autocommit_block():\n    op.execute('SET ROLE {role}')",
}


@pytest.fixture
def role(admin: Engine, db: Engine) -> Iterator[str]:
    """A role that may make tables in the shared schema, and may not use those of tenants."""
    name = f"role_{secrets.token_hex(6)}"
    with db.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name}")
        connection.exec_driver_sql(f"GRANT CREATE, USAGE ON SCHEMA public TO {name}")
    yield name
    with db.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {name}")
    with admin.begin() as connection:
        connection.exec_driver_sql(f"DROP ROLE {name}")


def places(db: Engine) -> list[str]:
    """The schemas with the table that the revision makes."""
    sql = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'notes'"
    with db.connect() as connection:
        return list(connection.execute(text(sql)).scalars())


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_a_role_that_may_not_use_the_schema(
    config: TenantConfig, write: Write, db: Engine, role: str, take: str
) -> None:
    write("0001", None, FIRST)
    fleet(config, 1)
    write("0002", "0001", f"{take.format(role=role)}\n{MAKE}")
    with Migrator(config) as migrator:
        report = migrator.migrate_all()
        assert report.failed == 1
        assert 'GRANT USAGE ON SCHEMA "tenant_t00"' in str(report.failures[0].error)
        assert {status.heads for status in migrator.status()} == {("0001",)}
    assert places(db) == []


@pytest.mark.parametrize("take", ["local", "online"])
def test_a_new_tenant_whose_revision_takes_a_role(
    config: TenantConfig, write: Write, db: Engine, role: str, take: str
) -> None:
    write("0001", None, FIRST)
    write("0002", "0001", f"{TAKES[take].format(role=role)}\n{MAKE}")
    with TenantManager(config) as manager, pytest.raises(ProvisioningError, match="takes a role"):
        manager.create_tenant("a")
    assert places(db) == []


@pytest.mark.parametrize("way", sorted(TAKES.keys() - {"outside"}))  # it would have to write the steps, too
def test_a_role_that_may(config: TenantConfig, write: Write, db: Engine, role: str, way: str) -> None:
    write("0001", None, FIRST)
    (tenant,) = fleet(config, 1)
    with db.begin() as connection:
        connection.exec_driver_sql(f"GRANT USAGE, CREATE ON SCHEMA tenant_{tenant} TO {role}")
    write("0002", "0001", f"{TAKES[way].format(role=role)}\n{MAKE}")
    with Migrator(config) as migrator:
        report = migrator.migrate_all()
        assert [str(failure.error) for failure in report.failures] == []
    assert places(db) == [f"tenant_{tenant}"]
