"""`multitenant demo`: shows what it says, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import URL, Engine, create_engine, text

from sqlalchemy_multitenant import ConfigurationError, TenantExistsError
from sqlalchemy_multitenant.demo import MARK, run_demo
from tests.command import unmeasured

COMMAND = [str(Path(sys.executable).with_name("multitenant")), "demo"]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def database(empty_url: URL) -> Iterator[Engine]:
    engine = create_engine(empty_url)
    yield engine
    engine.dispose()


@pytest.fixture
def start(empty_url: URL, tmp_path: Path) -> Iterator[Start]:
    """Starts a demo on the test's database; its temporary folder is made in the test's own."""
    started: list[subprocess.Popen[str]] = []

    def begin(*, measured: bool = False, **environment: str) -> subprocess.Popen[str]:
        url = empty_url.render_as_string(hide_password=False)
        env = {**os.environ, "DATABASE_URL": url, "TMPDIR": str(tmp_path), **environment}
        if not measured:
            env = unmeasured(env)
        process = subprocess.Popen(
            COMMAND, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def schemas(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.scalars(text("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'")))


def read_until(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdout is not None
    assert any(what in line for line in process.stdout), f"the demo never said {what!r}"


def test_it_shows_everything_and_leaves_nothing(start: Start, database: Engine, tmp_path: Path) -> None:
    before = schemas(database)
    process = start(measured=True, PYTHONWARNINGS="error")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert not errors
    for shown in (
        "0001_first.py",
        "created acme, globex and 18 more",
        "20 tenants are behind",
        "20/20",
        "20 migrated, 0 up to date, 0 failed",
        "500 right, 0 wrong",
        "NoTenantError",
        "TenantNotFoundError",
        "InvalidTenantIdError",
        "TenantSuspendedError",
        "demo_globex",
        "multitenant init",
        "multitenant tenant create --id acme",
    ):
        assert shown in output
    assert any("1  Ada" in line and "1  Grace" in line for line in output.splitlines())
    assert schemas(database) == before
    assert not list(tmp_path.iterdir())


def test_it_can_be_read_without_unicode(start: Start) -> None:
    process = start(PYTHONIOENCODING="ascii")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.isascii()


@pytest.mark.parametrize("moment", ["PostgreSQL", "Twenty tenants", "add-orders", "What is refused"])
def test_ctrl_c_leaves_nothing(start: Start, database: Engine, tmp_path: Path, moment: str) -> None:
    before = schemas(database)
    process = start(PYTHONUNBUFFERED="1")
    read_until(process, moment.replace("-", "_"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert schemas(database) == before
    assert not list(tmp_path.iterdir())


def test_it_cleans_up_after_one_that_was_killed(start: Start, database: Engine) -> None:
    before = schemas(database)
    process = start(PYTHONUNBUFFERED="1")
    read_until(process, "20 migrated")
    process.kill()
    process.wait()
    assert len(schemas(database) - before) == 21
    process = start()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert schemas(database) == before


def test_two_at_once_take_turns(start: Start, database: Engine) -> None:
    before = schemas(database)
    first, second = start(), start()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert all("500 right, 0 wrong" in output for output in outputs)
    assert schemas(database) == before


@pytest.mark.parametrize(
    ("schema", "error"), [("multitenant_demo", ConfigurationError), ("demo_acme", TenantExistsError)]
)
def test_it_never_drops_what_is_not_its_own(
    schema: str,
    error: type[Exception],
    database: Engine,
    empty_url: URL,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with database.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
        connection.execute(text(f"CREATE TABLE {schema}.precious ()"))
    before = schemas(database)
    monkeypatch.setenv("DATABASE_URL", empty_url.render_as_string(hide_password=False))
    with pytest.raises(error, match=schema):
        run_demo(Console())
    assert schemas(database) == before
    with database.connect() as connection:
        assert connection.scalar(text(f"SELECT to_regclass('{schema}.precious')")) is not None


def test_its_mark_can_be_written_into_sql() -> None:
    assert "'" not in MARK
