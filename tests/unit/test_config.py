"""The configuration is frozen, checked when it is built, and each error names field, value and mend."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import URL, Column, Integer, MetaData, Table, make_url
from sqlalchemy.orm import DeclarativeBase, declarative_base

from sqlalchemy_multitenant import (
    ConfigurationError,
    Connection,
    Hooks,
    Isolation,
    Metrics,
    Migrations,
    Schemas,
    TenantConfig,
)
from tests.models import SharedBase, TenantBase

SECRET = "hunter2"
PASSED = Schemas(tenant=TenantBase, shared=SharedBase)
NAN, INF = math.nan, math.inf


def table(name: str, schema: str | None = None) -> MetaData:
    metadata = MetaData()
    Table(name, metadata, Column("id", Integer, primary_key=True), schema=schema)
    return metadata


async def discover_later() -> list[str]:
    return []


NO_COUNT = [0, -1, 1.0, True, False, "10", None, NAN]
NO_SECONDS = [0, -0.5, True, "5", NAN, [1]]
NO_FLAG = [None, "no"]

WRONG: list[tuple[Callable[..., object], str, str, list[Any]]] = [
    (Connection, "connection", "url", [5, b"postgresql://h/d", ["postgresql://h/d"]]),
    (Connection, "connection", "pool_size", NO_COUNT),
    (Connection, "connection", "pool_timeout_s", [*NO_SECONDS, None, INF]),
    (Connection, "connection", "idle_timeout_s", [*NO_SECONDS, None]),
    (Connection, "connection", "connect_args", [None, "timeout=5", [("timeout", 5)]]),
    (Connection, "connection", "pre_ping", NO_FLAG),
    (Connection, "connection", "echo", NO_FLAG),
    (Isolation, "isolation", "strategy", ["", "SCHEMA", "tables", None, 1]),
    (Isolation, "isolation", "schema_name", [None, 5, ["tenant_{id}"], b"tenant_{id}"]),
    (Isolation, "isolation", "max_pools", NO_COUNT),
    (Isolation, "isolation", "pool_ttl_s", [*NO_SECONDS, None]),
    (Isolation, "isolation", "pool_per_tenant", NO_FLAG),
    (Migrations, "migrations", "tenant_dir", [None, 5]),
    (Migrations, "migrations", "shared_dir", [None, 5]),
    (Migrations, "migrations", "version_table", ["", None, 5, "x" * 64, "a\x00b"]),
    (Migrations, "migrations", "discover", ["a", ["a", "b"], discover_later]),
    (Migrations, "migrations", "lock_timeout_s", [*NO_SECONDS, None, INF]),
    (Migrations, "migrations", "statement_timeout_s", [*NO_SECONDS, INF]),
    (Schemas, "schemas", "tenant", [None, [], 5, "models", object(), [5]]),
    (Schemas, "schemas", "shared", [5, "models", object(), [5]]),
    (Schemas, "schemas", "shared_schema", ["", None, 5, "x" * 64, "pg_catalog", "information_schema"]),
    (Schemas, "schemas", "extra_search_path", ["extensions", None, 5, ["pg_temp"], [""], [5], ["x" * 64]]),
    (Hooks, "hooks", "on_pool_created", [None, "print"]),
    (Hooks, "hooks", "on_pool_evicted", [None, "print"]),
    (Hooks, "hooks", "on_error", [None, "print"]),
    (Metrics, "metrics", "enabled", NO_FLAG),
    (Metrics, "metrics", "prefix", [None, 5]),
]
WRONG_ONE_BY_ONE = [
    pytest.param(build, section, field, value, id=f"{section}.{field}-{number}")
    for build, section, field, values in WRONG
    for number, value in enumerate(values)
]


@pytest.mark.parametrize(("build", "section", "field", "value"), WRONG_ONE_BY_ONE)
def test_a_wrong_value_is_refused_by_field_value_and_mend(
    build: Callable[..., object], section: str, field: str, value: object
) -> None:
    needed = {"tenant": TenantBase} if build is Schemas else {}
    with pytest.raises(ConfigurationError) as caught:
        build(**{**needed, field: value})
    shown = value[0] if isinstance(value, list) and field == "extra_search_path" else value
    if isinstance(value, list) and field in ("tenant", "shared") and value:
        shown = value[0]
    assert caught.value.field == f"{section}.{field}"
    assert caught.value.value == repr(shown)
    assert caught.value.reason
    assert str(caught.value) == f"{section}.{field} = {shown!r}: {caught.value.reason}"


@pytest.mark.parametrize("section", ["schemas", "connection", "isolation", "migrations", "hooks", "metrics"])
def test_a_section_of_another_kind_is_refused(section: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{section} = 'x': a \w+\(\.\.\.\)"):
        TenantConfig(**{"schemas": PASSED, section: "x"})  # type: ignore[arg-type]


def test_the_template_is_checked_when_the_whole_is_built() -> None:
    with pytest.raises(ConfigurationError, match=r"isolation\.schema_name = 'fixed': .*\{id\} exactly once"):
        TenantConfig(schemas=PASSED, isolation=Isolation(schema_name="fixed"))


def test_the_version_table_is_no_model() -> None:
    with pytest.raises(ConfigurationError, match=r"migrations\.version_table = 'users'"):
        TenantConfig(schemas=PASSED, migrations=Migrations(version_table="users"))


def test_only_the_tenants_models_are_required() -> None:
    config = TenantConfig(schemas=Schemas(tenant=TenantBase))
    assert (config.connection.url, config.connection.pool_size) == (None, 10)
    assert (config.isolation.strategy, config.isolation.schema_name) == ("schema", "tenant_{id}")
    assert (config.migrations.version_table, config.metrics.prefix) == ("alembic_version", "multitenant")
    with pytest.raises(TypeError, match="schemas"):
        TenantConfig()  # type: ignore[call-arg]


def test_everything_is_frozen_and_keyword_only() -> None:
    config = TenantConfig(schemas=PASSED)
    for part in (config, *(getattr(config, f.name) for f in dataclasses.fields(config))):
        name = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, "other")
        with pytest.raises(TypeError):
            type(part)("positional")


def test_what_was_passed_in_may_change_and_the_configuration_does_not() -> None:
    arguments, path, models = {"connect_timeout": 5}, ["extensions"], [TenantBase.metadata]
    connection = Connection(connect_args=arguments)
    schemas = Schemas(tenant=models, extra_search_path=path)
    arguments["connect_timeout"] = 6
    path.append("other")
    models.append(SharedBase.metadata)
    assert connection.connect_args == {"connect_timeout": 5}
    assert schemas.extra_search_path == ("extensions",)
    assert schemas.tenant == (TenantBase.metadata,)


# -- URLs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("postgres", "psycopg"),
        ("postgresql", "psycopg"),
        ("postgresql+psycopg", "psycopg"),
        ("postgres+psycopg", "psycopg"),
        ("postgresql+asyncpg", "asyncpg"),
    ],
)
@pytest.mark.parametrize("make", [str, make_url])
def test_a_postgres_url_is_given_its_driver(
    given: str, driver: str, make: Callable[[str], str | URL]
) -> None:
    url = Connection(url=make(f"{given}://u:p@h:5/d?application_name=x")).url
    assert isinstance(url, URL)
    assert url.drivername == f"postgresql+{driver}"
    assert (url.username, url.password, url.host, url.port, url.database) == ("u", "p", "h", 5, "d")
    assert url.query == {"application_name": "x"}


BAD_URLS = [
    f"postgresql+psycopg2://u:{SECRET}@h/d",
    f"postgresql+pg8000://u:{SECRET}@h/d",
    f"mysql://u:{SECRET}@h/d",
    f"mysql+asyncmy://u:{SECRET}@h/d",
    f"sqlite:///{SECRET}",
    f"u:{SECRET}@h/d",
    f"postgresql:u:{SECRET}@h/d",
    f"postgresql://u:{SECRET}@h:port/d",
    f"host=h password={SECRET}",
    "",
    "postgresql",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_another_url_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^connection\.url = ") as caught:
        Connection(url=url)
    error: BaseException | None = caught.value
    while error is not None:
        if "sqlite" not in url:  # that is a file's name
            assert SECRET not in str(error)
            assert SECRET not in repr(error)
        error = error.__cause__


def test_a_refused_driver_is_named_with_the_ones_to_use() -> None:
    with pytest.raises(
        ConfigurationError, match=r"psycopg2.*postgresql\+psycopg:// or postgresql\+asyncpg://"
    ):
        Connection(url="postgresql+psycopg2://h/d")
    with pytest.raises(ConfigurationError, match="only PostgreSQL"):
        Connection(url="mysql://h/d")


@pytest.mark.parametrize(
    "connection",
    [
        Connection(url=f"postgresql://u:{SECRET}@h/d"),
        Connection(url=URL.create("postgresql", username="u", password=SECRET, host="h")),
        Connection(url="postgresql://u@h/d", connect_args={"password": SECRET}),
        Connection(url=f"postgresql://h/d?user=u&password={SECRET}"),
    ],
    ids=["url", "URL", "connect_args", "query"],
)
def test_no_repr_shows_the_password(connection: Connection) -> None:
    config = TenantConfig(schemas=PASSED, connection=connection)
    assert SECRET not in f"{connection!r} {connection} {config!r} {config}"


# -- models ---------------------------------------------------------------------------------------------


class Declared(DeclarativeBase):
    metadata = table("declared")


LISTED = [table("one"), Declared, [table("three")]]


@pytest.mark.parametrize(
    ("models", "tables"),
    [
        (table("one"), {"one"}),
        (Declared, {"declared"}),
        (declarative_base(metadata=table("old")), {"old"}),
        (LISTED, {"one", "declared", "three"}),
        (tuple(LISTED), {"one", "declared", "three"}),
        (iter(LISTED), {"one", "declared", "three"}),
        ([Declared, Declared.metadata], {"declared"}),
        (MetaData(), set()),
    ],
    ids=["metadata", "base", "old-base", "list", "tuple", "iterator", "twice", "empty"],
)
def test_models_are_metadata_or_bases_or_lists_of_them(models: object, tables: set[str]) -> None:
    schemas = Schemas(tenant=models)
    assert schemas.tenant_tables == tables
    assert all(isinstance(metadata, MetaData) for metadata in schemas.tenant)
    assert len(schemas.tenant) == len(set(schemas.tenant))


@pytest.mark.parametrize("schema", [None, "public", "core"])
def test_a_table_in_both_models_is_refused(schema: str | None) -> None:
    """A shared one with `schema=` as well: raw SQL would still read the tenant's in its place."""
    with pytest.raises(ConfigurationError, match=r"^schemas = 'users': .*rename one"):
        Schemas(tenant=table("users"), shared=[table("plans"), table("users", schema)])


def test_a_tenants_table_that_names_a_schema_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^schemas\.tenant = 'crm\.users': .*take out `schema=`"):
        Schemas(tenant=table("users", "crm"))


def test_a_name_that_two_tenant_models_share_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^schemas\.tenant = 'users'"):
        Schemas(tenant=[table("users"), table("users")])


def test_the_shared_models_may_name_the_shared_schema_or_none() -> None:
    schemas = Schemas(tenant=TenantBase, shared=[table("a", "core"), table("b")], shared_schema="core")
    assert schemas.shared_tables == {"a", "b"}
