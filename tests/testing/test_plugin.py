"""The fixtures, in a run of pytest of its own, as a project has it."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text

from sqlalchemy_multitenant import devserver
from tests.command import call, unmeasured

TESTS = """
import pytest
from models import Plan, User
from sqlalchemy import select, text
from sqlalchemy.orm import Session
from sqlalchemy_multitenant import TenantConfig, TenantManager, TenantNotFoundError
from sqlalchemy_multitenant.testing import assert_isolated

NAMES = select(User.name).order_by(User.id)


@pytest.mark.parametrize("turn", range(2))
def test_a_database_of_its_own(tenants: TenantManager, two_tenants: tuple[str, str], turn: int) -> None:
    a, b = two_tenants
    with tenants.get_db(a).begin() as session:
        session.add(User(name="Ada"))
    assert list(tenants.get_db(a).scalars(NAMES)) == ["Ada"]
    assert list(tenants.get_db(b).scalars(NAMES)) == []
    tenants.create_tenant("third")
    with tenants.get_shared_db().begin() as session:
        session.add(Plan(name="team"))


@pytest.mark.parametrize("turn", range(2))
def test_rolled_back(tenant_session: Session, tenant: str, turn: int) -> None:
    assert tenant == "acme"
    assert list(tenant_session.scalars(NAMES)) == []
    tenant_session.add(User(name="Ada"))
    tenant_session.commit()
    tenant_session.add(User(name="Grace"))
    tenant_session.rollback()
    assert list(tenant_session.scalars(NAMES)) == ["Ada"]
    assert tenant_session.scalar(text("SELECT current_schema()")) == "tenant_acme"


def test_the_configuration(tenant_database: TenantConfig) -> None:
    with TenantManager(tenant_database) as tenants:
        assert [t.id for t in tenants.list_tenants()] == ["acme", "globex"]


def test_isolated(tenants: TenantManager) -> None:
    def write(db, word):
        with db.begin() as session:
            session.add(User(name=word))

    assert_isolated(
        tenants.get_db("acme"), tenants.get_db("globex"), write=write, read=lambda db: list(db.scalars(NAMES))
    )
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def project(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, server_url: URL, empty_url: URL
) -> Path:
    """A project as `multitenant init` makes it, with its first revisions; its own server is not there."""
    monkeypatch.setenv("MULTITENANT_TEST_DATABASE_URL", server_url.render_as_string(hide_password=False))
    environment = unmeasured() | {"DATABASE_URL": empty_url.render_as_string(hide_password=False)}
    for arguments in (("init",), ("generate", "--name", "first")):
        assert call(arguments, pytester.path, environment).code == 0
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    pytester.makepyfile(test_shop=TESTS)
    return pytester.path


@pytest.fixture
def run(pytester: pytest.Pytester, project: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    # Of the plugins that are installed here ours alone, which spares seconds.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    plugins = ("-p", "sqlalchemy_multitenant.pytest_plugin", "-p", "xdist.plugin")

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess(*plugins, *arguments, timeout=60)

    return run


def databases(url: URL) -> set[str]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = set(
            connection.scalars(text("SELECT datname FROM pg_database WHERE datname ~ '^multitenant_'"))
        )
    engine.dispose()
    return found


def test_the_fixtures(run: Run, server_url: URL) -> None:
    before = databases(server_url)
    run().assert_outcomes(passed=6)
    assert databases(server_url) <= before


def test_workers_share_a_template(run: Run, server_url: URL) -> None:
    before = databases(server_url)
    result = run("-n", "2")
    result.assert_outcomes(passed=6)
    assert databases(server_url) <= before


def test_an_embedded_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTITENANT_TEST_DATABASE_URL")
    run("-k", "rolled_back").assert_outcomes(passed=2, deselected=4)


def test_what_a_killed_run_left_is_cleared(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTITENANT_TEST_DATABASE_URL")
    with tempfile.TemporaryDirectory(prefix="mt") as name:
        folder = Path(name)
        folder.chmod(0o711)
        monkeypatch.setenv("TMPDIR", name)
        (project / "test_killed.py").write_text(
            "import os, signal\ndef test_killed(tenants):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        assert run("test_killed.py").ret == -signal.SIGKILL
        (left,) = folder.glob("multitenant-test-*")
        assert devserver.find(left) is not None
        with devserver.start(folder / "multitenant-test-used") as used:
            run("-k", "rolled_back").assert_outcomes(passed=2, deselected=5)
            assert list(folder.glob("multitenant-test-*")) == [used.data_dir]
            used.create_database("goes_on")


def test_models_without_revisions(run: Run, project: Path) -> None:
    shutil.rmtree(project / "migrations")
    run("-k", "own or rolled").assert_outcomes(passed=4, deselected=2)


def test_overrides(pytester: pytest.Pytester, run: Run, project: Path) -> None:
    (project / "tenant_config.py").rename(project / "settings.py")
    pytester.makeini("[pytest]\ntenant_config = settings.py")
    pytester.makeconftest(
        """
        import pytest
        from models import Plan, User

        @pytest.fixture(scope="session")
        def two_tenants():
            return ("one", "two")

        @pytest.fixture(scope="session")
        def fill_template(two_tenants):
            def fill(tenants):
                with tenants.get_shared_db().begin() as session:
                    session.add(Plan(name="team"))
                for tenant in two_tenants:
                    tenants.create_tenant(tenant, seed=lambda session: session.add(User(name="first")))

            return fill
        """
    )
    pytester.makepyfile(
        test_shop="""
        from models import Plan, User
        from sqlalchemy import select

        def test_filled(tenants, tenant_session, tenant):
            assert tenant == "one"
            assert tenants.get_db("two").scalar(select(User.name)) == "first"
            assert tenants.get_shared_db().scalar(select(Plan.name)) == "team"
            assert tenant_session.scalar(select(User.name)) == "first"
        """
    )
    run().assert_outcomes(passed=1)


def test_without_a_configuration(run: Run, project: Path) -> None:
    (project / "tenant_config.py").unlink()
    result = run("-k", "configuration")
    result.assert_outcomes(errors=1, deselected=5)
    result.stdout.fnmatch_lines(
        ["*run `multitenant init` to make one, or name it with tenant_config in pytest's*"]
    )


def temporary_folder() -> Path:
    """One that the user can reach whom PostgreSQL runs as under root, as pytest's are not."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o711)
    return place


def test_a_template_that_cannot_be_filled(
    pytester: pytest.Pytester, run: Run, server_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = databases(server_url)
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session")
        def fill_template():
            def fill(tenants):
                raise ValueError("wanted")

            return fill
        """
    )
    result = run("-k", "rolled")
    result.assert_outcomes(errors=2, deselected=4)
    assert databases(server_url) <= before

    # Nor does a server of the run's own leave its data.
    monkeypatch.delenv("MULTITENANT_TEST_DATABASE_URL")
    monkeypatch.setenv("TMPDIR", str(place := temporary_folder()))
    run("-k", "rolled").assert_outcomes(errors=2, deselected=4)
    assert list(place.glob("multitenant-test-*")) == []
    shutil.rmtree(place)


def test_it_is_there_when_installed_and_loads_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_loaded(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("multitenant")
            assert "sqlalchemy" not in sys.modules
            assert "alembic" not in sys.modules
        """
    )
    pytester.runpytest_subprocess("-p", "no:randomly").assert_outcomes(passed=1)
