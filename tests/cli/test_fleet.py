"""Rollbacks, waves, and what the ledger tells, from the command line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from sqlalchemy_multitenant import __version__
from sqlalchemy_multitenant.cli import progress
from tests.cli.project import Project
from tests.command import COMMAND

AVATAR = "op.add_column('users', sa.Column('avatar', sa.Text))"
FAILS_FOR_B = (
    "op.execute(\"DO $$ BEGIN IF current_schema() = 'tenant_b' THEN RAISE 'no room for b'; END IF; END $$\")"
)


@pytest.fixture
def migrated(project: Project) -> Project:
    """Its tenants have had a second revision, which can be taken back."""
    project.revision(2, AVATAR, undo="op.drop_column('users', 'avatar')")
    assert "3 migrated" in project.run("migrate", "--all").out
    return project


# -- rollback ------------------------------------------------------------------------------------------


def test_a_rollback_asks_for_the_number_of_tenants(migrated: Project) -> None:
    before = migrated.dump()
    asked = migrated.run("rollback", "--all", "--steps", "1", answer="2\n", code=1)
    assert "0002_step.py in 3 tenants" in asked.err
    assert "'2' is not '3'" in asked.err
    assert migrated.dump() == before
    assert "3 taken back" in migrated.run("rollback", "--all", "--steps", "1", answer="3\n").out
    assert migrated.at(*"abc") == dict.fromkeys("abc", "0001")
    assert migrated.columns("tenant_a") == {"id"}


def test_a_rollback_of_one_asks_for_its_id(migrated: Project) -> None:
    asked = migrated.run("rollback", "--tenant", "b", "--to", "0001", answer="b\n")
    assert "Type the tenant's id" in asked.err
    assert migrated.at(*"abc") == {"a": "0002", "b": "0001", "c": "0002"}


def test_nobody_answers_a_rollback(migrated: Project) -> None:
    before = migrated.dump()
    assert "add --yes" in migrated.run("rollback", "--all", "--steps", "1", code=2).err
    assert "--yes" in migrated.run("rollback", "--all", "--steps", "1", "--json", code=2).document["message"]
    assert migrated.dump() == before


def test_a_dry_rollback_shows_the_sql_and_changes_nothing(migrated: Project) -> None:
    before = migrated.dump()
    assert "DROP COLUMN avatar" in migrated.run("rollback", "--all", "--to", "0001", "--dry-run").out
    (plan,) = migrated.run("rollback", "--all", "--to", "0001", "--dry-run", "--json").document
    assert (plan["from"], plan["to"]) == (["0002"], ["0001"])
    assert migrated.dump() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--to", "0001"), "say whom"),
        (("--all",), "how far"),
        (("--all", "--to", "0001", "--steps", "1"), "--to 0001 and --steps 1: choose one"),
        (("--all", "--tenant", "a", "--steps", "1"), "one of"),
        (("--all", "--steps", "0"), "steps"),
        (("--all", "--to", ""), "--to is empty"),
    ],
    ids=str,
)
def test_wrong_rollbacks(offline: Project, arguments: tuple[str, ...], says: str) -> None:
    assert says in offline.run("rollback", *arguments, code=2).err


def test_a_rollback_that_fails_for_one_says_so(migrated: Project) -> None:
    migrated.do("ALTER TABLE tenant_b.users DROP COLUMN avatar")
    failed = migrated.run("rollback", "--all", "--steps", "1", "--yes", code=1)
    assert "2 taken back" in failed.out
    assert "failed b:" in failed.out
    assert migrated.at(*"abc") == {"a": "0001", "b": "0002", "c": "0001"}


def test_a_tenant_at_an_unknown_revision_holds_up_nobody(migrated: Project) -> None:
    migrated.do("UPDATE tenant_b.alembic_version SET version_num = '9999'")
    (plan,) = migrated.run("rollback", "--all", "--to", "0001", "--dry-run", "--json").document
    assert plan["tenants"] == ["a", "c"]
    failed = migrated.run("rollback", "--all", "--to", "0001", "--yes", code=1)
    assert "2 taken back" in failed.out
    assert "failed b:" in failed.out


def test_a_revision_that_cannot_be_taken_back_is_told_before_anything_runs(project: Project) -> None:
    project.revision(2, AVATAR, undo="raise NotImplementedError('one way')")
    project.run("migrate", "--all")
    before = project.dump()
    assert "0002" in project.run("rollback", "--all", "--steps", "1", "--yes", code=1).err
    assert project.dump() == before


def test_the_shared_schema_goes_back_as_well(project: Project) -> None:
    add = "op.add_column('plans', sa.Column('price', sa.Integer))"
    project.revision(2, add, "shared", undo="op.drop_column('plans', 'price')")
    project.run("migrate", "--shared")
    back = ("rollback", "--shared", "--to", "0001")
    assert "DROP COLUMN price" in project.run(*back, "--dry-run").out
    before = project.dump()
    assert "which all tenants use" in project.run(*back, answer="yes\n", code=1).err
    assert "add --yes" in project.run(*back, code=2).err
    assert "--to" in project.run("rollback", "--shared", "--steps", "1", code=2).err
    assert "choose tenants or --shared" in project.run(*back, "--all", code=2).err
    assert project.dump() == before
    assert "1 taken back" in project.run(*back, answer="shared\n").out
    assert project.columns("public", "plans") == {"id"}
    assert project.run(*back, "--dry-run", "--json").document == []


# -- the ledger ----------------------------------------------------------------------------------------


def test_what_happened_is_still_there_tomorrow(project: Project) -> None:
    project.do("DROP TABLE IF EXISTS public.multitenant_run_results, public.multitenant_runs")
    assert "no runs yet" in project.run("runs").out
    assert project.run("runs", "--json").document == []
    assert "0 in all" in project.run("migrate", "--only-failed").out
    project.revision(2, AVATAR)
    project.run("migrate", "--all")
    project.revision(3, FAILS_FOR_B)
    failed = project.run("migrate", "--all", code=1)
    assert "multitenant runs show 2" in failed.out

    table = project.run("runs").out
    assert ("failed" in table, "done" in table) == (True, True)
    newest, oldest = project.run("runs", "--json").document
    assert (newest["run"], newest["state"], newest["failed"]) == (2, "failed", 1)
    assert (oldest["run"], oldest["state"], oldest["succeeded"]) == (1, "done", 3)
    assert [r["run"] for r in project.run("runs", "--limit", "1", "--json").document] == [2]

    shown = project.run("runs", "show", "2").out
    assert "no room for b" in shown
    document = project.run("runs", "show", "2", "--json").document
    assert {r["tenant"]: r["state"] for r in document["results"]} == {"a": "done", "b": "failed", "c": "done"}
    assert "99" in project.run("runs", "show", "99", code=1).err

    project.revision(3, "pass")
    project.do("UPDATE tenant_a.alembic_version SET version_num = '0002'")
    (plan,) = project.run("migrate", "--only-failed", "--dry-run", "--json").document
    assert plan["tenants"] == ["b"]
    project.do("UPDATE tenant_a.alembic_version SET version_num = '0003'")
    assert "0 migrated" in project.run("migrate", "--tenants", "a,c", "--only-failed").out
    assert "1 migrated" in project.run("migrate", "--only-failed").out
    assert project.at(*"abc") == dict.fromkeys("abc", "0003")


# -- waves ---------------------------------------------------------------------------------------------


def test_a_canary_that_fails_spares_the_rest(project: Project) -> None:
    project.revision(2, FAILS_FOR_B)
    stopped = project.run("migrate", "--all", "--canary", "b", code=1)
    assert "stopped:" in stopped.out
    assert "canar" in stopped.out
    assert project.at(*"abc") == dict.fromkeys("abc", "0001")
    (newest, *_) = project.run("runs", "--json").document
    assert "stopped:" in project.run("runs", "show", str(newest["run"])).out
    document = project.run("migrate", "--all", "--canary", "b", "--json", code=1).document
    assert "canar" in document["stopped"]
    assert "1 migrated" in project.run("migrate", "--tenants", "a", "--canary", "1").out


def test_a_failure_budget_ends_a_run(project: Project) -> None:
    project.revision(2, "op.execute('SELECT 1/0')")
    stopped = project.run("migrate", "--all", "--max-failures", "0", "--concurrency", "1", code=1)
    assert "1 failed" in stopped.out
    assert "not reached" in stopped.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--max-failures", "some"), "max_failures"),
        (("--max-failures", "101%"), "max_failures"),
        (("--canary", "0"), "canary"),
        (("--canary", "ghost"), "ghost"),
        (("--canary-factor", "-1"), "canary_factor"),
    ],
    ids=str,
)
def test_wrong_waves(project: Project, arguments: tuple[str, ...], says: str) -> None:
    project.revision(2, AVATAR)
    before = project.dump()
    assert says in project.run("migrate", "--all", *arguments, code=2).err
    assert project.dump() == before


def test_what_was_tried_again_and_what_hooks_said_is_shown(project: Project) -> None:
    config = project.folder / "tenant_config.py"
    text = config.read_text()
    config.write_text(
        text
        + "\nfrom dataclasses import replace\nfrom sqlalchemy_multitenant import MigrationHooks\n"
        + "def fail(*_):\n    raise RuntimeError('the mailer is down')\n"
        + "config = replace(config, migrations=replace(config.migrations, "
        + "hooks=MigrationHooks(after_tenant=fail)))\n"
    )
    project.revision(
        2,
        "op.execute(\"DO $$ BEGIN IF nextval('public.tries') < 2 THEN RAISE USING ERRCODE = '40P01'; "
        'END IF; END $$")',
    )
    project.do("CREATE SEQUENCE public.tries")
    shown = project.run("migrate", "--tenants", "a").out
    assert "tried again: deadlock 1" in shown
    assert "hook after_tenant failed for a: RuntimeError: the mailer is down" in shown


def test_what_is_pending_in_the_shared_schema_is_not_forgotten(project: Project) -> None:
    project.revision(2, "op.add_column('plans', sa.Column('price', sa.Integer))", "shared")
    assert "1 pending in the shared schema: 0002" in project.run("status").out
    assert "1 revisions are pending in the shared schema" in project.run("migrate", "--all").err


# -- tenants by the dozen --------------------------------------------------------------------------------


def test_tenants_are_created_from_a_file(project: Project) -> None:
    ids = project.folder / "ids.txt"
    ids.write_text("\ufeff# the first customers\nd\n\ne  # they pay\na\n")
    seed = project.folder / "seed.sql"
    seed.write_text("INSERT INTO users VALUES (7)")
    created = project.run("tenant", "create", "--ids-file", "ids.txt", "--seed", "seed.sql")
    assert "2 created, 1 there already, 0 failed" in created.out
    assert project.rows("SELECT id FROM tenant_e.users") == [(7,)]
    project.do("CREATE SCHEMA tenant_g")
    again = project.run("tenant", "create", "--ids-file", "-", "--json", answer="e\nf\ng\n", code=1).document
    assert [record["tenant"] for record in again["created"]] == ["f"]
    assert again["existing"] == ["e"]
    assert [failure["tenant"] for failure in again["failed"]] == ["g"]
    assert "failed g:" in project.run("tenant", "create", "--ids-file", "-", answer="g", code=1).out


def test_wrong_creations(project: Project) -> None:
    before = project.dump()
    assert "say whom" in project.run("tenant", "create", code=2).err
    assert "choose one" in project.run("tenant", "create", "--id", "d", "--ids-file", "-", code=2).err
    assert "add --id" in project.run("tenant", "create", "--ids-file", "-", "--schema", "x", code=2).err
    assert "cannot be read" in project.run("tenant", "create", "--ids-file", "gone", code=2).err
    assert "no id in it" in project.run("tenant", "create", "--ids-file", "-", answer="# none\n", code=2).err
    assert "x y" in project.run("tenant", "create", "--ids-file", "-", answer="d\nx y\n", code=2).err
    assert "cannot be read" in project.run("tenant", "create", "--id", "d", "--seed", "gone.sql", code=2).err
    assert project.dump() == before


def test_a_tenant_is_archived_before_it_is_dropped(project: Project) -> None:
    project.do("INSERT INTO tenant_a.users VALUES (7)")
    dropped = project.run("tenant", "drop", "--id", "a", "--force", "--archive", "a.dump")
    assert "archived in a.dump" in dropped.out
    assert (project.folder / "a.dump").read_bytes().startswith(b"PGDMP")
    assert (
        "archive" in project.run("tenant", "drop", "--id", "b", "--force", "--archive", "a.dump", code=2).err
    )
    assert "b" in project.run("tenant", "list").out


def test_spares_are_made_and_used(project: Project) -> None:
    assert "2 ready: 2 made now" in project.run("spares", "--keep", "2").out
    project.run("tenant", "create", "--id", "d")
    stock = project.run("spares", "--keep", "3", "--json").document
    assert stock == {"ready": 3, "made": 2, "discarded": 0}
    ((name,), *_) = project.rows("SELECT schema_name FROM public.multitenant_spares")
    project.do(f"DROP SCHEMA {name} CASCADE")
    stock = project.run("spares", "--keep", "3", "--json").document
    assert stock == {"ready": 3, "made": 1, "discarded": 1}
    assert project.run("spares", "--keep", "0", "--json").document["discarded"] == 3
    assert "keep" in project.run("spares", code=2).err


# -- verification --------------------------------------------------------------------------------------


def test_catalogues_are_compared_on_request(project: Project) -> None:
    assert "3 of 3 tenants are as the revisions build them." in project.run("status", "--verify").out
    project.do("ALTER TABLE tenant_b.users ADD COLUMN by_hand int")
    shown = project.run("status", "--verify", code=1).out
    assert "2 of 3 tenants are as" in shown
    assert "users.by_hand" in shown
    document = project.run("status", "--verify", "--json", code=1).document
    (difference,) = document["verified"][1]["differences"]
    assert (difference["kind"], difference["name"], difference["expected"], difference["found"]) == (
        "column",
        "users.by_hand",
        None,
        "integer",
    )
    assert [v["ok"] for v in document["verified"]] == [True, False, True]
    assert "by_hand" not in project.run("status", "--verify", "--tenants", "a,c").out
    assert "verified" not in project.run("status", "--json").document


# -- progress ------------------------------------------------------------------------------------------


def test_a_terminal_gets_a_bar(project: Project) -> None:
    project.revision(2, AVATAR)
    master, terminal = pty.openpty()
    done = subprocess.run(
        [COMMAND, "migrate", "--all"],
        cwd=project.folder,
        env={**project.environment, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=True,
    )
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # how the end of a terminal reads on Linux
        pass
    os.close(master)
    assert b"3/3" in shown
    assert b"3 migrated" in done.stdout


def test_a_program_gets_json_lines(project: Project) -> None:
    project.revision(2, FAILS_FOR_B)
    result = project.run("migrate", "--all", "--json", "--json-progress", "--concurrency", "1", code=1)
    assert result.document["failed"] == 1
    events = [json.loads(line) for line in result.err.splitlines()]
    assert [(e["tenant"], e["state"], e["done"], e["failed"]) for e in events] == [
        ("a", "running", 0, 0),
        ("a", "done", 1, 0),
        ("b", "running", 1, 0),
        ("b", "failed", 2, 1),
        ("c", "running", 2, 1),
        ("c", "done", 3, 1),
    ]
    assert {e["total"] for e in events} == {3}


def test_a_log_gets_a_line_now_and_then(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    project.revision(2, AVATAR)
    assert "3/3 tenants" in project.run("migrate", "--all").err


# -- the rest ------------------------------------------------------------------------------------------


def test_an_output_that_is_full_is_one_line(project: Project) -> None:
    with Path("/dev/full").open("w") as full:
        for arguments in (["status"], ["status", "--json"]):
            done = subprocess.run(
                [COMMAND, *arguments],
                cwd=project.folder,
                env=project.environment,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert done.returncode == 1
            assert done.stderr.splitlines() == ["error: [Errno 28] No space left on device"]


def test_version(offline: Project) -> None:
    assert __version__ in offline.run("--version").out


def test_there_are_no_tenants_yet(blank: Project) -> None:
    blank.run("init")
    assert "There are no tenants yet" in blank.run("tenant", "list").out
    assert "--name is empty" in blank.run("generate", "--name", " ", code=2).err


def test_a_configuration_that_is_no_python(offline: Project) -> None:
    (offline.folder / "settings").mkdir()
    Path(offline.folder, "settings", "conf.txt").write_text("")
    assert "not a Python file" in offline.run("status", "--config", "settings/conf.txt", code=2).err
    (offline.folder / "pyproject.toml").write_text("[tool.multitenant]\nconf = 'x'\n")
    assert "there is `config` alone" in offline.run("status", code=2).err
    (offline.folder / "pyproject.toml").write_text("[tool.multitenant]\n")
    assert "refused" in offline.run("status", code=1).err
