"""`multitenant demo`: the whole product at work on a real PostgreSQL.

Everything lives in schemas of the demo's own, which it marks, and drops when it ends: also after Ctrl-C,
and what a killed demo left behind when the next one starts.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from sqlalchemy import Connection as SqlConnection
from sqlalchemy import Engine, ForeignKey, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .catalog.store import CatalogStore
from .config import Connection, Isolation, Migrations, Schemas, TenantConfig
from .context import TenantContext
from .engines.admin import make_admin_engine
from .engines.url import resolve_url
from .errors import ConfigurationError, MigrationError, MultitenantError
from .manager import TenantManager
from .migrations.migrator import Migrator
from .migrations.report import MigrationState
from .naming import quote_ident

SHARED = "multitenant_demo"
MARK = "made by `multitenant demo`, which drops it when it ends"
TENANTS = ("acme", "globex", *(f"tenant-{n:02}" for n in range(3, 21)))
USERS = {"acme": ("Ada", "Alan", "Anita"), "globex": ("Grace", "Guido")}
POOL_SIZE = 3
STATUS_ROWS = 4


class SharedBase(DeclarativeBase):
    """Tables that exist once."""


class TenantBase(DeclarativeBase):
    """Tables that each tenant has."""


class LaterBase(DeclarativeBase):
    """More of them, which come with the second release."""


class Plan(SharedBase):
    __tablename__ = "plans"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class User(TenantBase):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    plan_id: Mapped[int] = mapped_column(ForeignKey(Plan.id))


class Order(LaterBase):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    amount: Mapped[int]


def run_demo(out: Console) -> None:
    """Show the product on `$DATABASE_URL`, or else on the embedded server. Leaves nothing behind.

    Args:
        out: where to.

    Raises:
        ConfigurationError: there is no server, or its schema `multitenant_demo` is not the demo's.
        TenantExistsError: there is a schema of the name that a tenant of the demo would have.
    """
    url = resolve_url(Connection())
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="multitenant-demo-"))
        config = TenantConfig(
            connection=Connection(url=url, pool_size=POOL_SIZE),
            isolation=Isolation(schema_name="demo_{id}"),
            schemas=Schemas(tenant=TenantBase, shared=SharedBase, shared_schema=SHARED),
            migrations=Migrations(tenant_dir=f"{folder}/tenant", shared_dir=f"{folder}/shared"),
        )
        engine = make_admin_engine(config, url, pool_size=2)
        stack.callback(engine.dispose)
        turn = stack.enter_context(engine.connect())
        out.print(f"[bold]sqlalchemy-multitenant[/] on PostgreSQL {turn.scalar(text('SHOW server_version'))}")
        _wait_for_turn(turn, out)
        try:
            _prepare(engine)
            _show(config, out)
        finally:
            with _deferred_interrupt():
                _clean_up(engine)
    _say_what_next(out)


# -- leaving nothing behind -----------------------------------------------------------------------


def _wait_for_turn(connection: SqlConnection, out: Console) -> None:
    """Two demos at once would drop each other's schemas. The lock goes with the open transaction."""
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    lock = "hashtext('multitenant demo')"
    if not connection.scalar(text(f"SELECT pg_try_advisory_xact_lock({lock})")):
        out.print("Another demo is at work in this database; waiting until it ends ...")
        connection.execute(text(f"SELECT pg_advisory_xact_lock({lock})"))


def _prepare(engine: Engine) -> None:
    """Drop what a killed demo left, and make the demo's own shared schema, marked."""
    _clean_up(engine)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {SHARED}"))
        connection.execute(text(f"COMMENT ON SCHEMA {SHARED} IS '{MARK}'"))


def _clean_up(engine: Engine) -> None:
    """Drop the marked schema, and those of the tenants in its catalog: no other can be the demo's."""
    mark = text("SELECT coalesce(obj_description(to_regnamespace(:name), 'pg_namespace'), '')")
    exists = text("SELECT to_regnamespace(:name) IS NOT NULL")
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        if not connection.scalar(exists, {"name": SHARED}):
            return
        if connection.scalar(mark, {"name": SHARED}) != MARK:
            raise ConfigurationError("schema", SHARED, "it is there already, and not the demo's: rename it")
        store = CatalogStore(SHARED)
        records = store.list(connection) if store.is_installed(connection) else []
        schemas = [SHARED, *(r.schema for r in records if r.schema is not None)]
        connection.execute(text(f"DROP SCHEMA IF EXISTS {', '.join(map(quote_ident, schemas))} CASCADE"))


@contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """Ctrl-C waits for the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals never arrive here
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


# -- the show -------------------------------------------------------------------------------------


def _show(config: TenantConfig, out: Console) -> None:
    _create_tenants(config, out)
    second = replace(config, schemas=replace(config.schemas, tenant=[TenantBase, LaterBase]))
    _migrate(second, out)
    with TenantManager(second) as tenants:
        _fill(tenants)
        _show_side_by_side(tenants, out)
        _show_refusals(tenants, out)
        _show_shared(tenants, out)
    _show_status(second, out)


def _heading(out: Console, title: str, what: str) -> None:
    out.print()
    out.rule(f"[bold cyan]{title}[/]", align="left", style="cyan")
    out.print(f"[dim]{what}[/]")


def _generate(migrator: Migrator, name: str, out: Console) -> None:
    for revision in migrator.generate(name):
        changes = escape(", ".join(revision.changes))
        out.print(f"  revision [bold]{revision.path.name}[/] for the {revision.kind} schema: {changes}")


def _create_tenants(config: TenantConfig, out: Console) -> None:
    _heading(out, "1  Twenty tenants", "Alembic revisions from the models; then a schema for each tenant.")
    with Migrator(config) as migrator:
        _generate(migrator, "first", out)
        migrator.migrate_shared()
    started = time.perf_counter()
    with TenantManager(config) as tenants:
        for tenant in TENANTS:
            tenants.create_tenant(tenant)
    duration_ms = (time.perf_counter() - started) * 1000
    out.print(f"  created [bold]acme[/], [bold]globex[/] and {len(TENANTS) - 2} more in {duration_ms:.0f} ms")


def _migrate(config: TenantConfig, out: Console) -> None:
    _heading(out, "2  One migration, all tenants", "The models grow; every tenant gets the new table.")
    columns = (TextColumn("  migrating"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Migrator(config) as migrator:
        _generate(migrator, "add-orders", out)
        behind = sum(status.state == "behind" for status in migrator.status())
        out.print(f"  status: {behind} tenants are [yellow]behind[/]")
        with Progress(*columns, console=out) as progress:
            task = progress.add_task("", total=len(TENANTS))

            def update(tenant: str, state: MigrationState) -> None:
                done = state is not MigrationState.RUNNING
                progress.update(task, advance=int(done), description=tenant)

            report = migrator.migrate_all(concurrency=8, on_progress=update)
            progress.update(task, description="")
    for failure in report.failures:
        raise MigrationError(str(failure.error), failure.tenant) from failure.error
    out.print(f"  {report.succeeded} migrated, {report.skipped} up to date, {report.failed} failed")


def _fill(tenants: TenantManager) -> None:
    with tenants.get_shared_db().begin() as session:
        session.add_all([Plan(id=1, name="free"), Plan(id=2, name="team")])
    for tenant in TENANTS:
        with tenants.get_db(tenant).begin() as session:
            session.add_all(User(name=name, plan_id=1 + n % 2) for n, name in enumerate(_names(tenant)))


def _names(tenant: str) -> tuple[str, ...]:
    return USERS.get(tenant, (f"somebody of {tenant}",))


def _show_side_by_side(tenants: TenantManager, out: Console) -> None:
    _heading(out, "3  Two tenants, one query", "No query names a tenant: the transaction it runs in does.")
    context = TenantContext(tenants)
    users: list[str] = []
    counts: list[str] = []
    for tenant in USERS:
        with context.use_tenant(tenant):
            db = context.get_tenant_db()
            users.append("\n".join(f"{u.id}  {u.name}" for u in db.scalars(select(User).order_by(User.id))))
            counts.append(str(db.scalar(text("SELECT count(*) FROM users"))))
    table = Table("The same code", *USERS)
    table.add_row("select(User)", *users, end_section=True)
    table.add_row("text('SELECT count(*) FROM users')", *counts)
    out.print(table)
    _show_threads(tenants, out)


def _show_threads(tenants: TenantManager, out: Console) -> None:
    """Tenants take turns on few connections; nothing of one is left for the next."""

    def read(tenant: str) -> bool:
        return set(tenants.get_db(tenant).scalars(select(User.name))) == set(_names(tenant))

    started = time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        right = sum(threads.map(read, TENANTS * 25))
    asked, duration_ms = len(TENANTS) * 25, (time.perf_counter() - started) * 1000
    out.print(f"  {asked} such queries of {len(TENANTS)} tenants, in 8 threads over {POOL_SIZE} connections:")
    if right != asked:
        raise AssertionError(f"{asked - right} queries saw another tenant's rows")
    out.print(f"  [bold]{right} right, 0 wrong[/], in {duration_ms:.0f} ms")


def _show_refusals(tenants: TenantManager, out: Console) -> None:
    _heading(out, "4  What is refused", "Nothing falls back to another tenant, or to the shared schema.")
    context, acme = TenantContext(tenants), tenants.get_db("acme")

    def raw_connection() -> None:
        with closing(acme.engine.raw_connection()) as driver:
            driver.cursor().execute("SELECT * FROM users")

    _refuse(out, "no tenant is set", lambda: context.get_tenant_db().scalars(select(User)))
    _refuse(out, "a tenant that does not exist", lambda: tenants.get_db("initech").scalars(select(User)))
    _refuse(out, "an id that smuggles in a second schema", lambda: tenants.get_db("acme,demo_globex"))
    _refuse(out, "the engine's raw connection, outside a transaction", raw_connection)
    _refuse(out, "SQL that ends the scope", lambda: acme.execute(text("COMMIT; SELECT * FROM users")))
    tenants.set_tenant_status("globex", "suspended")
    _refuse(out, "globex, suspended a moment ago", lambda: tenants.get_db("globex").scalars(select(User)))
    tenants.set_tenant_status("globex", "active")


def _refuse(out: Console, what: str, attempt: Callable[[], object]) -> None:
    """Show the error that `attempt` raises; that it raises none would be the worst of errors."""
    try:
        attempt()
    except MultitenantError as error:
        out.print(f"  [bold]{what}[/]")
        out.print(
            Padding(f"[red]{type(error).__name__}[/]: {escape(str(error))}", (0, 0, 0, 4), expand=False)
        )
    else:
        raise AssertionError(f"this was not refused: {what}")


def _show_shared(tenants: TenantManager, out: Console) -> None:
    _heading(out, "5  The shared schema, joined", "select(User.name, Plan.name).join(Plan, ...)")
    query = select(User.name, Plan.name).join(Plan, Plan.id == User.plan_id).order_by(User.id)
    table = Table("Tenant", "User", "Plan")
    for tenant in USERS:
        for user, plan in tenants.get_db(tenant).execute(query):
            table.add_row(tenant, user, plan)
        table.add_section()
    out.print(table)


def _show_status(config: TenantConfig, out: Console) -> None:
    _heading(out, "6  Where each tenant stands", "`multitenant status` prints this of your own tenants.")
    with Migrator(config) as migrator:
        found = migrator.status()
    table = Table("Tenant", "Schema", "Revision", "Applied", "Pending", "Status")
    for status in found[:STATUS_ROWS]:
        numbers = str(status.applied), str(len(status.pending))
        table.add_row(
            status.tenant, status.schema, ", ".join(status.heads), *numbers, f"[green]{status.state}[/]"
        )
    states = ", ".join(sorted({status.state for status in found[STATUS_ROWS:]}))
    table.add_row(f"and {len(found) - STATUS_ROWS} more", "", "", "", "", f"[green]{states}[/]")
    out.print(table)


def _say_what_next(out: Console) -> None:
    _heading(out, "Your turn", "The demo's schemas are dropped again. In an empty folder, try:")
    for command, what in (
        ("multitenant init", "tenant_config.py, models.py, migrations/"),
        ("multitenant generate --name first", "revisions from the models"),
        ("multitenant migrate --shared", "the shared schema"),
        ("multitenant tenant create --id acme", "a tenant, at the newest revision"),
        ("multitenant status", "where each tenant stands"),
    ):
        out.print(f"  [bold]{command:<37}[/]{what}")
    if shutil.which("multitenant") is None:
        out.print(
            f"The command is in {Path(sys.executable).parent}, which is not on your PATH.", soft_wrap=True
        )
