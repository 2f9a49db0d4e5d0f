"""An id is parsed once; no two ids ever give one schema; a name is never cut; quoting survives the server."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from sqlalchemy_multitenant import ConfigurationError, InvalidTenantIdError, Isolation, Schemas, TenantConfig
from sqlalchemy_multitenant.naming import (
    MAX_NAME_BYTES,
    SchemaNaming,
    parse_schema_name,
    parse_tenant_id,
    quote_ident,
    quote_literal,
)
from tests.models import SharedBase, TenantBase

ALPHANUMERIC = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
INSIDE = ALPHANUMERIC + "_.-"

valid_ids = st.builds(str.__add__, st.sampled_from(ALPHANUMERIC), st.text(INSIDE, max_size=62))
near_ids = st.text(st.sampled_from(INSIDE + " \n\t\x00'\"\\;,=/é٣ａаⅣ²$%{}"), max_size=70)
prefixes = st.text(st.characters(exclude_characters="{}\x00", codec="utf-8"), max_size=20)


def is_valid(value: str) -> bool:
    """The grammar, told once more and in another way than the code does."""
    return 1 <= len(value) <= 63 and value[0] in ALPHANUMERIC and all(c in INSIDE for c in value)


# -- ids -----------------------------------------------------------------------------------------------


@given(st.one_of(st.text(), near_ids, valid_ids))
def test_exactly_the_grammar_is_accepted(value: str) -> None:
    try:
        parsed = parse_tenant_id(value)
    except InvalidTenantIdError:
        assert not is_valid(value)
    else:
        assert is_valid(value)
        assert parsed == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "a b",
        "abc\n",
        "abc\r\n",
        "\nabc",
        "a\x00b",
        "\x00",
        "ghost,tenant_victim",
        "victim -c role=other",
        "victim;DROP SCHEMA public",
        'vic"tim',
        "vic'tim",
        "vic\\tim",
        "vic/tim",
        "vic$tim",
        "{id}",
        "_leading",
        "-leading",
        ".leading",
        "..",
        "a" * 64,
        "a" * 10_000,
        "tenаnt",  # a Cyrillic a  # noqa: RUF001
        "ａcme",  # full width  # noqa: RUF001
        "é",
        "e\u0301",
        "١٢٣",  # digits, says str.isdecimal()
        "²",
        "Ⅳ",
        "\u017f",  # the long s, which upper() makes an S
        "\u212a",  # the Kelvin sign, which lower() makes a k
        "a\u200bb",
        "a\u202eb",
        "\ud800",
    ],
)
def test_an_id_of_the_field_is_refused_and_named(value: str) -> None:
    with pytest.raises(InvalidTenantIdError) as caught:
        parse_tenant_id(value)
    assert caught.value.tenant == value
    assert caught.value.reason in str(caught.value)


@pytest.mark.parametrize("value", [None, 7, 1.5, True, b"acme", ["acme"], object(), ("a",)])
def test_what_is_no_str_is_refused(value: object) -> None:
    with pytest.raises(InvalidTenantIdError, match="an id is a str, not"):
        parse_tenant_id(value)


def test_a_parsed_id_is_a_plain_str() -> None:
    """A subclass could bring its own formatting, its own adaptation by the driver, or data along."""

    class Customer(StrEnum):
        ACME = "acme"

    assert type(parse_tenant_id(Customer.ACME)) is str
    assert parse_tenant_id(Customer.ACME) == "acme"


@pytest.mark.parametrize("length", range(56, 65))
def test_an_id_near_the_limit_is_kept_whole_or_refused(length: int) -> None:
    """57 to 63 characters are an id, but `tenant_{id}` has no room for them."""
    naming, value = SchemaNaming("tenant_{id}"), "a" * length
    if length > MAX_NAME_BYTES:
        with pytest.raises(InvalidTenantIdError, match="too many"):
            parse_tenant_id(value)
    elif length > MAX_NAME_BYTES - len("tenant_"):
        with pytest.raises(InvalidTenantIdError, match="bytes"):
            naming.schema_for(parse_tenant_id(value))
    else:
        assert naming.schema_for(parse_tenant_id(value)) == f"tenant_{value}"


# -- the mapping ---------------------------------------------------------------------------------------


def schema_or_none(naming: SchemaNaming, value: str) -> str | None:
    try:
        return naming.schema_for(parse_tenant_id(value))
    except InvalidTenantIdError:
        return None


def make_naming(template: str) -> SchemaNaming | None:
    try:
        return SchemaNaming(template)
    except ConfigurationError:
        return None


@given(prefixes, prefixes, valid_ids, valid_ids)
def test_two_ids_never_share_a_schema(before: str, after: str, one: str, other: str) -> None:
    naming = make_naming(before + "{id}" + after)
    if naming is None or one == other:
        return
    first, second = schema_or_none(naming, one), schema_or_none(naming, other)
    assert first is None or first != second


@given(prefixes, prefixes, valid_ids)
def test_a_name_is_never_cut(before: str, after: str, value: str) -> None:
    naming = make_naming(before + "{id}" + after)
    if naming is None:
        return
    name = schema_or_none(naming, value)
    whole = before + value + after
    assert name in (None, whole)
    if len(whole.encode()) > MAX_NAME_BYTES:
        assert name is None


@pytest.mark.parametrize(
    ("one", "other"), [("a-b", "a_b"), ("A", "a"), ("x-y", "x--y"), ("a.b", "a_b"), ("x_", "x"), ("1", "01")]
)
def test_look_alikes_keep_apart(one: str, other: str) -> None:
    naming = SchemaNaming("tenant_{id}")
    assert naming.schema_for(parse_tenant_id(one)) != naming.schema_for(parse_tenant_id(other))


def test_bytes_are_counted_not_characters() -> None:
    naming = SchemaNaming("ü" * 10 + "{id}")
    assert naming.schema_for(parse_tenant_id("a" * 43)) == "ü" * 10 + "a" * 43
    with pytest.raises(InvalidTenantIdError, match="64 bytes"):
        naming.schema_for(parse_tenant_id("a" * 44))


@pytest.mark.parametrize(
    "template",
    [
        "tenant",
        "",
        "{id}{id}",
        "{ID}",
        "{}",
        "{id}_{x}",
        "{{id}}",
        "{id!r}",
        "pg_{id}",
        "a\x00{id}",
        "é" * 32 + "{id}",
    ],
)
def test_a_template_that_cannot_work_is_refused(template: str) -> None:
    with pytest.raises(ConfigurationError, match=r"isolation\.schema_name") as caught:
        make_configured(template)
    assert caught.value.value == repr(template)


def make_configured(template: object) -> SchemaNaming:
    isolation = Isolation(schema_name=template)  # type: ignore[arg-type]
    return TenantConfig(schemas=Schemas(tenant=TenantBase), isolation=isolation).naming


# -- callables and reserved names ----------------------------------------------------------------------


@pytest.mark.parametrize("made", ["", None, 7, b"x", "a\x00b", "x" * 64, "é" * 32, "\ud800", ["x"], object()])
def test_a_callable_that_returns_rubbish_is_refused(made: object) -> None:
    naming = SchemaNaming(lambda _id: made)  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidTenantIdError) as caught:
        naming.schema_for(parse_tenant_id("acme"))
    assert caught.value.tenant == "acme"


RESERVED = ["public", "pg_catalog", "information_schema", "pg_toast", "pg_mine", "core", "extensions"]


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_name_is_refused_whichever_way_it_is_reached(name: str) -> None:
    config = TenantConfig(
        schemas=Schemas(
            tenant=TenantBase, shared=SharedBase, shared_schema="core", extra_search_path=["extensions"]
        ),
        isolation=Isolation(schema_name="{id}"),
    )
    by_callable = SchemaNaming(lambda _id: name, config.naming.reserved)
    for naming in (config.naming, by_callable):
        with pytest.raises(InvalidTenantIdError, match="reserved"):
            naming.schema_for(parse_tenant_id(name))


@pytest.mark.parametrize(
    ("template", "value"), [("p{id}", "g_catalog"), ("pub{id}", "lic"), ("{id}_schema", "information")]
)
def test_a_template_cannot_compose_a_reserved_name(template: str, value: str) -> None:
    with pytest.raises(InvalidTenantIdError, match="reserved"):
        SchemaNaming(template).schema_for(parse_tenant_id(value))


def test_only_a_template_is_sure_to_keep_ids_apart() -> None:
    lower: Callable[[str], str] = str.lower
    assert SchemaNaming("tenant_{id}").is_injective
    assert not SchemaNaming(lower).is_injective


@given(st.text())
def test_a_schema_name_has_1_to_63_bytes_and_no_nul(value: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = -1
    if 1 <= size <= MAX_NAME_BYTES and "\x00" not in value:
        assert parse_schema_name(value) == value
    else:
        with pytest.raises(ValueError, match=r"."):
            parse_schema_name(value)


# -- quoting -------------------------------------------------------------------------------------------

NASTY = [
    "a",
    "A b",
    'a"b',
    '"',
    '""',
    "'",
    "''",
    "\\",
    "\\'",
    "\\\\",
    "'\\''; DROP TABLE x; --",
    "$$",
    "$tag$",
    "--",
    "/*",
    "é",
    "😀",
    "\n",
    "\t\\n",
    "%s",
    ":name",
    "{id}",
    "x" * 63,
]


@given(st.text())
def test_an_identifier_can_be_read_back(name: str) -> None:
    quoted = quote_ident(name)
    assert re.fullmatch(r'"(?:[^"]|"")*"', quoted, re.DOTALL)
    assert quoted[1:-1].replace('""', '"') == name


@pytest.mark.parametrize("setting", ["on", "off"])
def test_the_server_reads_back_what_was_quoted(plain: Engine, setting: str) -> None:
    """Literals mean the same whatever `standard_conforming_strings` is; identifiers come back whole."""
    with plain.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        try:
            driver.execute(f"SET standard_conforming_strings = {setting}")
        except Exception:
            pytest.skip("this server knows no other setting")
        cursor = driver.execute(
            "SELECT " + ", ".join(f"{quote_literal(x)} AS {quote_ident(x)}" for x in NASTY)
        )
        assert list(cursor.fetchone()) == NASTY
        assert [column.name for column in cursor.description] == NASTY
