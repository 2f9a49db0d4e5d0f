"""The example without a framework."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from tests.examples.example import EXAMPLES, TENANTS, Example

CROWD = """
from concurrent.futures import ThreadPoolExecutor
import sys

from shop import add_user, context, tenants, users


def work(number):
    tenant = sys.argv[1 + number % 10]
    for turn in range(5):
        with context.use_tenant(tenant):
            add_user(f"{tenant}/{number}-{turn}")
            found = users()
        assert context.get_tenant_or_none() is None
        assert f"{tenant}/{number}-{turn}" in [name for name, _ in found]
        assert all(name.startswith(f"{tenant}/") for name, _ in found), (tenant, found)


with tenants, ThreadPoolExecutor(50) as threads:
    list(threads.map(work, range(50)))
    assert tenants.metrics()["multitenant_pool_connections_active"] == 0
"""


def run(example: Example, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(
        command, cwd=example.folder, env=example.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_the_readme(example: Callable[[str], Example]) -> None:
    shop = example("standalone")
    page = (EXAMPLES / "standalone" / "README.md").read_text(encoding="utf-8")
    assert run(shop, "start.py").strip() == "\n".join(
        line.strip()
        for line in page.partition("It prints\n")[2].partition("\nand each")[0].strip().splitlines()
    )
    assert "counts: {'acme': 4, 'globex': 2}" in run(shop, "start.py")
    shop.run("tenant", "create", "--id", "initech")
    assert "initech" in shop.run("query", "--all", "SELECT count(*) FROM users")


def test_a_crowd_of_threads(example: Callable[[str], Example]) -> None:
    shop = example("standalone")
    run(shop, "start.py")
    shop.create_tenants()
    run(shop, "-c", CROWD, *TENANTS)
    assert shop.connections() == {}
