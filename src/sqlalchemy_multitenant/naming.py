"""From a tenant's id to the name of its schema: parsed once, never escaped later.

A `TenantId` exists only where `parse_tenant_id` let it through, a `SchemaName` only where
`parse_schema_name` did; everything below takes these types, so an unchecked string cannot get
near SQL. Names are always quoted, hence `a-b`, `a_b`, `A` and `a` are four different schemas
(PostgreSQL folds only unquoted names).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NewType

from .errors import ConfigurationError, InvalidTenantIdError

TenantId = NewType("TenantId", str)
SchemaName = NewType("SchemaName", str)

MAX_NAME_BYTES = 63
"""NAMEDATALEN - 1: PostgreSQL cuts longer names silently
(https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS)."""

# ASCII only: two Unicode spellings of one word would be two tenants that look alike.
_TENANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

_SYSTEM_SCHEMAS = frozenset({"information_schema", "public"})

# Schemas that the toolkit makes and drops by itself.
_OWN_SCHEMAS = ("multitenant_reference-", "multitenant_scratch_", "multitenant_spare_")


def parse_tenant_id(value: object) -> TenantId:
    """Return `value` as a tenant id.

    Allowed are 1 to 63 ASCII letters, digits, `_`, `-` and `.`, the first a letter or digit.

    Raises:
        InvalidTenantIdError: it breaks one of these rules; the error says which.
    """
    if not isinstance(value, str):
        raise InvalidTenantIdError(repr(value), f"an id is a str, not {type(value).__name__}; pass str(...)")
    return _parse_tenant_id(
        str.__str__(value)
    )  # plain: a subclass may bring data and an adaptation of its own


@lru_cache(maxsize=10_000)  # each request asks several times
def _parse_tenant_id(value: str) -> TenantId:
    if not value:
        raise InvalidTenantIdError(value, "an id is not empty")
    if len(value) > MAX_NAME_BYTES:
        raise InvalidTenantIdError(value, f"{len(value)} characters are too many; at most {MAX_NAME_BYTES}")
    if not _TENANT_ID.fullmatch(value):
        raise InvalidTenantIdError(
            value, "only ASCII letters, digits, '_', '-' and '.', beginning with a letter or digit"
        )
    return TenantId(value)


def parse_tenant_ids(values: Iterable[str]) -> list[TenantId]:
    """Ids, checked; one id alone is a mistake, and not as many ids as it has letters.

    Raises:
        ConfigurationError: a str instead of several.
        InvalidTenantIdError: one of them is no id.
    """
    if isinstance(values, str):
        raise ConfigurationError("tenants", values, f"several ids: [{values!r}]")
    return [parse_tenant_id(value) for value in values]


def parse_schema_name(value: object) -> SchemaName:
    """Return `value` as the name of a schema: 1 to 63 bytes, no NUL, not one of PostgreSQL's own.

    Raises:
        ValueError: with the rule that it breaks.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"a schema name is a non-empty str, not {value!r}")
    if value == "$user":
        raise ValueError("'$user' in a search path means the role's own schema, even when quoted")
    if "\x00" in value:
        raise ValueError(f"{value!r} contains a NUL character, which PostgreSQL refuses")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{value!r} cannot be encoded as UTF-8") from error
    if size > MAX_NAME_BYTES:
        raise ValueError(
            f"schema name {value!r} has {size} bytes; PostgreSQL would cut it to {MAX_NAME_BYTES}, "
            "and two tenants could meet"
        )
    return SchemaName(value)


def quote_ident(name: str) -> str:
    """`name` as a quoted SQL identifier
    (https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS)."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """`text` as an SQL string literal that is right whatever `standard_conforming_strings` is."""
    escaped = text.replace("'", "''")
    if "\\" in escaped:
        return " E'" + escaped.replace("\\", "\\\\") + "'"
    return f"'{escaped}'"


def path_sql(schemas: Iterable[str]) -> str:
    """The value of `search_path` for these schemas, in this order. pg_temp comes last: a temporary table must
    never stand in front of a tenant's own
    (https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-SEARCH-PATH)."""
    return ", ".join([*map(quote_ident, schemas), "pg_temp"])


@dataclass(frozen=True, slots=True)
class SchemaNaming:
    """The mapping from tenant id to schema name.

    Attributes:
        rule: a template that holds `{id}` once, or a callable `str -> str`.
        reserved: names that no tenant may map to (the shared schema, the extra ones).
    """

    rule: str | Callable[[str], str]
    reserved: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if callable(self.rule):
            return
        field = "isolation.schema_name"
        if not isinstance(self.rule, str) or self.rule.count("{id}") != 1:
            raise ConfigurationError(
                field,
                self.rule,
                "a template holds {id} exactly once, as in 'tenant_{id}'; or pass a callable",
            )
        if re.search(r"[{}]", self.rule.replace("{id}", "")):
            raise ConfigurationError(field, self.rule, "no braces besides {id}")
        try:
            name = parse_schema_name(self.rule.replace("{id}", "x"))
        except ValueError as error:
            raise ConfigurationError(field, self.rule, str(error)) from error
        if name.startswith("pg_"):
            raise ConfigurationError(field, self.rule, "PostgreSQL reserves names that begin with pg_")

    @property
    def is_injective(self) -> bool:
        """Whether two ids can never share a schema: always for a template, never sure of a callable."""
        return isinstance(self.rule, str)

    def schema_for(self, tenant: TenantId) -> SchemaName:
        """The schema of `tenant`.

        Raises:
            InvalidTenantIdError: the id maps to no usable name: over 63 bytes, reserved, or not a str.
        """
        made = self.rule(tenant) if callable(self.rule) else self.rule.replace("{id}", tenant)
        return self.check(tenant, made)

    def check(self, tenant: TenantId, name: object) -> SchemaName:
        """`name` as the schema of `tenant`, wherever it comes from.

        Raises:
            InvalidTenantIdError: it is no usable name, or reserved.
        """
        try:
            parsed = parse_schema_name(name)
        except ValueError as error:
            raise InvalidTenantIdError(tenant, str(error)) from error
        own = parsed.startswith(("pg_", *_OWN_SCHEMAS))
        if own or parsed in self.reserved or parsed in _SYSTEM_SCHEMAS:
            raise InvalidTenantIdError(tenant, f"it would live in schema {parsed!r}, which is reserved")
        return parsed
