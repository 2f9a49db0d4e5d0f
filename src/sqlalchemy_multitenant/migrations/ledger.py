"""The ledger: which runs there were, what became of each tenant in them, and what each revision was when it
was first applied. Three tables in the shared schema.

What a tenant was brought to is written in the transaction that brings it there: the ledger cannot say what
did not happen, nor miss what did.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import Text

from ..catalog.table import make_schema_sql, qualified
from ..isolation.run import run_sql
from ..naming import quote_literal
from . import steps
from .batch import lock_key
from .plan import Destination, Heads, MigrationPlan
from .report import MigrationState, TenantResult
from .revision_file import SourceHash

RUNS, RESULTS, REVISIONS = "multitenant_runs", "multitenant_run_results", "multitenant_revisions"
SHOWN_RUNS = 20


class RunState(StrEnum):
    """How a run ended."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """Some tenants failed."""
    STOPPED = "stopped"
    """It was ended before all tenants had their turn."""
    LOST = "lost"
    """Nobody is at work on it, and it never ended: its process was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run.

    Attributes:
        kind: `migrate`, `rollback` or `mark`; of the shared schema, `migrate shared` and so on.
        total, succeeded, failed: tenants, as their own results say.
        skipped: those with nothing to do, or that were not reached; as yet None in a run that has not ended.
        reason: why it was stopped, or None.
        host, pid: the process.
    """

    id: int
    kind: str
    state: RunState
    started_at: datetime
    finished_at: datetime | None
    total: int
    succeeded: int
    failed: int
    skipped: int | None
    reason: str | None
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRecord:
    """What became of one tenant in a run.

    Attributes:
        start, end: the revisions before and after.
        sql_hash: SHA-256 of the plan's text, hexadecimal.
    """

    tenant: str
    schema: str
    state: MigrationState
    start: Heads
    end: Heads
    attempts: int
    retries: Mapping[str, int]
    duration_ms: float
    error: str | None
    sql_hash: str | None
    finished_at: datetime


def application_name(run: int) -> str:
    """What the connections of a run call themselves."""
    return f"multitenant run {run}"


def is_held_by_run(connection: Connection, schema: str) -> bool:
    """Whether a connection of a run holds the advisory lock of a schema
    (https://www.postgresql.org/docs/current/view-pg-locks.html tells how its key is shown)."""
    statement = text(
        "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.granted "
        "AND l.locktype = 'advisory' AND l.objsubid = 1 "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (l.classid::bigint << 32) | l.objid::bigint = :key "
        "AND starts_with(a.application_name, 'multitenant run '))"
    )
    return bool(connection.scalar(statement, {"key": lock_key(schema)}))


def plan_install(shared_schema: str) -> list[str]:
    """The statements that make the tables."""
    runs, results = qualified(shared_schema, RUNS), qualified(shared_schema, RESULTS)
    return [
        f"""CREATE TABLE IF NOT EXISTS {runs} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    state text NOT NULL DEFAULT 'running',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    total integer NOT NULL,
    reason text,
    host text NOT NULL,
    pid integer NOT NULL
)""",
        f"""CREATE TABLE IF NOT EXISTS {results} (
    run_id bigint NOT NULL,
    tenant text NOT NULL,
    schema_name text NOT NULL,
    state text NOT NULL,
    revisions_before text[] NOT NULL,
    revisions_after text[] NOT NULL,
    attempts integer NOT NULL,
    retries jsonb NOT NULL,
    duration_ms double precision NOT NULL,
    error text,
    sql_hash text,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (run_id, tenant)
)""",
        f"CREATE INDEX IF NOT EXISTS {RESULTS}_by_tenant ON {results} (tenant, run_id DESC)",
        f"""CREATE TABLE IF NOT EXISTS {qualified(shared_schema, REVISIONS)} (
    kind text NOT NULL,
    revision text NOT NULL,
    file_hash text NOT NULL,
    code_hash text NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, revision)
)""",
        steps.plan_install(shared_schema),
    ]


def _array(heads: Heads) -> str:
    return f"ARRAY[{', '.join(map(quote_literal, heads))}]::text[]"


class Ledger:
    """The ledger in one shared schema. Its methods need an open transaction, unless they say otherwise."""

    def __init__(self, shared_schema: str) -> None:
        self._shared_schema = shared_schema
        self._runs, self._results = qualified(shared_schema, RUNS), qualified(shared_schema, RESULTS)
        self._revisions = qualified(shared_schema, REVISIONS)

    def is_installed(self, connection: Connection) -> bool:
        """Whether its tables are there."""
        names = [qualified(self._shared_schema, n) for n in (RUNS, RESULTS, REVISIONS, steps.TABLE)]
        found = [f"to_regclass({quote_literal(name)}) IS NOT NULL" for name in names]
        return bool(run_sql(connection, f"SELECT {' AND '.join(found)}").scalar())

    def install(self, connection: Connection) -> None:
        """Make what is missing."""
        if self.is_installed(connection):
            return
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('multitenant install'))"))
        for statement in (make_schema_sql(self._shared_schema), *plan_install(self._shared_schema)):
            run_sql(connection, statement)

    # -- write ----------------------------------------------------------------------------------------

    def begin_run(self, connection: Connection, kind: str, total: int) -> int:
        """Note that a run begins; returns its id."""
        return int(
            connection.execute(
                text(
                    f"INSERT INTO {self._runs} (kind, total, host, pid) "
                    "VALUES (:kind, :total, :host, :pid) RETURNING id"
                ),
                {"kind": kind, "total": total, "host": socket.gethostname(), "pid": os.getpid()},
            ).scalar_one()
        )

    def end_run(self, connection: Connection, run: int, state: RunState, reason: str | None) -> None:
        """Note how a run ended."""
        connection.execute(
            text(
                f"UPDATE {self._runs} SET state = :state, finished_at = clock_timestamp(), reason = :reason "
                "WHERE id = :run"
            ),
            {"run": run, "state": state.value, "reason": reason},
        )

    def done_sql(
        self,
        run: int,
        to: Destination,
        plan: MigrationPlan,
        start: Heads,
        *,
        attempts: int,
        retries: Mapping[str, int],
        before_ms: float,
    ) -> str:
        """The statement that notes, in a tenant's own transaction, that it was brought to the plan's end.

        Args:
            start: where it was when the run began.
            before_ms: how long it took before this transaction.
        """
        values = (
            str(run),
            quote_literal(to.name),
            quote_literal(to.schema),
            quote_literal(MigrationState.DONE.value),
            _array(start),
            _array(plan.end),
            str(attempts),
            f"{quote_literal(json.dumps(dict(retries)))}::jsonb",
            f"{before_ms:.3f} + extract(epoch FROM clock_timestamp() - transaction_timestamp()) * 1000",
            quote_literal(plan.sql_hash),
        )
        return (
            f"INSERT INTO {self._results} (run_id, tenant, schema_name, state, revisions_before, "
            f"revisions_after, attempts, retries, duration_ms, sql_hash) VALUES ({', '.join(values)})"
        )

    def find_done(self, connection: Connection, run: int) -> dict[str, Heads]:
        """The tenants that a run has brought to where they were to be, as their own transactions say, and
        where that is."""
        rows = connection.execute(
            text(
                f"SELECT tenant, revisions_after FROM {self._results} WHERE run_id = :run AND state = :done"
            ),
            {"run": run, "done": MigrationState.DONE.value},
        )
        return {row.tenant: tuple(row.revisions_after) for row in rows}

    def is_done(self, connection: Connection, run: int, tenant: str) -> bool:
        """Whether a tenant is one of them."""
        statement = text(
            f"SELECT count(*) FROM {self._results} WHERE run_id = :run AND tenant = :tenant AND state = :done"
        )
        values = {"run": run, "tenant": tenant, "done": MigrationState.DONE.value}
        return bool(connection.scalar(statement, values))

    def add_failures(
        self, connection: Connection, run: int, failures: Iterable[tuple[str, TenantResult]]
    ) -> None:
        """Note tenants that failed, each with its schema."""
        statement = text(
            f"INSERT INTO {self._results} (run_id, tenant, schema_name, state, revisions_before, "
            "revisions_after, attempts, retries, duration_ms, error) "
            "VALUES "
            "(:run, :tenant, :schema, :state, :start, :end, :attempts, :retries, :duration_ms, :error) "
            "ON CONFLICT (run_id, tenant) DO NOTHING"
        ).bindparams(
            bindparam("retries", type_=JSONB),
            bindparam("start", type_=ARRAY(Text)),
            bindparam("end", type_=ARRAY(Text)),
        )
        for schema, result in failures:
            values = {
                "run": run,
                "tenant": result.tenant,
                "schema": schema,
                "state": result.state.value,
                "start": list(result.start),
                "end": list(result.end),
                "attempts": result.attempts,
                "retries": dict(result.retries),
                "duration_ms": result.duration_ms,
                "error": str(result.error),
            }
            connection.execute(statement, values)

    def note_sources(self, connection: Connection, kind: str, sources: Mapping[str, SourceHash]) -> None:
        """Note what revisions are, those that are not known yet."""
        if sources:
            connection.execute(
                text(
                    f"INSERT INTO {self._revisions} (kind, revision, file_hash, code_hash) "
                    "VALUES (:kind, :revision, :file, :code) ON CONFLICT DO NOTHING"
                ),
                [
                    {"kind": kind, "revision": revision, "file": source.file, "code": source.code}
                    for revision, source in sources.items()
                ],
            )

    # -- read -----------------------------------------------------------------------------------------

    def known_sources(self, connection: Connection, kind: str) -> Mapping[str, SourceHash]:
        """What each revision of a history was when it was first applied, by its id."""
        rows = connection.execute(
            text(f"SELECT revision, file_hash, code_hash FROM {self._revisions} WHERE kind = :kind"),
            {"kind": kind},
        )
        return {row.revision: SourceHash(row.file_hash, row.code_hash) for row in rows}

    def list_runs(self, connection: Connection, limit: int = SHOWN_RUNS) -> Sequence[RunRecord]:
        """The last runs, newest first."""
        return [
            _run(row)
            for row in connection.execute(
                text(f"{self._select_runs} ORDER BY r.id DESC LIMIT :limit"), {"limit": limit}
            )
        ]

    def find_run(self, connection: Connection, run: int) -> RunRecord | None:
        """One run, or None."""
        sql = f"{self._select_runs} WHERE r.id = :run"
        row = connection.execute(text(sql), {"run": run}).one_or_none()
        return None if row is None else _run(row)

    @property
    def _select_runs(self) -> str:
        # A run that was killed cannot say so; its connections are gone. How many succeeded is counted: the
        # tenants' own transactions say so.
        return (
            "SELECT r.id, r.kind, CASE WHEN r.finished_at IS NULL AND NOT EXISTS ("
            "SELECT FROM pg_stat_activity a WHERE a.datname = current_database() "
            "AND a.application_name = 'multitenant run ' || r.id) "
            "THEN 'lost' ELSE r.state END AS state, r.started_at, r.finished_at, r.total, s.succeeded, "
            "s.failed, CASE WHEN r.finished_at IS NOT NULL THEN r.total - s.succeeded - s.failed END AS "
            f"skipped, r.reason, r.host, r.pid FROM {self._runs} r CROSS JOIN LATERAL ("
            "SELECT count(*) FILTER (WHERE state = 'done') AS succeeded, "
            "count(*) FILTER (WHERE state = 'failed') AS failed "
            f"FROM {self._results} WHERE run_id = r.id) s"
        )

    def list_results(self, connection: Connection, run: int) -> Sequence[ResultRecord]:
        """What became of the tenants in a run, by id; those that were skipped are not listed."""
        rows = connection.execute(
            text(f'SELECT * FROM {self._results} WHERE run_id = :run ORDER BY tenant COLLATE "C"'),
            {"run": run},
        )
        return [_result(row) for row in rows]

    def failed_tenants(self, connection: Connection) -> set[str]:
        """The tenants whose last result was a failure."""
        of_tenants = f"run_id IN (SELECT id FROM {self._runs} WHERE kind NOT LIKE '% shared')"
        return set(
            connection.scalars(
                text(
                    "SELECT tenant FROM (SELECT DISTINCT ON (tenant) tenant, state "
                    f"FROM {self._results} WHERE {of_tenants} ORDER BY tenant, run_id DESC) last "
                    "WHERE state = 'failed'"
                )
            )
        )

    def forget_sources(self, connection: Connection, kind: str, revisions: Iterable[str]) -> None:
        """Forget what revisions were that nobody has any more."""
        statement = text(
            f"DELETE FROM {self._revisions} WHERE kind = :kind AND revision = ANY(CAST(:gone AS text[]))"
        )
        connection.execute(statement, {"kind": kind, "gone": list(revisions)})


def _run(row: Row[Any]) -> RunRecord:
    values = dict(row._mapping)
    return RunRecord(**{**values, "state": RunState(values["state"])})


def _result(row: Row[Any]) -> ResultRecord:
    return ResultRecord(
        tenant=row.tenant,
        schema=row.schema_name,
        state=MigrationState(row.state),
        start=tuple(row.revisions_before),
        end=tuple(row.revisions_after),
        attempts=row.attempts,
        retries=row.retries,
        duration_ms=row.duration_ms,
        error=row.error,
        sql_hash=row.sql_hash,
        finished_at=row.finished_at,
    )
