"""`multitenant query`."""

from __future__ import annotations

import csv
import getpass
import io
import json

import pytest

from tests.cli.project import Project


@pytest.fixture
def users(project: Project) -> Project:
    """Tenant a has one user, b has two, c has none."""
    project.do("INSERT INTO tenant_a.users VALUES (1)")
    project.do("INSERT INTO tenant_b.users VALUES (1), (2)")
    return project


COUNT = "SELECT count(*) AS n FROM users"


def test_a_table(users: Project) -> None:
    shown = users.run("query", COUNT).out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert cells == [["a", "1"], ["b", "2"], ["c", "0"]]
    assert "3 rows of 3 tenants" in shown
    assert "No rows." in users.run("query", "SELECT id FROM users WHERE id > 5").out


def test_csv(users: Project) -> None:
    done = users.run(
        "query",
        "--format",
        "csv",
        "SELECT id, 'x,\"y' AS t, NULL AS z, '{\"k\": [1]}'::jsonb AS j FROM users",
    )
    assert list(csv.reader(io.StringIO(done.out))) == [
        ["tenant", "id", "t", "z", "j"],
        ["a", "1", 'x,"y', "", '{"k": [1]}'],
        ["b", "1", 'x,"y', "", '{"k": [1]}'],
        ["b", "2", 'x,"y', "", '{"k": [1]}'],
    ]


@pytest.mark.parametrize("flag", [["--json"], ["--format", "json"]])
def test_json(users: Project, flag: list[str]) -> None:
    done = users.run("query", *flag, "SELECT id, true AS yes, NULL AS z FROM users")
    assert json.loads(done.out) == {
        "rows": [
            {"tenant": "a", "id": 1, "yes": True, "z": None},
            {"tenant": "b", "id": 1, "yes": True, "z": None},
            {"tenant": "b", "id": 2, "yes": True, "z": None},
        ],
        "errors": [],
    }


def test_columns_of_one_name_are_all_there(users: Project) -> None:
    done = users.run("query", "--json", "--tenant", "a", "SELECT 1 AS tenant, 2 AS x, 3 AS x")
    assert json.loads(done.out)["rows"] == [{"tenant": "a", "tenant_2": 1, "x": 2, "x_2": 3}]


def test_whom_to_ask(users: Project) -> None:
    def asked(*options: str) -> list[str]:
        done = users.run("query", "--json", *options, "SELECT 1 AS x")
        return [row["tenant"] for row in json.loads(done.out)["rows"]]

    assert asked() == asked("--all") == ["a", "b", "c"]
    assert asked("--tenants", "c,a") == ["c", "a"]
    assert asked("--tenant", "b") == ["b"]
    assert asked("--limit", "2") == ["a", "b"]
    users.run("tenant", "suspend", "--id", "b")
    assert asked() == ["a", "c"]
    assert asked("--where-status", "suspended") == ["b"]
    assert asked("--where-status", "any") == ["a", "b", "c"]
    assert "suspended" in users.run("query", "--tenant", "b", "SELECT 1", code=1).err


def test_whom_it_failed_for(users: Project) -> None:
    users.do("ALTER TABLE tenant_b.users RENAME id TO nr")
    done = users.run("query", "SELECT id FROM users", code=1)
    assert "tenant 'b': column \"id\" does not exist" in done.err
    assert "1 row of 1 tenant" in done.out
    done = users.run("query", "--json", "SELECT id FROM users", code=1)
    document = json.loads(done.out)
    assert [error["tenant"] for error in document["errors"]] == ["b"]
    assert document["rows"] == [{"tenant": "a", "id": 1}]
    assert not done.err
    assert "'nobody'" in users.run("query", "--tenants", "a,nobody", COUNT, code=1).err


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM users",
        "SET TRANSACTION READ WRITE",
        "SELECT nextval('s')",
        "COMMIT",
    ],
)
def test_it_is_read_only(users: Project, sql: str) -> None:
    users.do("CREATE SEQUENCE public.s")
    before = users.dump()
    users.run("query", sql, code=1)
    assert users.dump() == before
    assert users.rows("SELECT count(*) FROM tenant_b.users") == [(2,)]


class TestWrite:
    def test_asks_first(self, users: Project) -> None:
        asked = users.run("query", "--write", "--all", "DELETE FROM users", answer="2\n", code=1)
        assert "may change 3 tenants. Type the number of tenants" in asked.err
        assert users.rows("SELECT count(*) FROM tenant_b.users") == [(2,)]
        users.run("query", "--write", "--all", "DELETE FROM users", answer="3\n")
        assert users.rows("SELECT count(*) FROM tenant_b.users") == [(0,)]

    def test_one_tenant_is_typed(self, users: Project) -> None:
        users.run("query", "--write", "--tenant", "b", "DELETE FROM users", answer="a\n", code=1)
        users.run("query", "--write", "--tenant", "b", "DELETE FROM users", answer="b\n")
        assert users.rows("SELECT count(*) FROM tenant_a.users") == [(1,)]
        assert users.rows("SELECT count(*) FROM tenant_b.users") == [(0,)]

    def test_nobody_answers(self, users: Project) -> None:
        assert "add --yes" in users.run("query", "--write", "--tenant", "b", "DELETE FROM users", code=2).err

    def test_tells_how_many(self, users: Project) -> None:
        sql = "UPDATE users SET id = id + 10"
        done = users.run("query", "--json", "--write", "--yes", "--where-status", "active", sql)
        assert [row["rows"] for row in json.loads(done.out)["rows"]] == [1, 2, 0]
        assert users.rows("SELECT id FROM tenant_b.users ORDER BY id") == [(11,), (12,)]

    def test_one_that_fails_changes_nothing_in_it(self, users: Project) -> None:
        done = users.run("query", "--write", "--yes", "--all", "UPDATE users SET id = 7", code=1)
        assert "tenant 'b': duplicate key" in done.err
        assert users.rows("SELECT id FROM tenant_a.users") == [(7,)]
        assert users.rows("SELECT id FROM tenant_b.users ORDER BY id") == [(1,), (2,)]


