"""`cross_schema_raw`: SQL by hand over a tenant's and the shared schema, its rows as typed objects."""

from __future__ import annotations

import re
import secrets
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar, overload

from sqlalchemy import Connection, Row, TextClause, text

from ..database import TenantDb
from ..database_async import AsyncTenantDb
from ..errors import ConfigurationError
from ..isolation.sqltext import code_only, split_statements
from ..naming import quote_ident
from .handles import AnyDb, layout_of
from .rows import RowClass

R = TypeVar("R")

# Not within a name, in which a dollar sign may stand
# (https://www.postgresql.org/docs/current/sql-syntax-lexical.html).
# A colon begins a parameter where a name follows, but not in `::type`, `:=` or a slice such as `[1:2]`.
_PLACE = re.compile(
    r"(?<![\w$])\$(?P<owner>[A-Za-z_]\w*)(?![\w$])"
    r"|(?<![:\w\]\\]):(?P<param>[^\W\d]\w*)"
)

_PREFIX = f"p{secrets.token_hex(4)}_"
"""Of parameters' names: under asyncpg, SQLAlchemy takes `%(name)s` in a string for the parameter `name`."""


@overload
def cross_schema_raw(
    tenant_db: TenantDb, sql: str, params: Mapping[str, Any] | None = None, *, into: type[R]
) -> list[R]: ...
@overload
def cross_schema_raw(
    tenant_db: TenantDb, sql: str, params: Mapping[str, Any] | None = None, *, into: None = None
) -> list[Row[*tuple[Any, ...]]]: ...
@overload
def cross_schema_raw(
    tenant_db: AsyncTenantDb, sql: str, params: Mapping[str, Any] | None = None, *, into: type[R]
) -> Coroutine[Any, Any, list[R]]: ...
@overload
def cross_schema_raw(
    tenant_db: AsyncTenantDb, sql: str, params: Mapping[str, Any] | None = None, *, into: None = None
) -> Coroutine[Any, Any, list[Row[*tuple[Any, ...]]]]: ...
def cross_schema_raw(
    tenant_db: AnyDb, sql: str, params: Mapping[str, Any] | None = None, *, into: type[Any] | None = None
) -> Any:
    """Run one statement of SQL, in a transaction of its own, which is committed.

        class Usage(NamedTuple):
            name: str
            visits: int

        cross_schema_raw(
            tenant_db,
            "SELECT u.name, s.visits FROM $tenant.users u JOIN $shared.stats s ON s.user_id = u.id "
            "WHERE s.visits > :least",
            {"least": 10},
            into=Usage,
        )  # list[Usage]

    Args:
        tenant_db: the tenant's handle. With one of an `AsyncTenantManager`, await the result.
        sql: a statement, in which `$tenant` stands for the tenant's schema, and `$shared` for the shared
            one. In strings, quoted names, comments and dollar-quoted bodies nothing is replaced. Names
            without a schema are found in the tenant's first, then in the shared one. A colon before a name
            that is to be one is written `\\:`.
        params: the values of `:name` in it.
        into: the class of the rows, whose fields are the columns' names: a NamedTuple, a dataclass, a
            TypedDict or a pydantic model. Left out: SQLAlchemy's `Row`, without types.

    Raises:
        ConfigurationError: the columns, or the values in them, do not fit `into`; a parameter is missing or
            not in the statement; or something else than `$tenant` and `$shared` is to be replaced. Nothing
            was committed.
    """
    if not isinstance(tenant_db, TenantDb | AsyncTenantDb) or tenant_db.tenant is None:
        raise ConfigurationError("tenant_db", tenant_db, "the handle of a tenant: tenants.get_db(...)")
    if not isinstance(sql, str):
        raise ConfigurationError("sql", sql, "SQL as a str; other statements go to tenant_db.execute()")
    if params is not None and not isinstance(params, Mapping):
        raise ConfigurationError("params", params, 'a dict, such as {"least": 10}')
    template = RawSql(sql, dict(params or {}), layout_of(tenant_db).shared_schema)
    rows = RowClass.of(into) if into is not None else None

    def run(connection: Connection) -> list[Any]:
        return _fetch(connection, template, rows)

    if isinstance(tenant_db, AsyncTenantDb):
        return _run_async(tenant_db, run)
    with tenant_db.engine.begin() as connection:
        return run(connection)


async def _run_async(db: AsyncTenantDb, run: Any) -> list[Any]:
    async with db.engine.begin() as connection:
        return list(await connection.run_sync(run))


def _fetch(connection: Connection, template: RawSql, rows: RowClass[Any] | None) -> list[Any]:
    result = connection.execute(template.statement(connection), template.params)
    if not result.returns_rows:
        if rows is not None:
            raise ConfigurationError(
                "into", rows.cls.__name__, "the statement returns no rows; add RETURNING"
            )
        return []
    if rows is None:
        return list(result)
    columns = list(result.keys())
    rows.check_columns(columns)
    return [rows.make(dict(zip(columns, row, strict=True))) for row in result]


def verbatim(sql: str) -> TextClause:
    """SQL as it is: a colon in it begins no parameter."""
    return text(sql.replace(":", r"\:"))


class RawSql:
    """SQL by hand, with places for schemas and parameters."""

    def __init__(self, sql: str, params: dict[str, Any], shared_schema: str) -> None:
        """
        Raises:
            ConfigurationError: something else than `$tenant` and `$shared` is to be replaced, there are
                several statements, or the parameters are not those of the statement.
        """
        self._sql, self._code = sql, code_only(sql)
        if len(split_statements(sql)) > 1:
            raise ConfigurationError("sql", sql, "one statement at a time")
        self._places = list(_PLACE.finditer(self._code))
        for place in self._places:
            if place["owner"] not in (None, "tenant", "shared"):
                raise ConfigurationError("sql", place.group(), "only $tenant and $shared stand for schemas")
        self._needs_tenant = any(place["owner"] == "tenant" for place in self._places)
        self._shared = quote_ident(shared_schema)
        wanted = {place["param"] for place in self._places if place["param"]}
        if missing := sorted(wanted - set(params)):
            raise ConfigurationError(
                "params",
                params,
                f"no value for {', '.join(missing)}; a colon that begins no parameter is \\:",
            )
        if unknown := sorted(set(params) - wanted):
            raise ConfigurationError("params", params, f"not in the statement: {', '.join(unknown)}")
        self.params = {_PREFIX + name: value for name, value in params.items()}

    def statement(self, connection: Connection) -> TextClause:
        """The statement for the connection's tenant."""
        if not self._needs_tenant:
            return self._text("")
        # Asked in the transaction itself: what was known before may have changed.
        return self._text(connection.exec_driver_sql("SELECT current_schema()").scalar_one())

    def _text(self, tenant_schema: str) -> TextClause:
        schemas = {"tenant": quote_ident(tenant_schema), "shared": self._shared}
        parts, at = [], 0
        for place in self._places:
            parts.append(self._escaped(at, place.start()))
            name = place["param"]
            parts.append(f":{_PREFIX}{name}" if name else schemas[place["owner"]].replace(":", r"\:"))
            at = place.end()
        return text("".join([*parts, self._escaped(at, len(self._sql))]))

    def _escaped(self, start: int, end: int) -> str:
        """A part of the statement, whose colons begin no parameters."""
        escaped = []
        for at in range(start, end):
            is_escaped = self._code[at] == ":" and at > 0 and self._code[at - 1] == "\\"
            escaped.append(r"\:" if self._sql[at] == ":" and not is_escaped else self._sql[at])
        return "".join(escaped)
