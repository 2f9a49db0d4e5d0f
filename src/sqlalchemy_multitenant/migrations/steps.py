"""Where a plan stands that ends a transaction in the middle of a revision (autocommit_block).

The revision is recorded only when all of it is done. What of it has been done already stands in a table of
the shared schema, written in the transaction that did it, or right after the statement that needs none.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from ..catalog.table import qualified
from ..engines.pipeline import send_all
from ..errors import MigrationError
from ..naming import quote_ident, quote_literal
from .plan import MigrationPlan, Segment, Statement

TABLE = "multitenant_steps"

_SETS = re.compile(r"\s*(?:RESET|SET)\b", re.IGNORECASE)


def plan_install(shared_schema: str) -> str:
    """The statement that makes the table."""
    return f"""CREATE TABLE IF NOT EXISTS {qualified(shared_schema, TABLE)} (
    schema_name text PRIMARY KEY,
    schema_id oid NOT NULL,
    revision text NOT NULL,
    is_downgrade boolean NOT NULL,
    done integer NOT NULL,
    digest text NOT NULL,
    is_begun boolean NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
)"""


def _of_revision(plan: MigrationPlan, revision: str | None) -> list[Statement]:
    return [statement for statement in plan.statements if statement.revision == revision]


def position(plan: MigrationPlan, statement: Statement) -> int:
    """Its place among the statements of its revision, from 0."""
    return next(i for i, other in enumerate(_of_revision(plan, statement.revision)) if other is statement)


def _digest(plan: MigrationPlan, revision: str | None, done: int) -> str:
    texts = [statement.sql for statement in _of_revision(plan, revision)[:done]]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class HalfDone:
    """How much of a revision is done.

    Attributes:
        revision: the one that was left half done, or None.
        done: how many of its statements are.
        is_begun: whether the one after those may be, too: what it is about was seen as it was before.
    """

    revision: str | None = None
    done: int = 0
    is_begun: bool = False

    def has_done(self, plan: MigrationPlan, statement: Statement) -> bool:
        """Whether this statement of the plan is."""
        return statement.revision == self.revision and position(plan, statement) < self.done

    def has_begun(self, plan: MigrationPlan, statement: Statement) -> bool:
        """Whether this statement of the plan may be."""
        is_next = statement.revision == self.revision and position(plan, statement) == self.done
        return is_next and self.is_begun

    def left_of(self, plan: MigrationPlan, segment: Segment) -> Segment:
        """`segment` without what is done."""
        if self.revision is None:
            return segment
        # What was set in the session is gone with it.
        left = tuple(s for s in segment.statements if _SETS.match(s.sql) or not self.has_done(plan, s))
        return replace(segment, statements=left)


class Steps:
    """The note about one schema. It tells nothing of another one that was made by the same name later."""

    def __init__(self, shared_schema: str, schema: str) -> None:
        self._table = qualified(shared_schema, TABLE)
        self._schema = schema
        self._id = f"to_regnamespace({quote_literal(quote_ident(schema))})::oid"
        self._where = f"schema_name = {quote_literal(schema)} AND schema_id = {self._id}"

    @property
    def forget_sql(self) -> str:
        """The statement that takes the note away."""
        return f"DELETE FROM {self._table} WHERE schema_name = {quote_literal(self._schema)}"

    @property
    def none_condition(self) -> str:
        """A condition: nothing is half done."""
        return f"NOT EXISTS (SELECT FROM {self._table} WHERE {self._where} AND done > 0)"

    def note_sql(
        self, plan: MigrationPlan, statement: Statement, done: int, *, is_begun: bool = False
    ) -> str:
        """The statement that notes that so many statements of a revision are done."""
        revision, digest = str(statement.revision), _digest(plan, statement.revision, done)
        schema, revision, digest = map(quote_literal, (self._schema, revision, digest))
        values = f"{schema}, {self._id}, {revision}, {plan.is_downgrade}, {done}, {digest}, {is_begun}"
        return (
            f"INSERT INTO {self._table} "
            f"(schema_name, schema_id, revision, is_downgrade, done, digest, is_begun) VALUES ({values}) "
            "ON CONFLICT (schema_name) DO UPDATE SET schema_id = excluded.schema_id, "
            "revision = excluded.revision, is_downgrade = excluded.is_downgrade, done = excluded.done, "
            "digest = excluded.digest, is_begun = excluded.is_begun, updated_at = now()"
        )

    def read(self, driver: psycopg.Connection[Any], plan: MigrationPlan) -> HalfDone:
        """What a run that did not end has left to the plan.

        Raises:
            MigrationError: the plan would not finish it, or the revision's file was changed since.
        """
        columns = "revision, is_downgrade, done, digest, is_begun"
        sql = f"SELECT {columns} FROM {self._table} WHERE {self._where}"
        (result,) = send_all(driver, [sql.encode()])
        if not result.ntuples:
            return HalfDone()
        values = (bytes(result.get_value(0, n) or b"").decode() for n in range(5))
        revision, was_downgrade, done, digest, is_begun = values
        by_hand = f"by hand and delete the row of {self._schema!r} in {self._table}"
        is_downgrade = was_downgrade == "t"
        if is_downgrade != plan.is_downgrade or revision not in {r.id for r in plan.revisions}:
            if not int(done):  # it was begun, and failed
                return HalfDone()
            state, finish = ("undone", "rollback") if is_downgrade else ("applied", "migrate")
            raise MigrationError(
                f"it was left half {state} ({done} of its statements were run): let `multitenant {finish}` "
                f"finish it first; or undo them {by_hand}",
                revision=revision,
            )
        if _digest(plan, revision, int(done)) != digest:
            raise MigrationError(
                f"{done} statements of it were run before the last run ended, and it was changed since: take "
                f"the change back, or finish {by_hand}",
                revision=revision,
            )
        return HalfDone(revision, int(done), is_begun == "t")
