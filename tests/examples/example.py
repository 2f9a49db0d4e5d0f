"""Runs an example as its README says, and lets a crowd of clients at it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import URL, Engine, create_engine, text

from tests.command import COMMAND, unmeasured
from tests.proxies import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"
TENANTS = [f"tenant-{number}" for number in range(10)]
CLIENTS = 50
ROUNDS = 4
_POOL = 10
"""Of each example's configuration: the most connections its server may hold."""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients: without it each of them reads all certificates, which takes longer than many requests."""

Headers = Mapping[str, str]


def by_header(tenant: str) -> Headers:
    """How a client says who it is, where a header does it."""
    return {"X-Tenant-ID": tenant}


@dataclass
class Example:
    """An example in a folder and a database of its own.

    Attributes:
        folder: a copy of it.
        url: of its database.
        processes: what was started, to be stopped.
    """

    folder: Path
    url: URL
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    port: int = field(default_factory=free_port)

    @classmethod
    def copy(cls, name: str, to: Path, url: URL) -> Example:
        """A copy of the example of this name."""
        folder = to / name
        shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        return cls(folder, url)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        url = self.url.render_as_string(hide_password=False)
        # Gunicorn's socket for operators is in the user's home, the same one for all.
        gunicorn = "--no-control-socket"
        return unmeasured(
            {**os.environ, "DATABASE_URL": url, "PORT": str(self.port), "GUNICORN_CMD_ARGS": gunicorn}
        )

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(encoding="utf-8")

    def start(self, *command: str) -> None:
        """Start the server; by default with the README's command."""
        with (self.folder / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *(command or ("start.py",))],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        deadline = time.monotonic() + 30
        while not self._is_up():
            assert process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.address}/health", timeout=2, verify=NO_TLS).status_code == 200
        except httpx.TransportError:
            return False

    def run(self, *arguments: str) -> str:
        """Run the command `multitenant` in the example's folder."""
        done = subprocess.run(
            [COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def create_tenants(self) -> None:
        """Ten tenants."""
        ids = self.folder / "ids.txt"
        ids.write_text("\n".join(TENANTS), encoding="utf-8")
        self.run("tenant", "create", "--ids-file", str(ids))

    def engine(self) -> Engine:
        return create_engine(self.url)

    def stop(self) -> None:
        """Ask all that was started to end, as an operator does; it must not take long."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
                raise
        self.processes.clear()

    def connections(self) -> dict[str, int]:
        """How many there are to its database, by their state."""
        engine = self.engine()
        with engine.connect() as connection:
            found = connection.execute(
                text(
                    "SELECT coalesce(state, 'none'), count(*) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                    "AND backend_type = 'client backend' GROUP BY 1"
                )
            )
            counts = {str(state): int(count) for state, count in found}
        engine.dispose()
        return counts

    def check_connections(self, allowed: int = _POOL) -> None:
        """None is in use any more, and there are no more than the pool may hold."""
        deadline = time.monotonic() + 10
        while set(counts := self.connections()) - {"idle"}:
            assert time.monotonic() < deadline, counts
            time.sleep(0.05)
        assert sum(counts.values()) <= allowed, counts


def fill(example: Example, table: str = "users", column: str = "name", **others: object) -> None:
    """Give each tenant so many long rows that an export is on its way for a while; `others` are values of
    further columns, as SQL."""
    columns, values = ", ".join([column, *others]), "".join(f", {value}" for value in others.values())
    engine = example.engine()
    with engine.begin() as connection:
        for tenant in TENANTS:
            connection.exec_driver_sql(
                f'INSERT INTO "tenant_{tenant}".{table} ({columns}) '
                f"SELECT '{tenant}/' || n || repeat('x', 1000){values} FROM generate_series(1, 3000) n"
            )
    engine.dispose()


def client_at(address: str, headers: Headers) -> httpx.AsyncClient:
    # Gunicorn hangs up after two idle seconds; a request that is just on its way then has no answer.
    limits = httpx.Limits(keepalive_expiry=1)
    return httpx.AsyncClient(base_url=address, headers=headers, timeout=30, verify=NO_TLS, limits=limits)


async def crowd(
    address: str,
    headers: Callable[[str], Headers] = by_header,
    *,
    things: str = "users",
    column: str = "name",
    export: str | None = "/export",
) -> None:
    """Fifty clients of ten tenants, at one time, each on a connection of its own: they write and read, and
    ten of them begin downloads, which they break off.

    Each name begins with its tenant's id: whoever finds another one has found another tenant's.
    """

    async def client_of(number: int, tenant: str) -> None:
        async with client_at(address, headers(tenant)) as client:
            for turn in range(ROUNDS):
                name = f"{tenant}/{number}-{turn}"
                added = await client.post(f"/{things}", json={column: name})
                assert added.status_code == 201, added.text
                found = await client.get(f"/{things}")
                assert found.status_code == 200, found.text
                names = [thing if isinstance(thing, str) else thing[column] for thing in found.json()]
                assert all(other.startswith(f"{tenant}/") for other in names), (tenant, names)
                nobody = await client.get("/health")
                assert nobody.json()["tenant"] is None
                if export is not None and number % 5 == 0:
                    await download(client, export, tenant, whole=number == 0 and turn == 0)

    async with asyncio.TaskGroup() as tasks:
        for number in range(CLIENTS):
            tasks.create_task(client_of(number, TENANTS[number % len(TENANTS)]))


async def download(client: httpx.AsyncClient, path: str, tenant: str, *, whole: bool) -> None:
    """Begin a download, and hang up in the middle of it unless the `whole` is wanted."""
    async with client.stream("GET", path) as answer:
        assert answer.status_code == 200
        lines = 0
        async for line in answer.aiter_lines():
            assert line.startswith(f"{tenant}/")
            lines += 1
            if lines == 20 and not whole:
                return
    assert lines >= 3000
