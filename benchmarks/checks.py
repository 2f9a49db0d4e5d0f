"""What each part of the message costs that opens a tenant's transaction, below Python: raw libpq."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

from psycopg import pq

from sqlalchemy_multitenant.catalog.source import CatalogSource, Layout
from sqlalchemy_multitenant.catalog.table import TABLE
from sqlalchemy_multitenant.isolation.scope import Scope, begin_sql, session_reset_sql
from sqlalchemy_multitenant.naming import TenantId

from .database import TENANTS, World, connect
from .report import Report, compare
from .rounds import Variant, measure

ROUNDS, MESSAGES_PER_ROUND = 200, 40
_ROLE = "RESET ROLE; "
_OK = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


def _scopes(world: World, pgconn: pq.abc.PGconn) -> list[Scope]:
    """The scopes that the toolkit itself would use."""
    layout = Layout.of(world.config())
    scopes = []
    for tenant in world.tenants:
        source = CatalogSource(layout, TenantId(tenant))
        result = pgconn.exec_(source.lookup_sql.encode())
        row = [bytes(result.get_value(0, n) or b"").decode() for n in range(result.nfields)]
        scopes.append(source.refresh(row))
    return scopes


def _messages(world: World, scopes: Sequence[Scope]) -> dict[str, list[bytes]]:
    """For each variant, the message of each tenant."""
    plain = [f"BEGIN; SET LOCAL search_path TO {schema}, public, pg_temp" for schema in world.schemas]
    guards = [f"SELECT '{schema}'::pg_catalog.regnamespace" for schema in world.schemas]
    rows = [f"FROM {TABLE} WHERE id = '{tenant}' AND status = 'active'" for tenant in world.tenants]
    scripts = [begin_sql("BEGIN", scope) for scope in scopes]
    assert all(_ROLE in script for script in scripts)
    variants = {
        "BEGIN": ["BEGIN"] * len(plain),
        "+ SET LOCAL search_path": plain,
        "+ schema guard (regnamespace)": [f"{a}; {b}" for a, b in zip(plain, guards, strict=True)],
        "+ catalog guard (regclass)": [script.replace(_ROLE, "", 1) for script in scripts],
        "+ RESET ROLE: ours": scripts,
        "ours + session reset (first after checkout)": [
            begin_sql("BEGIN", scope, clean_up=session_reset_sql()) for scope in scopes
        ],
        "not ours: reading the tenant's row": [
            f"{a}; {b} {c}" for a, b, c in zip(plain, guards, rows, strict=True)
        ],
    }
    return {name: [message.encode() for message in messages] for name, messages in variants.items()}


def _send(pgconn: pq.abc.PGconn, messages: Sequence[bytes], tenants: Sequence[int]) -> None:
    for tenant in tenants:
        result = pgconn.exec_(messages[tenant])
        assert result.status in _OK, result.error_message
        pgconn.exec_(b"ROLLBACK")


def _make_tenants(random: Random) -> list[int]:
    return [random.randrange(TENANTS) for _ in range(MESSAGES_PER_ROUND)]


def run(world: World, rounds: int | None, progress: Callable[[str], object]) -> Iterator[Report]:
    """The report."""
    progress("what the parts of BEGIN cost ...")
    with connect(world.url) as connection:
        pgconn = connection.pgconn
        messages = _messages(world, _scopes(world, pgconn))
        variants = [Variant(name, partial(_send, pgconn, texts)) for name, texts in messages.items()]
        samples = measure(variants, rounds or ROUNDS, _make_tenants, MESSAGES_PER_ROUND)
    yield compare(
        "Opening a tenant's transaction: BEGIN and ROLLBACK, one message each, raw libpq",
        "transaction",
        samples,
        ["BEGIN"],
        extra_over="BEGIN",
    )
