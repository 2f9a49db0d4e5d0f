"""A real server for each test session, a template database on it, and a copy of that for each test."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, create_engine, make_url

from sqlalchemy_multitenant import Connection, Isolation, Schemas, TenantConfig, TenantManager, devserver
from tests.harness import DRIVERS, Harness, make_harness
from tests.models import SharedBase, TenantBase

# A shell starts what runs in the background with Ctrl-C ignored, and commands under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Durability is of no use to tests; some 40% of their time is.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_wal_size": "128MB"}

_IN_MEMORY, _ROOM = Path("/dev/shm"), 2 << 30  # noqa: S108 - of Linux: where there is room, a third of the rest


def server_folder() -> Path:
    """Where a server of the tests has its data, which come and go with each of them: in memory, if there is
    room."""
    fits = os.access(_IN_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_IN_MEMORY).free > _ROOM
    return _IN_MEMORY if fits else Path(tempfile.gettempdir())


@pytest.fixture(scope="session")
def server_url(testrun_uid: str) -> Iterator[URL]:
    """A server that the tests may do anything to; all workers share it."""
    if url := os.environ.get("MULTITENANT_TEST_DATABASE_URL"):
        yield make_url(url).set(drivername="postgresql+psycopg")
        return
    # Not below pytest's own folders: those are closed to the user that PostgreSQL runs as under root.
    root = server_folder() / f"multitenant-{testrun_uid[:12]}"
    root.mkdir(exist_ok=True)
    root.chmod(0o711)
    with devserver.start(root, settings=FAST) as server:
        yield make_url(server.url())
    if devserver.find(root) is None:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def admin(server_url: URL) -> Iterator[Engine]:
    """An engine for CREATE DATABASE and the like."""
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def template(admin: Engine, server_url: URL) -> Iterator[str]:
    """The name of a database with a shared schema, a catalog, and the tenants `a` and `b`."""
    name = f"template_{secrets.token_hex(4)}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    url = server_url.set(database=name)
    engine = create_engine(url)
    SharedBase.metadata.create_all(engine)
    engine.dispose()
    config = TenantConfig(
        connection=Connection(url=url), schemas=Schemas(tenant=TenantBase, shared=SharedBase)
    )
    with TenantManager(config) as manager:
        manager.create_tenant("a")
        manager.create_tenant("b")
    yield name
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass(frozen=True)
class Databases:
    """Makes throw-away databases."""

    admin: Engine
    server_url: URL
    made: list[str]

    def make(self, template: str = "template1") -> URL:
        """A new database, which is dropped after the test."""
        name = f"test_{secrets.token_hex(6)}"
        with self.admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        self.made.append(name)
        return self.server_url.set(database=name)


@pytest.fixture
def databases(admin: Engine, server_url: URL) -> Iterator[Databases]:
    made: list[str] = []
    yield Databases(admin, server_url, made)
    with admin.connect() as connection:
        for name in made:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def url(databases: Databases, template: str) -> URL:
    """A database of the test's own, with the tenants `a` and `b`."""
    return databases.make(template)


@pytest.fixture
def empty_url(databases: Databases) -> URL:
    """A database of the test's own with nothing in it."""
    return databases.make()


@pytest.fixture
def plain(url: URL) -> Iterator[Engine]:
    """An ordinary engine on the test's database: sees everything, guards nothing."""
    engine = create_engine(url)
    yield engine
    engine.dispose()


MakeConfig = Callable[..., TenantConfig]


@pytest.fixture
def make_config(url: URL) -> MakeConfig:
    """Builds a configuration on the test's database; keywords go to `Connection` and `Isolation`."""

    def make(**options: object) -> TenantConfig:
        pool = {key: options.pop(key) for key in list(options) if key in Connection.__dataclass_fields__}
        isolation = {key: options.pop(key) for key in list(options) if key in Isolation.__dataclass_fields__}
        options.setdefault("schemas", Schemas(tenant=TenantBase, shared=SharedBase))
        return TenantConfig(
            connection=Connection(**{"url": url, **pool}),  # type: ignore[arg-type]
            isolation=Isolation(**isolation),  # type: ignore[arg-type]
            **options,  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def tenants(make_config: MakeConfig) -> Iterator[TenantManager]:
    """A manager with three connections, so that tenants meet on them."""
    with TenantManager(make_config(pool_size=3)) as manager:
        yield manager


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


MakeHarness = Callable[..., Harness]


@pytest.fixture
def make_harness_(driver: str, make_config: MakeConfig, url: URL) -> Iterator[MakeHarness]:
    """Builds harnesses on the test's database; keywords as for `make_config`."""
    made: list[Harness] = []

    def make(**options: object) -> Harness:
        made.append(make_harness(driver, make_config, url, **options))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


@pytest.fixture
def harness(make_harness_: MakeHarness) -> Harness:
    """A manager under each driver, with one connection, so that tenants alternate on it."""
    return make_harness_(pool_size=1)
