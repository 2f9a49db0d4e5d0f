"""Sends many statements and reads all their answers in one round trip, below psycopg's cursors.

libpq's pipeline mode (https://www.postgresql.org/docs/current/libpq-pipeline-mode.html) tells which statement
failed, as a message of several statements does not, and takes what such a message refuses on Citus. A
cursor for each statement would cost more than the server takes for most of them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.waiting import Ready, Wait

_FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE)
_COPY = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)


class StatementError(Exception):
    """A statement of a pipeline failed; those after it did not run.

    Attributes:
        position: its place, from 0.
        error: what psycopg makes of the server's answer.
    """

    def __init__(self, position: int, error: psycopg.Error) -> None:
        super().__init__(position, error)
        self.position, self.error = position, error
        self.__cause__ = error

    def __str__(self) -> str:
        return str(self.error)


def send_all(connection: psycopg.Connection[Any], statements: Sequence[bytes]) -> list[pq.abc.PGresult]:
    """Run statements, without parameters, in one round trip; returns one result each.

    Opens no transaction of its own accord: BEGIN and COMMIT may be among them.

    Raises:
        StatementError: one of them failed.
        OperationalError: the connection is lost.
    """
    pgconn = connection.pgconn
    pgconn.enter_pipeline_mode()
    for statement in statements:
        pgconn.send_query_params(statement, None)
    pgconn.pipeline_sync()
    try:
        results = connection.wait(_exchange(pgconn))
    finally:
        # After an interrupt, psycopg has cancelled what ran and read the rest, or closed the connection.
        with suppress(psycopg.Error):
            pgconn.exit_pipeline_mode()
    for position, result in enumerate(results):
        if result.status in _FAILED:
            raise StatementError(position, psycopg.errors.error_from_result(result))
    return results


def rows_of(connection: psycopg.Connection[Any], result: pq.abc.PGresult) -> list[tuple[Any, ...]]:
    """The rows of a result, their values as psycopg's cursors would give them."""
    transformer = Transformer(connection)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


def _exchange(pgconn: pq.abc.PGconn) -> Generator[Any, Any, list[pq.abc.PGresult]]:
    results: list[pq.abc.PGresult] = []
    while True:
        # libpq keeps what the socket does not take now: sending must not wait for those who must be read.
        ready = yield Wait.RW if pgconn.flush() else Wait.R
        if not ready or not ready & Ready.R:  # None after an interrupt, when psycopg begins to wait anew
            continue
        pgconn.consume_input()
        ended = False
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                if ended:
                    break  # nothing more has come yet
                ended = True  # one statement's results
                continue
            ended = False
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                return results
            if result.status in _COPY:
                pgconn.finish()
                raise psycopg.NotSupportedError("COPY from or to the client cannot run in a pipeline")
            results.append(result)
