"""A long mixed history gives what plain Alembic gives."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, text

from sqlalchemy_multitenant import Migrator, TenantConfig, TenantManager
from sqlalchemy_multitenant.migrations.catalogue import Catalogue, CatalogueReader
from sqlalchemy_multitenant.naming import SchemaName
from tests.long_history import upgrade_plainly, write_history


def read(db: Engine, schema: str) -> tuple[Catalogue, dict[str, list[tuple[object, ...]]]]:
    with db.connect() as connection, CatalogueReader.over(connection) as reader:
        catalogue = reader.read(SchemaName(schema))
        tables = [name for kind, name in catalogue.objects if kind == "table"]
        rows = {
            table: [
                tuple(row) for row in connection.execute(text(f"SELECT * FROM {schema}.{table} ORDER BY 1"))
            ]
            for table in tables
        }
        return catalogue, rows


def test_a_long_history_ends_where_plain_alembic_ends(config: TenantConfig, folder: Path, db: Engine) -> None:
    write_history(folder, 150)
    upgrade_plainly(db, folder, "plain")
    expected, rows = read(db, "plain")
    assert sum(map(len, rows.values())) > 20
    # Some from the first revision on, by migrations; the others as new tenants, and from a snapshot.
    with TenantManager(config) as manager:
        for tenant in ("a", "b"):
            with db.begin() as connection:
                connection.exec_driver_sql(f"CREATE SCHEMA tenant_{tenant}")
            manager.adopt_tenant(tenant)
        with Migrator(config) as migrator:
            plan = migrator.tenant_history.plan_upgrade(())
            assert sum(segment.revision is not None for segment in plan.segments) == 150 // 8
            assert migrator.migrate_all(concurrency=2).succeeded == 2
        manager.create_tenant("c")
        manager.create_tenants(["d", "e", "f"])
    for tenant in "abcdef":
        found, found_rows = read(db, f"tenant_{tenant}")
        assert expected.compare(found) == []
        assert found_rows == rows
