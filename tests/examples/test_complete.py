"""The example with all that a service begins with."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from sqlalchemy import URL, Engine, text

from tests.command import COMMAND
from tests.conftest import Databases
from tests.examples.example import EXAMPLES, NO_TLS, ROUNDS, TENANTS, Example, Headers, client_at, crowd, fill

NAME = "fastapi-complete"
KEY = "development-only-not-for-production"
ADMIN = {"X-Admin-Token": KEY}
CONNECTIONS = 10 + 10 + 5
"""At most: of tenants, for creating them, of procrastinate and its listener."""


@pytest.fixture(scope="module")
def shop(admin: Engine, server_url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    """The example at work, for several tests, each of which has tenants of its own."""
    url = Databases(admin, server_url, []).make()
    shop = Example.copy(NAME, tmp_path_factory.mktemp("shop"), url)
    try:
        shop.start()
        yield shop
    finally:
        shop.stop()
        wait_while(shop.connections)
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {url.database} WITH (FORCE)")


@pytest.fixture
def client(shop: Example) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shop.address, timeout=30, verify=NO_TLS) as client:
        yield client
    assert "Traceback" not in shop.log, shop.log[-3000:]


def make_token(tenant: Any, *, key: str = KEY, algorithm: str = "HS256", **claims: Any) -> str:
    """A token as `sign_up` gives out to the tenant's first user; or one that is wrong."""
    expires = datetime.now(UTC) + timedelta(minutes=5)
    return jwt.encode({"tenant": tenant, "sub": f"{tenant}/@x.com", "exp": expires, **claims}, key, algorithm)


def bearer(token: str) -> Headers:
    return {"Authorization": f"Bearer {token}"}


def by_token(tenant: str) -> Headers:
    return {**bearer(make_token(tenant)), "Host": f"{tenant}.localhost"}


def sign_up(client: httpx.Client, company: str, email: str | None = None) -> httpx.Response:
    document = {"company": company, "email": email or f"{company}/@x.com", "password": "correct horse"}
    return client.post("/signup", json=document)


def at_once(times: int, work: Callable[[int], httpx.Response]) -> list[int]:
    """The statuses that so many calls at one time have, in order."""
    with ThreadPoolExecutor(times) as threads:
        return sorted(answer.status_code for answer in threads.map(work, range(times)))


def sql(shop: Example, statement: str) -> list[Any]:
    """Run a statement; the first column of what it returns."""
    engine = shop.engine()
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        found = list(result.scalars()) if result.returns_rows else []
    engine.dispose()
    return found


def wait_while(find: Callable[[], Any]) -> None:
    """Until nothing is found any more."""
    deadline = time.monotonic() + 20
    while found := find():
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def wait_for_jobs(shop: Example) -> None:
    """Until all are done; those that have succeeded are deleted."""
    wait_while(lambda: sql(shop, "SELECT status::text FROM procrastinate_jobs"))


# -- the README -----------------------------------------------------------------------------------------


@pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("bash") is None, reason="it has curl and bash"
)
def test_the_readme(example: Callable[[str], Example]) -> None:
    """Every line of it, as it is; what stands behind `#` is the answer, or its status."""
    shop = example(NAME)
    shop.start()
    page = (EXAMPLES / NAME / "README.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in page.splitlines() if line.startswith("    ")][2:]
    script = ["curl() { command curl -s -w ' %{http_code}' \"$@\"; }"]
    for line in lines:
        if "/events " in line:
            script.append("sleep 1")  # a job takes a moment
        script += [line.replace("localhost:8000", f"localhost:{shop.port}"), "echo; echo ----"]
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(script)],
        cwd=shop.folder,
        env={**shop.environment, "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = [answer.strip() for answer in done.stdout.split("----\n")][:-1]
    for line, answer in zip(lines, answers, strict=True):
        _, _, expected = line.partition("  # ")
        body, _, status = answer.rpartition(" ")
        if expected[:3].isdigit():
            assert status == expected[:3], (line, answer)
        elif expected:
            assert (body.strip(), status) == (expected, "200"), line
        elif line.startswith("curl"):
            assert status in ("200", "201", "204"), (line, answer)
    told = "\n".join(answers)
    assert '{"data":{"projects":[{"title":"Anvil","owner":"ada@acme.com"}],"events":["Anvil was ' in told
    assert "1 row of 1 tenant" in told
    assert "[acme] uvicorn.access" in shop.log
    assert "Traceback" not in shop.log

    # It ends while somebody is in the middle of a long download, and does not read on.
    sql(
        shop,
        "INSERT INTO tenant_acme.projects (title, owner_id) "
        "SELECT n || repeat('x', 1000), 1 FROM generate_series(1, 20000) n",
    )
    token = make_token("acme", sub="ada@acme.com")
    with httpx.stream("GET", f"{shop.address}/export", headers=bearer(token), verify=NO_TLS) as download:
        assert download.status_code == 200
        started = time.monotonic()
        shop.stop()
        assert time.monotonic() - started < 10
    assert "Finished server process" in shop.log
    wait_while(shop.connections)


# -- signing up and logging in --------------------------------------------------------------------------


def test_signing_up(shop: Example, client: httpx.Client) -> None:
    """Of what fails nothing is left: the name and the address are free."""
    before = sql(shop, "SELECT id FROM multitenant_tenants")
    assert at_once(4, lambda number: sign_up(client, "stark", f"{number}@stark.com")) == [201, 409, 409, 409]
    assert at_once(4, lambda number: sign_up(client, f"c{number}", "bob@x.com")) == [201, 409, 409, 409]
    tenants = sql(shop, "SELECT id FROM multitenant_tenants")
    made = set(tenants) - set(before)
    assert len(made) == 2
    assert made <= set(sql(shop, "SELECT tenant FROM accounts")) <= set(tenants)
    schemas = sql(shop, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'tenant%'")
    assert sorted(schemas) == sorted(f"tenant_{tenant}" for tenant in tenants)
    (again, *_) = {"c0", "c1"} - made
    assert sign_up(client, again, "Eve@x.com").status_code == 201
    for company in ("", "Acme", "a;b", "-a", "a-", "a.b", "a" * 33, "a\n"):
        assert sign_up(client, company, "bob@x.com").status_code == 422, company
    for email in (" ", "bob", "bob@", "b\0b@x.com", "b b@x.com", "b@b@x.com"):
        assert sign_up(client, "fresh", email).status_code == 422, email


def test_logging_in(shop: Example, client: httpx.Client) -> None:
    def log_in(email: str, password: str) -> httpx.Response:
        return client.post("/login", json={"email": email, "password": password})

    first = sign_up(client, "hooli", "Ada@hooli.com").json()["token"]
    assert client.get("/me", headers=bearer(first)).json() == {"tenant": "hooli", "email": "ada@hooli.com"}
    again = log_in("ADA@hooli.com", "correct horse").json()["token"]
    assert client.get("/projects", headers=bearer(again)).json() == []
    for email, password in [
        ("ada@hooli.com", "battery staple"),
        ("eve@hooli.com", "correct horse"),
        ("x@y", ""),
    ]:
        refused = log_in(email, password)
        assert (refused.status_code, refused.json()) == (401, {"detail": "wrong address or password"})
    (stored,) = sql(shop, "SELECT password_hash FROM accounts WHERE tenant = 'hooli'")
    assert "correct" not in stored
    sql(shop, "DELETE FROM tenant_hooli.users")
    # Who has been removed has no access any more, whatever the token says.
    assert client.get("/projects", headers=bearer(again)).status_code == 401


def test_tokens(client: httpx.Client) -> None:
    for company in ("duff", "wonka"):
        sign_up(client, company)
    duff = by_token("duff")
    assert client.get("/projects", headers=duff).json() == []
    assert client.get("/projects", headers={**duff, "Host": "wonka.localhost"}).status_code == 403
    assert client.get("/projects", headers={**duff, "Host": "www.localhost"}).status_code == 200
    # The host's name alone opens no door.
    assert client.get("/projects", headers={"Host": "duff.localhost"}).status_code == 401
    for token in (
        "x.y.z",
        make_token("duff", key="another key of at least 32 characters"),
        make_token("duff", key=KEY * 2, algorithm="HS512"),
        make_token("duff", key="", algorithm="none"),
        make_token("duff", exp=datetime.now(UTC) - timedelta(seconds=5)),
        make_token(None),
        make_token(["duff"]),
        make_token("duff", sub="wonka/@x.com"),
        make_token("duff", sub=None),
    ):
        for path in ("/projects", "/export", "/nothing"):
            assert client.get(path, headers=bearer(token)).status_code == 401, token
        query = {"query": "{ events }"}
        assert client.post("/graphql", json=query, headers=bearer(token)).status_code == 401, token
    assert client.get("/projects", headers=bearer(make_token("nobody"))).status_code == 404


def test_suspended_tenants(client: httpx.Client) -> None:
    sign_up(client, "enron")
    enron = by_token("enron")
    for wrong in (httpx.Headers([(b"X-Admin-Token", b"\xe9")]), {"X-Admin-Token": ""}, enron):
        assert client.get("/admin/tenants", headers=wrong).status_code == 401
        assert client.post("/admin/tenants/enron/suspend", headers=wrong).status_code == 401
    assert client.get("/projects", headers=enron).json() == []
    assert client.post("/admin/tenants/nobody/suspend", headers=ADMIN).status_code == 404
    assert client.post("/admin/tenants/enron/suspend", headers=ADMIN).status_code == 204
    for path in ("/me", "/projects", "/events", "/export"):
        assert client.get(path, headers=enron).status_code == 403
    assert client.post("/projects", json={"title": "x"}, headers=enron).status_code == 403
    assert client.post("/graphql", json={"query": "{ events }"}, headers=enron).status_code == 403
    assert {"id": "enron", "status": "suspended"} in client.get("/admin/tenants", headers=ADMIN).json()
    assert "enron" not in client.get("/admin/projects", headers=ADMIN).json()
    assert client.post("/admin/tenants/enron/activate", headers=ADMIN).status_code == 204
    assert client.get("/projects", headers=enron).json() == []


# -- plans and jobs -------------------------------------------------------------------------------------


def test_a_plans_limit_and_jobs_that_never_were(shop: Example, client: httpx.Client) -> None:
    for company in ("acme", "globex"):
        sign_up(client, company)
    acme, globex = by_token("acme"), by_token("globex")

    def add(title: str, headers: Headers = acme) -> httpx.Response:
        return client.post("/projects", json={"title": title}, headers=headers)

    def count_jobs() -> int:
        (number,) = sql(
            shop, "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM procrastinate_jobs_id_seq"
        )
        return int(number)

    # Of one title there is one project. The others' jobs were enqueued, and went with their transactions.
    before = count_jobs()
    assert at_once(10, lambda _: add("Anvil")) == [201, *[409] * 9]
    assert count_jobs() == before + 10
    assert at_once(20, lambda number: add(f"Rocket {number}")) == [201, 201, *[402] * 18]
    assert add("Anvil", globex).status_code == 201
    for title in ("", "a\0b", "two\nlines", "x" * 201):
        assert add(title).status_code == 422
    wait_for_jobs(shop)
    titles = [project["title"] for project in client.get("/projects", headers=acme).json()]
    events = client.get("/events", headers=acme).json()
    assert len(titles) == 3
    assert sorted(events) == sorted(f"{title} was added by acme/@x.com" for title in titles)
    assert client.get("/events", headers=globex).json() == ["Anvil was added by globex/@x.com"]
    # What the command line creates has no plan yet.
    shop.run("tenant", "create", "--id", "initech")
    sql(shop, "INSERT INTO tenant_initech.users (email) VALUES ('initech/@x.com')")
    assert add("Cover sheet", by_token("initech")).status_code == 402


# -- a crowd --------------------------------------------------------------------------------------------


async def look_around(address: str, tenant: str, crowd_has_gone: asyncio.Event) -> None:
    """Ask for all else that there is, while the crowd is at work: all begins with the tenant's id."""
    query = {"query": "{ a: projects { title owner } b: events c: projects { title owner } d: events }"}
    async with client_at(address, by_token(tenant)) as client:
        while not crowd_has_gone.is_set():
            answer = (await client.post("/graphql", json=query)).json()
            assert "errors" not in answer, answer
            found = [*answer["data"]["b"], *answer["data"]["d"], *(await client.get("/events")).json()]
            for project in answer["data"]["a"] + answer["data"]["c"]:
                found += project.values()
            assert all(line.startswith(f"{tenant}/") for line in found), (tenant, found)
            assert (await client.get("/me")).json() == {"tenant": tenant, "email": f"{tenant}/@x.com"}
            await asyncio.sleep(0.5)


async def all_at_once(address: str) -> None:
    crowd_has_gone = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for tenant in TENANTS:
            tasks.create_task(look_around(address, tenant, crowd_has_gone))
        await crowd(address, by_token, things="projects", column="title")
        crowd_has_gone.set()


def test_a_crowd_of_clients(shop: Example, client: httpx.Client) -> None:
    """No crossing, no connection that stays in use, no tenant that is left; also where clients hang up."""
    signed_up = at_once(len(TENANTS), lambda number: sign_up(client, TENANTS[number]))
    assert signed_up == [201] * len(TENANTS)
    sql(shop, "UPDATE plans SET max_projects = 10000 WHERE name = 'team'")
    for tenant in TENANTS:
        plan = "(SELECT id FROM plans WHERE name = 'team')"
        sql(shop, f'UPDATE "tenant_{tenant}".subscription SET plan_id = {plan}')
    fill(shop, "projects", "title", owner_id=1)
    asyncio.run(all_at_once(shop.address))
    wait_for_jobs(shop)
    shop.check_connections(CONNECTIONS)
    for tenant in TENANTS:
        events = sql(shop, f'SELECT line FROM "tenant_{tenant}".events')
        assert len(set(events)) == len(events) == 5 * ROUNDS
        assert all(line.startswith(f"{tenant}/") for line in events)
    counts = client.get("/admin/projects", headers=ADMIN).json()
    assert {counts[tenant] for tenant in TENANTS} == {3000 + 5 * ROUNDS}
    assert client.get("/health").json() == {"status": "ok", "tenant": None}
