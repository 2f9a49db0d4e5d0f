"""Requests per second of real servers, asked by wrk: the middleware with its dependency, against the same
endpoint with a plain session."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

from sqlalchemy import URL

from sqlalchemy_multitenant import TenantManager

from .database import ROWS, Base, User, make_config, own_database
from .report import Report, compare
from .rounds import Samples

TENANTS, ROUNDS, CLIENTS = 50, 12, 16
AIM = "aim: at least 0.85 of plain"
STACKS = ("fastapi async", "fastapi sync", "flask")

_SCRIPT = f"""
local random = math.random
request = function()
  local headers = {{["X-Tenant-ID"] = "t" .. random(0, {TENANTS - 1})}}
  return wrk.format("GET", "/users/" .. random(1, {ROWS}), headers)
end
"""


def run(server: URL, folder: Path, rounds: int | None, say: Callable[[str], object]) -> Iterator[Report]:
    """Ask an endpoint that reads one row, of one of 50 tenants at random; a second at a time."""
    if shutil.which("wrk") is None:
        say("wrk is not installed (apt-get install wrk): web is left out")
        return
    script = folder / "ask.lua"
    script.write_text(_SCRIPT, encoding="utf-8")
    with own_database(server) as url:
        config = make_config(url, folder / "web", Base)
        names = [f"t{number}" for number in range(TENANTS)]
        with TenantManager(config) as manager:
            manager.create_tenants(names)
            for name in names:
                with manager.get_db(name).begin() as session:
                    session.add_all(User(id=n, name="x", email="x", age=n) for n in range(1, ROWS + 1))
        for stack in STACKS:
            say(f"asking {stack} ...")
            variants = (f"{stack} ours", f"{stack} plain")
            with ExitStack() as servers:
                ports = {v: servers.enter_context(_serving(v, url, folder / "web")) for v in variants}
                samples = _ask(ports, script, rounds or ROUNDS)
            yield compare(f"requests, {stack}", "request", samples, [variants[1]], note=AIM)


def _ask(ports: dict[str, int], script: Path, rounds: int) -> Samples:
    """Turn and turn about. The first round is not counted."""
    random, samples = Random(0), Samples({name: [] for name in ports})
    for number in range(rounds + 1):
        for name in random.sample(list(ports), len(ports)):
            rate = _wrk(ports[name], script)
            if number:
                samples.seconds[name].append(1 / rate)
    return samples


def _wrk(port: int, script: Path) -> float:
    """Requests per second."""
    command = ["wrk", "-t1", f"-c{CLIENTS}", "-d1s", "-s", str(script), f"http://127.0.0.1:{port}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in out, out
    assert "Socket errors" not in out, out
    found = re.search(r"Requests/sec:\s*([\d.]+)", out)
    assert found is not None, out
    return float(found[1])


@contextmanager
def _serving(app: str, url: URL, folder: Path) -> Iterator[int]:
    """A server process with one of the applications; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    if app.startswith("flask"):
        options = [
            "gunicorn",
            "--bind",
            f"127.0.0.1:{port}",
            "--threads",
            str(CLIENTS),
            "--log-level",
            "error",
        ]
    else:
        options = ["uvicorn", "--port", str(port), "--log-level", "error", "--no-access-log"]
    environment = {
        **os.environ,
        "BENCH_APP": app,
        "BENCH_DATABASE": url.render_as_string(hide_password=False),
        "BENCH_FOLDER": str(folder),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", *options, "benchmarks.web_apps:app"],
        cwd=Path(__file__).parents[1],
        env=environment,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, app
            assert time.monotonic() < deadline, app
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)
