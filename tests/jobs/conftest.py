"""A real broker, and real workers."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, create_engine

from tests.command import unmeasured
from tests.proxies import free_port

ROOT = Path(__file__).parents[2]


def wait_for(condition: Callable[[], object], what: str, process: subprocess.Popen[bytes]) -> None:
    """Until `condition()` is true, for 30 seconds at most."""
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, f"{what}: the process has ended"
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started here, and those it has started."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a broker of the module's own."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    port = free_port()
    process = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        cwd=tmp_path_factory.mktemp("redis"),
        stdout=subprocess.DEVNULL,
    )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(answers, "redis-server does not answer", process)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        stop(process)


@pytest.fixture(scope="module")
def shop_url(admin: Engine, server_url: URL, template: str) -> Iterator[URL]:
    """A database of the module's own, with a user in each of the tenants `a` and `b`."""
    name = f"shop_{secrets.token_hex(6)}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
    url = server_url.set(database=name)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO tenant_a.users (name, mood) VALUES ('ada', 'HAPPY')")
        connection.exec_driver_sql("INSERT INTO tenant_b.users (name, mood) VALUES ('bob', 'GRUMPY')")
    engine.dispose()
    yield url
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def celery(*arguments: str, url: URL, redis: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a command of Celery's on the application in celery_app.py."""
    shop = {"SHOP_DATABASE": url.render_as_string(hide_password=False), "SHOP_REDIS": redis}
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.jobs.celery_app", *arguments],
            cwd=ROOT,
            env=unmeasured({**os.environ, **shop, **environment}),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