def test_the_statement_is_taken_as_it_is(users: Project) -> None:
    sql = "SELECT '12:30:15'::time AS t, ':x %s 100% $1' AS s, (ARRAY[1,2,3])[1:2] AS a"
    (row,) = json.loads(users.run("query", "--json", "--tenant", "a", sql).out)["rows"]
    assert row == {"tenant": "a", "t": "12:30:15", "s": ":x %s 100% $1", "a": [1, 2]}
    piped = users.run("query", "--json", "--tenant", "b", "-", answer=COUNT)
    assert json.loads(piped.out)["rows"] == [{"tenant": "b", "n": 2}]


def test_a_timeout(users: Project) -> None:
    done = users.run("query", "--timeout", "0.2", "--tenant", "a", "SELECT pg_sleep(5)", code=1)
    assert "statement timeout" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SQL"),
        ([""], "there is no statement"),
        (["--", "-- only this"], "there is no statement"),
        ([";"], "there is no statement"),
        (["SELECT 1; DELETE FROM users"], "one statement at a time; here are 2"),
        (["COPY users TO STDOUT"], "COPY cannot be used here"),
        ([COUNT, "--write", "--all", "--limit", "1"], "--limit is for reading"),
        ([COUNT, "--timeout", "inf"], "at most 24 days"),
        ([COUNT, "--json", "--format", "csv"], "choose one of --json"),
        ([COUNT, "--all", "--tenant", "a"], "choose one of"),
        ([COUNT, "--all", "--where-status", "any"], "choose one of"),
        ([COUNT, "--write"], "say who is to be changed"),
        ([COUNT, "--where-status", "gone"], "gone"),
        ([COUNT, "--format", "xml"], "xml"),
        ([COUNT, "--limit", "-1"], "--limit"),
        ([COUNT, "--timeout", "0"], "--timeout"),
        ([COUNT, "--tenants", ","], "at least one tenant"),
        ([COUNT, "--tenant", "no id"], "no id"),
    ],
    ids=str,
)
def test_wrong_usage(offline: Project, arguments: list[str], message: str) -> None:
    done = offline.run("query", *arguments, code=2)
    assert message in done.out + done.err


def test_json_documents_for_errors(offline: Project) -> None:
    for flag in (["--json"], ["--format", "json"], ["--format=json"]):
        for wrong in (["--limit", "-1"], ["--all", "--tenant", "a"], []):
            done = offline.run("query", COUNT, *flag, *wrong, code=1 if not wrong else 2)
            assert set(json.loads(done.out)) == {"error", "message"}


def test_columns_that_differ(users: Project) -> None:
    users.do("ALTER TABLE tenant_b.users ADD more text DEFAULT 'm'")
    shown = users.run("query", "SELECT * FROM users").out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert cells == [["a", "1", ""], ["b", "1", "m"], ["b", "2", "m"]]
    done = users.run("query", "--format", "csv", "SELECT * FROM users", code=1)
    assert done.out == "tenant,id\na,1\n"
    assert "tenant 'b': other columns than before: id, more" in done.err
    users.do("ALTER TABLE tenant_a.users ADD more text")
    users.do("ALTER TABLE tenant_a.users DROP id, ADD id int DEFAULT 5")
    done = users.run("query", "--format", "csv", "--tenants", "a,b", "SELECT * FROM users")
    assert done.out == "tenant,more,id\na,,5\nb,m,1\nb,m,2\n"


def test_values_as_they_are(users: Project) -> None:
    sql = r"SELECT ':smile:' a, 'C:\dir\' b, E'\x1b[31m' c, '\xdead'::bytea d, '[red]x[/]' e, 'NaN'::float8 f"
    shown = users.run("query", "--tenant", "a", sql).out
    for text in (":smile:", "C:\\dir\\ ", r"\x1b[31m", r"\xdead", "[red]x[/]", "nan"):
        assert text in shown
    assert "\x1b" not in shown
    (row,) = json.loads(users.run("query", "--tenant", "a", "--json", sql).out)["rows"]
    assert (row["d"], row["f"]) == (r"\xdead", "nan")


def test_more_tenants_than_were_shown_are_not_changed(users: Project) -> None:
    """The number that is confirmed is that of the tenants which are changed."""
    users.run("tenant", "suspend", "--id", "c")
    asked = users.run("query", "--write", "--all", "DELETE FROM users", answer="3\n", code=1)
    assert "may change 2 tenants" in asked.err
    users.run("query", "--write", "--where-status", "suspended", "DELETE FROM users", answer="c\n")


def test_without_tenants(blank: Project) -> None:
    blank.run("init")
    assert "No rows." in blank.run("query", "SELECT 1").out


def test_the_audit_is_told_who_asks(users: Project) -> None:
    config = users.folder / "tenant_config.py"
    text = config.read_text(encoding="utf-8")
    text += (
        "\nimport dataclasses, pathlib\nfrom sqlalchemy_multitenant import Hooks\n"
        "config = dataclasses.replace(config, hooks=Hooks(on_cross_tenant_query=lambda q: "
        "pathlib.Path('audit').write_text(f'{q.asked_by} {q.sql} {q.tenants} {q.read_only}')))\n"
    )
    config.write_text(text, encoding="utf-8")
    users.run("query", "--tenant", "a", COUNT)
    assert (users.folder / "audit").read_text() == f"{getpass.getuser()} {COUNT} ('a',) True"
