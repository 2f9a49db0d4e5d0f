"""A long history, as a real project has it: tables, columns, indexes, data, and now and then a revision that
needs a connection. The same seed makes the same history."""

from __future__ import annotations

from pathlib import Path
from random import Random

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

HEAD = '''"""step {number}"""
import sqlalchemy as sa
from alembic import op
from sqlalchemy.orm import Session

revision = "{number:04d}"
down_revision = {before!r}


def upgrade():
    {body}
'''

# An env.py of the kind that projects write for a migration of one schema at a time.
ENV = """
from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection)
with context.begin_transaction():
    context.run_migrations()
"""


def write_history(folder: Path, revisions: int, *, seed: int = 1, online_every: int = 8) -> None:
    """Write so many revisions into `folder`/versions."""
    random = Random(seed)
    (folder / "versions").mkdir(parents=True)
    (folder / "script.py.mako").write_text("")
    tables: dict[str, list[str]] = {}
    for number in range(1, revisions + 1):
        before = f"{number - 1:04d}" if number > 1 else None
        body = _online(random, tables) if number % online_every == 0 else _compiled(random, tables, number)
        path = folder / "versions" / f"{number:04d}_step.py"
        path.write_text(HEAD.format(number=number, before=before, body=body))


def _compiled(random: Random, tables: dict[str, list[str]], number: int) -> str:
    if len(tables) < 2 or random.random() < 0.15:
        name = f"t{number}"
        parent = (
            f", sa.Column('parent', sa.Integer, sa.ForeignKey('{random.choice(list(tables))}.id'))"
            if tables
            else ""
        )
        tables[name] = ["name"]
        return (
            f"op.create_table('{name}', sa.Column('id', sa.Integer, primary_key=True), "
            f"sa.Column('name', sa.String(40), server_default='it''s', index=True){parent})"
        )
    table = random.choice(list(tables))
    column = random.choice(tables[table])
    row = {column: f"row {number}: 100% \\t;"}
    bodies = [
        f"op.add_column('{table}', sa.Column('c{number}', sa.String(40)))",
        f"op.create_index('i{number}', '{table}', ['{column}'])",
        f"op.bulk_insert(sa.table('{table}', sa.column('{column}', sa.String)), [{row!r}])",
        f"op.alter_column('{table}', '{column}', server_default='default {number}')",
        f"op.execute(\"UPDATE {table} SET {column} = {column} || '.' WHERE length({column}) < 30\")",
        f"op.create_check_constraint('k{number}', '{table}', \"{column} <> 'never {number}'\")",
    ]
    kind = random.randrange(len(bodies))
    if kind == 0:
        tables[table].append(f"c{number}")
    return bodies[kind]


def _online(random: Random, tables: dict[str, list[str]]) -> str:
    table = random.choice(list(tables))
    column = random.choice(tables[table])
    if random.random() < 0.5:
        return (
            "bind = op.get_bind()\n"
            f"    count = bind.scalar(sa.text('SELECT count(*) FROM {table}'))\n"
            f"    insert = sa.text('INSERT INTO {table} ({column}) VALUES (:n)')\n"
            "    bind.execute(insert, {'n': f'had {count}'})"
        )
    return (
        "session = Session(bind=op.get_bind())\n"
        f"    for (number,) in session.execute(sa.text('SELECT id FROM {table} ORDER BY id')).all():\n"
        f"        session.execute(sa.text('UPDATE {table} SET {column} = :n WHERE id = :i'), "
        "{'n': f'no {number}', 'i': number})\n"
        "    session.flush()"
    )


def upgrade_plainly(engine: Engine, folder: Path, schema: str) -> None:
    """By Alembic alone: the schema on the search path, and `alembic upgrade head`."""
    (folder / "env.py").write_text(ENV)
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {schema}")
            connection.exec_driver_sql(f"SET LOCAL search_path TO {schema}, public")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        (folder / "env.py").unlink()
