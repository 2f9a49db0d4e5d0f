"""Fixtures for pytest, there as soon as the package is installed. They cost nothing until a test asks for
one.

`tenant_config`    the application's configuration; override it, or let it be found as the command line does
`two_tenants`      the ids of two tenants, which are there when a test begins
`tenant`           the first of them
`fill_template`    makes them, and what else all tests begin with; override it
`tenant_database`  a configuration for a database of the test's own
`tenants`          a manager of it
`tenant_session`   a session of `tenant`'s, which is rolled back after the test

The databases are on an embedded server that lives as long as the run, or on the one that the environment
variable MULTITENANT_TEST_DATABASE_URL names; never where the configuration points to.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from .config import TenantConfig
    from .manager import TenantManager
    from .testing.databases import TestDatabases

SERVER = "MULTITENANT_TEST_DATABASE_URL"

_FOLDER = "multitenant-test-"
_YOUNG_S = 60.0

# Durability is of no use to tests.
_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The setting in which the configuration may be named."""
    parser.addini("tenant_config", "where the TenantConfig is: FILE_OR_MODULE[:ATTR]")


@pytest.fixture(scope="session")
def tenant_config(pytestconfig: pytest.Config) -> TenantConfig:
    """The application's configuration: that of pytest's setting `tenant_config`, or else what the command
    line would take in the folder of pytest's settings."""
    from .config_file import load_config

    where = str(pytestconfig.getini("tenant_config"))
    return load_config(
        where or None, origin="tenant_config in pytest's settings", folder=pytestconfig.rootpath
    )


@pytest.fixture(scope="session")
def two_tenants() -> tuple[str, str]:
    """The ids of two tenants."""
    return ("acme", "globex")


@pytest.fixture
def tenant(two_tenants: tuple[str, str]) -> str:
    """The id of a tenant."""
    return two_tenants[0]


@pytest.fixture(scope="session")
def fill_template(two_tenants: tuple[str, str]) -> Callable[[TenantManager], None]:
    """What all tests begin with: here, the two tenants, without rows. An override may fill the shared
    tables, or give tenants their first rows; it creates the tenants itself."""

    def fill(tenants: TenantManager) -> None:
        for tenant in two_tenants:
            tenants.create_tenant(tenant)

    return fill


@pytest.fixture(scope="session")
def tenant_databases(
    request: pytest.FixtureRequest,
    tenant_config: TenantConfig,
    fill_template: Callable[[TenantManager], None],
) -> Iterator[TestDatabases]:
    """Makes databases for tests: each is a copy of a template, which is made once."""
    from .testing.databases import TestDatabases

    # pytest-xdist tells its workers which run they belong to.
    run = str(getattr(request.config, "workerinput", {}).get("testrunuid", secrets.token_hex(8)))[:16]
    with _server(run) as url:
        databases = TestDatabases(tenant_config, url, run=run)
        with databases.template(fill_template):
            yield databases


@contextmanager
def _server(run: str) -> Iterator[str]:
    """The URL of a server for this run."""
    if url := os.environ.get(SERVER):
        yield url
        return
    from . import devserver

    # Not below pytest's own folders: those are closed to the user that PostgreSQL runs as under root.
    folder = Path(tempfile.gettempdir()) / f"{_FOLDER}{run}"
    _sweep(but=folder)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)
    try:
        with devserver.start(folder, settings=_SETTINGS) as server:
            yield server.url()
    finally:
        if devserver.find(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(but: Path) -> None:
    """End the servers of runs that were killed, and remove their data. A server that has a user goes on."""
    from . import devserver

    for folder in but.parent.glob(f"{_FOLDER}*"):
        with suppress(OSError, devserver.DevServerError):
            # Under root, the folder is the server's user's.
            if folder == but or folder.is_symlink() or os.getuid() not in (0, folder.stat().st_uid):
                continue
            if devserver.find(folder) is not None:
                devserver.start(folder).release()
            elif time.time() - folder.stat().st_mtime < _YOUNG_S:
                continue  # its server is about to be started
            if devserver.find(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tenant_database(tenant_databases: TestDatabases) -> Iterator[TenantConfig]:
    """The configuration, for a database of the test's own: with a schema shared by all, and two tenants."""
    with tenant_databases.database() as config:
        yield config


@pytest.fixture
def tenants(tenant_database: TenantConfig) -> Iterator[TenantManager]:
    """A manager of the test's own database: what is committed there is gone after the test."""
    from .manager import TenantManager

    with TenantManager(tenant_database) as manager:
        yield manager


@pytest.fixture(scope="session")
def _rolled_back(tenant_databases: TestDatabases) -> Iterator[TenantManager]:
    from .manager import TenantManager

    with tenant_databases.database() as config, TenantManager(config) as manager:
        yield manager


@pytest.fixture
def tenant_session(_rolled_back: TenantManager, tenant: str) -> Iterator[Session]:
    """A session of the tenant's, in a database that all such tests have in common: it is rolled back after
    the test, also what was committed in it
    (https://docs.sqlalchemy.org/en/21/orm/session_transaction.html#joining-a-session-into-an-external-transaction-such-as-for-test-suites)."""
    from sqlalchemy.orm import Session

    with _rolled_back.get_db(tenant).connect() as connection, connection.begin() as transaction:
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()
