"""A project as a user of the command line has it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, text

from tests.command import Result, call

SECRET = "hunter2"
"""The password of a project whose server is not there."""

REVISION = '''"""{name}"""
from alembic import op
import sqlalchemy as sa
revision = {number!r}
down_revision = {before!r}


def upgrade():
    {body}


def downgrade():
    {undo}
'''


@dataclass(frozen=True)
class Project:
    """A folder with a configuration, and a database."""

    folder: Path
    url: URL
    engine: Engine
    how: Callable[[tuple[str, ...], Path, Mapping[str, str], str], Result] = call

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("MULTITENANT_CONFIG", "FORCE_COLOR")}
        return {**kept, "DATABASE_URL": self.url.render_as_string(hide_password=False), "COLUMNS": "200"}

    def run(
        self, *arguments: str, code: int = 0, answer: str = "", cwd: Path | None = None, **environment: Any
    ) -> Result:
        """Run the command, and expect an exit code."""
        result = self.how(arguments, cwd or self.folder, {**self.environment, **environment}, answer)
        assert result.code == code, (arguments, result)
        return result

    def revision(self, number: int, body: str, kind: str = "tenant", undo: str = "pass") -> None:
        """Write a revision by hand."""
        before = f"{number - 1:04d}" if number > 1 else None
        path = self.folder / "migrations" / kind / "versions" / f"{number:04d}_step.py"
        path.write_text(
            REVISION.format(
                name=f"step {number}", number=f"{number:04d}", before=before, body=body, undo=undo
            )
        )

    def files(self) -> dict[str, bytes]:
        """The content of each file, without what Python caches."""
        found = (p for p in self.folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in found}

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql))]

    def do(self, sql: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(sql))

    def dump(self) -> object:
        """All that there is in the database, by identity, and where each schema stands."""
        relations = self.rows(
            "SELECT n.oid, n.nspname, c.oid, c.relname, c.relfilenode, (SELECT count(*) FROM pg_attribute a "
            "WHERE a.attrelid = c.oid) FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid "
            "WHERE n.nspname !~ '^pg_|^information_schema$' ORDER BY 2, 4"
        )
        versions = [
            (schema, self.rows(f'SELECT version_num FROM "{schema}".alembic_version'))
            for _, schema, _, name, *_ in relations
            if name == "alembic_version"
        ]
        return relations, versions

    def columns(self, schema: str, table: str = "users") -> set[str]:
        found = self.rows(
            "SELECT column_name FROM information_schema.columns "
            f"WHERE table_schema = '{schema}' AND table_name = '{table}'"
        )
        return {name for (name,) in found}

    def at(self, *tenants: str) -> dict[str, str]:
        """The revision of each tenant."""
        return {t: found for t in tenants for (found,) in self.rows(f"TABLE tenant_{t}.alembic_version")}
