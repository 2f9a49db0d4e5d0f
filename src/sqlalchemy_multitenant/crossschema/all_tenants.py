"""`for_all_tenants`: the rows of all tenants, each with the tenant's id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any, Literal, TypedDict, TypeVarTuple, Unpack, cast, overload

from sqlalchemy import Connection, Executable
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.selectable import TypedReturnsRows

from ..catalog.members import Member, Roster
from ..catalog.records import TenantStatus
from ..checks import check, is_count, is_number
from ..errors import ConfigurationError, TenantError
from ..events import CrossTenantQuery
from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from ..naming import parse_tenant_ids
from .handles import layout_of
from .question import Answer, Question, Unit
from .work import Work, choose

Ts = TypeVarTuple("Ts")

MAX_TIMEOUT_S = 2_147_483
"""PostgreSQL counts milliseconds, in 32 bits."""


class FleetOptions(TypedDict, total=False):
    """How `for_all_tenants` and `aggregate_all` ask.

    Attributes:
        tenants: the ids of those to ask; left out: all. One that is dropped or suspended meanwhile is an
            error only where it is named here.
        where_status: what they must be: `"active"` (the default), `"suspended"`, or None for either.
        params: values of the statement's own parameters.
        statement_timeout_s: seconds that one statement, with as many tenants as are in it, may take; None
            for no limit. Left out: 30.
        concurrency: over how many connections to ask at one time, where each tenant has one row. Left out: 2.
        batch: how many rows are in memory at one time. Left out: 1,000.
        asked_by: who asks, for the hook `on_cross_tenant_query`.
    """

    tenants: Iterable[str] | None
    where_status: TenantStatus | Literal["active", "suspended"] | None
    params: Mapping[str, Any]
    statement_timeout_s: float | None
    concurrency: int
    batch: int
    asked_by: str | None


class RowOptions(FleetOptions, total=False):
    """How `for_all_tenants` asks.

    Attributes:
        limit: the most rows in all; a LIMIT in the statement is one for each tenant.
        read_only: False for a statement that is to change something. Each tenant then has a transaction of
            its own, which is committed before the next has its turn.
    """

    limit: int | None
    read_only: bool


@overload
def for_all_tenants(
    manager: TenantManager,
    statement: TypedReturnsRows[*Ts],
    *,
    errors: Literal["raise"] = "raise",
    **options: Unpack[RowOptions],
) -> Generator[tuple[str, *Ts], None, None]: ...
@overload
def for_all_tenants(
    manager: TenantManager,
    statement: TypedReturnsRows[*Ts],
    *,
    errors: Literal["return"],
    **options: Unpack[RowOptions],
) -> Generator[tuple[str, *Ts] | TenantError, None, None]: ...
@overload
def for_all_tenants(
    manager: TenantManager,
    statement: Executable,
    *,
    errors: Literal["raise", "return"] = "raise",
    **options: Unpack[RowOptions],
) -> Generator[Any, None, None]: ...
@overload
def for_all_tenants(
    manager: AsyncTenantManager,
    statement: TypedReturnsRows[*Ts],
    *,
    errors: Literal["raise"] = "raise",
    **options: Unpack[RowOptions],
) -> AsyncGenerator[tuple[str, *Ts], None]: ...
@overload
def for_all_tenants(
    manager: AsyncTenantManager,
    statement: TypedReturnsRows[*Ts],
    *,
    errors: Literal["return"],
    **options: Unpack[RowOptions],
) -> AsyncGenerator[tuple[str, *Ts] | TenantError, None]: ...
@overload
def for_all_tenants(
    manager: AsyncTenantManager,
    statement: Executable,
    *,
    errors: Literal["raise", "return"] = "raise",
    **options: Unpack[RowOptions],
) -> AsyncGenerator[Any, None]: ...
def for_all_tenants(
    manager: TenantManager | AsyncTenantManager,
    statement: Executable,
    *,
    errors: Literal["raise", "return"] = "raise",
    **options: Unpack[RowOptions],
) -> Any:
    """Ask many tenants the same; a generator of rows, each the tenant's id and the columns of `statement`.

        for tenant, count in for_all_tenants(tenants, select(func.count()).select_from(User)):
            ...

    Some hundred tenants are asked in one statement (a UNION ALL), in a read-only transaction. What only
    means something within one tenant's transaction is asked one by one: SQL text, mapped classes (whose
    objects come back detached), and what changes something.

    Rows come tenant by tenant, those of `where_status` in the order of their ids. They are read as they are
    asked for, and a connection is taken until the last one, or until the generator is closed
    (`contextlib.closing`). With an `AsyncTenantManager`, use `async for`.

    Args:
        manager: whose tenants are asked, over its pool for what they share.
        statement: what each is asked: a SELECT with its own WHERE, GROUP BY and LIMIT. One that returns no
            rows yields the number of rows that it changed.
        errors: `"raise"` the first one; or `"return"` each as a value, in the place of its tenant's rows, of
            which there are then none.
        options: see `FleetOptions` and `RowOptions`.

    Raises:
        ConfigurationError: an option is wrong.
        InvalidTenantIdError, TenantNotFoundError, TenantSuspendedError: one of `tenants` cannot be asked.
        TenantQueryError: the database refused the statement for a tenant, or it has moved to another schema
            since the tenants were listed.
    """
    if errors not in ("raise", "return"):
        raise ConfigurationError("errors", errors, "'raise' or 'return'")
    known = {*FleetOptions.__annotations__, *RowOptions.__annotations__}
    asked = Asked(manager, statement, dict(options), known)
    work = Work(
        asked.question,
        returns_errors=errors == "return",
        limit=asked.limit,
        concurrency=asked.concurrency,
        skips_gone=asked.tenants is None and asked.question.uses_catalog,
    )
    if isinstance(manager, AsyncTenantManager):
        return _rows_async(manager, asked, work)
    return _rows(manager, asked, work)


class Asked:
    """The options of a query, checked."""

    def __init__(
        self,
        manager: TenantManager | AsyncTenantManager,
        statement: Executable,
        options: dict[str, Any],
        known: Iterable[str],
    ) -> None:
        if unknown := set(options) - set(known):
            raise ConfigurationError(
                "options", sorted(unknown), f"the options are {', '.join(sorted(known))}"
            )
        if not isinstance(statement, Executable):
            raise ConfigurationError(
                "statement", statement, "a statement of SQLAlchemy's: select(...), text(...)"
            )
        timeout = options.get("statement_timeout_s", 30.0)
        check(
            timeout is None or (is_number(timeout) and timeout > 0), "statement_timeout_s", timeout, "seconds"
        )
        limit, batch = options.get("limit"), options.get("batch", 1000)
        check(limit is None or (is_count(limit) and limit >= 0), "limit", limit, "a number of rows")
        check(is_count(batch) and batch >= 1, "batch", batch, "a number of rows, at least 1")
        concurrency = options.get("concurrency", 2)
        check(is_count(concurrency) and concurrency >= 1, "concurrency", concurrency, "a number, at least 1")
        ids, status = options.get("tenants"), options.get("where_status", TenantStatus.ACTIVE)
        if status is not None:
            choices = (TenantStatus.ACTIVE, TenantStatus.SUSPENDED)
            check(status in choices, "where_status", status, "'active', 'suspended', or None for both")
            status = TenantStatus(status)
        read_only = options.get("read_only", True)
        check(isinstance(read_only, bool), "read_only", read_only, "True or False")
        params = options.get("params") or {}
        check(isinstance(params, Mapping), "params", params, 'a dict, such as {"least": 10}')
        check(timeout is None or timeout <= MAX_TIMEOUT_S, "statement_timeout_s", timeout, "at most 24 days")
        self.tenants = None if ids is None else parse_tenant_ids(ids)
        self.status: TenantStatus | None = status
        self.limit: int | None = limit
        # What writes is to be stopped by the first failure.
        self.concurrency = min(concurrency, manager.config.connection.pool_size) if read_only else 1
        self.asked_by: str | None = options.get("asked_by")
        self.question = Question(
            layout_of(manager.get_shared_db()),
            uses_catalog=manager.config.migrations.discover is None,
            statement=statement,
            params=params,
            batch=batch,
            timeout_s=timeout,
            is_read_only=read_only,
        )
        self._hook = manager.config.hooks.on_cross_tenant_query

    def choose(self, roster: Roster) -> tuple[list[Member], list[TenantError]]:
        """Whom to ask, and who cannot be asked; has the audit told."""
        self.question.roster = replace(roster, any_status=self.status is None)
        chosen, errors = choose(roster.members, self.tenants, self.status)
        dialect = postgresql.dialect(paramstyle="named")
        sql = str(self.question.statement.compile(dialect=dialect))  # type: ignore[attr-defined]
        ids = tuple(member.id for member in chosen)
        self._hook(
            CrossTenantQuery(
                asked_by=self.asked_by, sql=sql, tenants=ids, read_only=self.question.is_read_only
            )
        )
        return chosen, errors

    @property
    def modes(self) -> dict[str, Any]:
        """Of the transactions."""
        # What is checked after the tables are locked must be what is there then.
        return {"isolation_level": "READ COMMITTED", "postgresql_readonly": self.question.is_read_only}


def _rows(manager: TenantManager, asked: Asked, work: Work) -> Generator[Any, None, None]:
    yield from work.begin(*asked.choose(manager._provisioner.roster()))
    with ThreadPoolExecutor(asked.concurrency, "multitenant-query") as threads:
        while units := work.take():
            if not asked.question.is_short:
                yield from _stream(manager, asked, work, units[0])
                continue
            outcomes = threads.map(lambda unit: _collect(manager, asked, work, unit), units)
            for unit, outcome in zip(units, outcomes, strict=True):
                yield from work.settle(unit, *outcome)
                while work.must_ask_again:
                    (again,) = work.take()
                    yield from work.settle(again, *_collect(manager, asked, work, again))


def _stream(manager: TenantManager, asked: Asked, work: Work, unit: Unit) -> Generator[Any, None, None]:
    """The rows of one unit, as they are read."""
    try:
        with manager.get_shared_db().connect(asked.modes) as connection:
            batches = asked.question.ask(connection, unit, together=work.asks_together(unit))
            with closing(batches):
                for batch in batches:
                    yield from work.accept(batch)
                    if work.is_full:
                        break
    except Exception as error:
        yield from work.fail(unit, error)
    else:
        yield from work.finish()


def _collect(
    manager: TenantManager, asked: Asked, work: Work, unit: Unit
) -> tuple[list[Answer], Exception | None]:
    """All rows of one unit, committed; or what it failed with."""
    try:
        with manager.get_shared_db().connect(asked.modes) as connection:
            rows = asked.question.ask_all(connection, unit, together=work.asks_together(unit))
            connection.commit()
    except Exception as error:
        return [], error
    return rows, None


async def _rows_async(manager: AsyncTenantManager, asked: Asked, work: Work) -> AsyncGenerator[Any, None]:
    for refused in work.begin(*asked.choose(await asyncio.to_thread(manager._provisioner.roster))):
        yield refused
    while units := work.take():
        if not asked.question.is_short:
            async with aclosing(_stream_async(manager, asked, work, units[0])) as rows:
                async for row in rows:
                    yield row
            continue
        outcomes = await asyncio.gather(*(_collect_async(manager, asked, work, unit) for unit in units))
        for unit, outcome in zip(units, outcomes, strict=True):
            for answer in work.settle(unit, *outcome):
                yield answer
            while work.must_ask_again:
                (again,) = work.take()
                for answer in work.settle(again, *await _collect_async(manager, asked, work, again)):
                    yield answer


async def _stream_async(
    manager: AsyncTenantManager, asked: Asked, work: Work, unit: Unit
) -> AsyncGenerator[Any, None]:
    try:
        async with manager.get_shared_db().connect(asked.modes) as connection:
            sync = cast("Connection", connection.sync_connection)
            batches = asked.question.ask(sync, unit, together=work.asks_together(unit))
            try:
                while batch := await connection.run_sync(lambda _: next(batches, None)):
                    for row in work.accept(batch):
                        yield row
                    if work.is_full:
                        break
            finally:
                await connection.run_sync(lambda _: batches.close())
    except Exception as error:
        for failed in work.fail(unit, error):
            yield failed
    else:
        for row in work.finish():
            yield row


async def _collect_async(
    manager: AsyncTenantManager, asked: Asked, work: Work, unit: Unit
) -> tuple[list[Answer], Exception | None]:
    together = work.asks_together(unit)
    try:
        async with manager.get_shared_db().connect(asked.modes) as connection:
            rows = await connection.run_sync(asked.question.ask_all, unit, together=together)
            await connection.commit()
    except Exception as error:
        return [], error
    return rows, None
