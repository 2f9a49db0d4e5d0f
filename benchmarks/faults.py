"""Faults, a bounded number of each: killed processes, rivals, terminated backends, and traffic
on the table that is migrated. Prints what was seen, and fails where anything is lost or done twice.

`python -m benchmarks.faults [--tenants N] [--kills N]`
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from rich.console import Console
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_multitenant import TenantConfig, TenantManager

from .database import make_config, own_database, server_url
from .history import Base

COMMAND = Path(sys.executable).with_name("multitenant")
SETTINGS = """
from pathlib import Path
from sqlalchemy import MetaData
from sqlalchemy_multitenant import Connection, Migrations, Schemas, TenantConfig

here = Path(__file__).parent
config = TenantConfig(
    schemas=Schemas(tenant=MetaData()),
    migrations=Migrations(tenant_dir=here / "tenant", lock_timeout_s={lock_timeout_s}),
)
"""
REVISION = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = {revision!r}, {before!r}


def upgrade():
    {body}
"""
FIRST = "op.execute('CREATE TABLE items (id serial PRIMARY KEY, name text)')"
STEP = """op.execute(
        "ALTER TABLE items ADD COLUMN c{number} int; SELECT pg_sleep(0.01); "
        "INSERT INTO items (name) VALUES ('{number}')"
    )"""
LOCK_TIMEOUT_S, LOADED_S = 1.0, 6.0


class Fleet:
    """A project folder, a database, and tenants at its first revision."""

    def __init__(self, url: URL, folder: Path, tenants: int) -> None:
        self.url, self.folder = url, folder
        self.engine = create_engine(url, isolation_level="AUTOCOMMIT")
        self.steps = 0
        (folder / "tenant/versions").mkdir(parents=True)
        (folder / "tenant/script.py.mako").write_text("")
        (folder / "tenant_config.py").write_text(SETTINGS.format(lock_timeout_s=LOCK_TIMEOUT_S))
        self._write("0000", None, FIRST)
        self.names = [f"t{number}" for number in range(tenants)]
        self.config: TenantConfig = make_config(url, folder, Base, pool_size=4)
        with TenantManager(self.config) as manager:
            assert len(manager.create_tenants(self.names).created) == tenants

    def _write(self, revision: str, before: str | None, body: str) -> None:
        content = REVISION.format(revision=revision, before=before, body=body)
        (self.folder / f"tenant/versions/{revision}_.py").write_text(content)

    def add_step(self, body: str = STEP) -> None:
        """One more revision: it changes a table, and inserts one row."""
        self.steps += 1
        self._write(f"{self.steps:04d}", f"{self.steps - 1:04d}", body.format(number=self.steps))

    def start(self) -> subprocess.Popen[bytes]:
        """Begin `multitenant migrate --all`."""
        environment = {**os.environ, "DATABASE_URL": self.url.render_as_string(hide_password=False)}
        return subprocess.Popen(
            [COMMAND, "migrate", "--all", "--concurrency", "4"],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def check(self, what: str) -> None:
        """Every tenant is at the newest revision, and has each row once."""
        expected = [str(number) for number in range(1, self.steps + 1)]
        with self.engine.connect() as connection:
            for name in self.names:
                at = connection.scalars(text(f"SELECT version_num FROM tenant_{name}.alembic_version")).all()
                rows = connection.scalars(text(f"SELECT name FROM tenant_{name}.items ORDER BY id")).all()
                assert list(at) == [f"{self.steps:04d}"], (what, name, at)
                assert sorted(rows, key=int) == expected, (what, name, rows)


def kill(fleet: Fleet, kills: int, random: Random) -> str:
    """Kill a run at a random moment, and run it again."""
    for _ in range(kills):
        fleet.add_step()
        process = fleet.start()
        time.sleep(random.uniform(0.5, 1.6))
        process.kill()
        process.wait()
        assert fleet.start().wait(120) == 0
        fleet.check("killed")
    return f"killed {kills} times, run again each time: all at the newest revision, nothing done twice"


def rival(fleet: Fleet, rivals: int) -> str:
    """Start several at once."""
    fleet.add_step()
    started = time.perf_counter()
    codes = [process.wait(120) for process in [fleet.start() for _ in range(rivals)]]
    assert codes == [0] * rivals, codes
    fleet.check("rivals")
    return f"{rivals} at once: all well in {time.perf_counter() - started:.1f} s"


def terminate(fleet: Fleet, random: Random) -> str:
    """Terminate its backends at random, and run it again where that was needed."""
    fleet.add_step()
    process = fleet.start()
    ended = 0
    with fleet.engine.connect() as connection:
        while process.poll() is None:
            time.sleep(random.uniform(0.02, 0.1))
            victims = connection.scalars(
                text(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
                    "AND pid <> pg_backend_pid() AND application_name LIKE 'multitenant%'"
                )
            ).all()
            if victims and ended < 20:
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": random.choice(victims)})
                ended += 1
    code = process.wait()
    again = 0
    if code:
        again = 1
        assert fleet.start().wait(120) == 0
    fleet.check("terminated")
    return f"{ended} backends terminated, run again {again} times: all well"


def load(fleet: Fleet) -> str:
    """Write to one tenant all the while, with some long transactions, and alter that table."""
    fleet.add_step()
    name, stop, waits = fleet.names[0], threading.Event(), [0.0]
    lock = threading.Lock()

    def write(engine: Engine, hold_s: float) -> None:
        while not stop.is_set():
            started = time.perf_counter()
            try:
                with engine.begin() as connection:
                    connection.execute(text(f"UPDATE tenant_{name}.items SET name = name"))
                    with lock:
                        waits.append(time.perf_counter() - started)
                    time.sleep(hold_s)
            except DBAPIError:  # not expected: it would be counted as a wait without end
                with lock:
                    waits.append(float("inf"))

    engine = create_engine(fleet.url, pool_size=4)
    threads = [
        threading.Thread(target=write, args=(engine, 0.0)),
        threading.Thread(target=_hold, args=(engine, name, stop)),
    ]
    for thread in threads:
        thread.start()
    process = fleet.start()
    time.sleep(LOADED_S)
    stop.set()
    for thread in threads:
        thread.join()
    engine.dispose()
    process.wait(120)
    fleet_codes = process.returncode or fleet.start().wait(120)
    assert fleet_codes in (0, 1)
    fleet.check("loaded")
    longest = max(waits)
    assert longest <= LOCK_TIMEOUT_S + 0.5, longest
    return f"{len(waits)} writes, none waited longer than {longest:.2f} s (lock_timeout {LOCK_TIMEOUT_S} s)"


def _hold(engine: Engine, name: str, stop: threading.Event) -> None:
    """Long transactions that read: an ALTER waits for them, and whoever comes after it waits, too."""
    while not stop.is_set():
        with engine.begin() as connection:
            connection.execute(text(f"SELECT count(*) FROM tenant_{name}.items"))
            stop.wait(2.5)
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--tenants", type=int, default=60)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    random, console = Random(1), Console()
    with server_url() as server, tempfile.TemporaryDirectory() as folder, own_database(server) as url:
        fleet = Fleet(url, Path(folder), options.tenants)
        cases: list[Callable[[], str]] = [
            lambda: kill(fleet, options.kills, random),
            lambda: rival(fleet, 2),
            lambda: rival(fleet, 4),
            lambda: terminate(fleet, random),
            lambda: load(fleet),
        ]
        for case in cases:
            console.print(case())
        fleet.engine.dispose()


if __name__ == "__main__":
    main()
