"""Where a plan stands that ends a transaction in the middle of a revision (autocommit_block).

The revision is recorded only when all of it is done. What of it has been done already stands in a table of
the shared schema, written in the transaction that did it, or right after the statement that needs none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import psycopg

from ..catalog.table import qualified
from ..engines.pipeline import send_all
from ..errors import MigrationError
from ..naming import quote_literal
from .plan import MigrationPlan, Segment, Statement

TABLE = "multitenant_steps"


def plan_install(shared_schema: str) -> str:
    """The statement that makes the table."""
    return (
        f"CREATE TABLE IF NOT EXISTS {qualified(shared_schema, TABLE)} ("
        "schema_name text PRIMARY KEY, revision text NOT NULL, done integer NOT NULL, digest text NOT NULL, "
        "updated_at timestamptz NOT NULL DEFAULT now())"
    )


def by_revision(statements: Sequence[Statement]) -> Iterator[tuple[str | None, list[Statement]]]:
    """Neighbours of one revision, together."""
    for revision, group in groupby(statements, lambda statement: statement.revision):
        yield revision, list(group)


def _of_revision(plan: MigrationPlan, revision: str | None) -> list[Statement]:
    return [statement for statement in plan.statements if statement.revision == revision]


def position(plan: MigrationPlan, statement: Statement) -> int:
    """Its place among the statements of its revision, from 0."""
    return next(i for i, other in enumerate(_of_revision(plan, statement.revision)) if other is statement)


def _digest(plan: MigrationPlan, revision: str | None, done: int) -> str:
    texts = [statement.sql for statement in _of_revision(plan, revision)[:done]]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def skip_done(plan: MigrationPlan, segment: Segment, revision: str | None, done: int) -> Segment:
    """`segment` without what is among the first `done` statements of `revision`."""
    if revision is None:
        return segment
    finished = {id(statement) for statement in _of_revision(plan, revision)[:done]}
    return replace(segment, statements=tuple(s for s in segment.statements if id(s) not in finished))


class Steps:
    """The note about one schema."""

    def __init__(self, shared_schema: str, schema: str) -> None:
        self._table = qualified(shared_schema, TABLE)
        self._schema = schema

    @property
    def forget_sql(self) -> str:
        """The statement that takes the note away."""
        return f"DELETE FROM {self._table} WHERE schema_name = {quote_literal(self._schema)}"

    def note_sql(self, plan: MigrationPlan, statement: Statement, done: int) -> str:
        """The statement that notes that so many statements of a revision are done."""
        values = (self._schema, str(statement.revision), _digest(plan, statement.revision, done))
        schema, revision, digest = map(quote_literal, values)
        return (
            f"INSERT INTO {self._table} (schema_name, revision, done, digest) "
            f"VALUES ({schema}, {revision}, {done}, {digest}) ON CONFLICT (schema_name) DO UPDATE SET "
            "revision = excluded.revision, done = excluded.done, digest = excluded.digest, updated_at = now()"
        )

    def read(self, driver: psycopg.Connection[Any], plan: MigrationPlan) -> tuple[str | None, int]:
        """The revision that was left half done, and how many of its statements are.

        Raises:
            MigrationError: the revision's file was changed since.
        """
        where = f"schema_name = {quote_literal(self._schema)}"
        sql = f"SELECT revision, done, digest FROM {self._table} WHERE {where}"
        (result,) = send_all(driver, [sql.encode()])
        if not result.ntuples:
            return None, 0
        revision, done, digest = (bytes(result.get_value(0, n) or b"").decode() for n in range(3))
        if revision not in {r.id for r in plan.revisions}:
            return None, 0
        if _digest(plan, revision, int(done)) != digest:
            raise MigrationError(
                f"{done} statements of it were run before the last run ended, and it was changed since: take "
                f"the change back, or finish by hand and delete the row of {self._schema!r} in {self._table}",
                revision=revision,
            )
        return revision, int(done)
