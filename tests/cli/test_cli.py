"""The command line, in a project folder and a database of the test's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from sqlalchemy_multitenant.cli.app import app
from sqlalchemy_multitenant.migrations.scaffold import scaffold
from tests.cli.project import SECRET, Project
from tests.command import COMMAND, spawn, unmeasured

FAILS_FOR_B = (
    'op.execute("ALTER TABLE users ADD COLUMN avatar text; '
    "DO $$ BEGIN IF current_schema() = 'tenant_b' THEN RAISE 'no room for b'; END IF; END $$\")"
)


# -- from nothing to a fleet ---------------------------------------------------------------------------


def test_a_project_from_nothing(blank: Project) -> None:
    blank = replace(blank, how=spawn)
    assert "wrote tenant_config.py" in blank.run("init").out
    scaffolded = blank.files()
    models = blank.folder / "models.py"
    models.write_text(models.read_text() + "\n# mine\n")
    again = blank.run("init", "--json").document
    assert (again["written"], len(again["kept"])) == ([], 4)
    assert blank.files() == {**scaffolded, "models.py": models.read_bytes()}

    assert "create --id" in blank.run("status").out
    first = blank.run("generate", "--name", "first").out
    assert first.count("wrote") == 2
    assert "add table users" in first
    assert "add table plans" in first
    assert blank.rows("SELECT 1 FROM pg_class WHERE relname IN ('users', 'plans')") == []
    before = blank.files()
    assert "No changes found; nothing was written." in blank.run("generate", "--name", "again").out
    assert blank.files() == before

    assert "1 migrated" in blank.run("migrate", "--shared").out
    assert "created tenant acme in schema tenant_acme" in blank.run("tenant", "create", "--id", "acme").out
    assert blank.columns("tenant_acme") == {"id", "name", "plan_id"}
    assert blank.columns("public", "plans") == {"id", "name"}


def test_a_change_of_the_models_reaches_the_tenants(blank: Project) -> None:
    scaffold(blank.folder)
    blank.run("generate", "--name", "first", "--type", "shared")
    assert not (blank.folder / "migrations/tenant/versions/0001_first.py").exists()
    blank.run("generate", "--name", "first", "--type", "tenant")
    blank.run("migrate", "--shared")
    blank.run("tenant", "create", "--id", "acme")

    models = blank.folder / "models.py"
    models.write_text(models.read_text() + "    avatar: Mapped[str | None]\n")
    before = blank.dump()
    assert blank.run("generate", "--name", "x", "--type", "shared", "--json").document == []
    (written,) = blank.run("generate", "--name", "add-user-avatar", "--json").document
    assert (written["type"], written["revision"]) == ("tenant", "0002")
    assert written["changes"] == ["add column users.avatar"]
    assert Path(written["path"]).name == "0002_add_user_avatar.py"
    assert blank.dump() == before

    status = blank.run("status").out
    assert "behind" in status
    assert "- 0002_add_user_avatar.py (1 tenant)" in status
    assert "1 migrated" in blank.run("migrate", "--all").out
    assert "avatar" in blank.columns("tenant_acme")
    assert "1 up to date" in blank.run("migrate", "--all").out


# -- migrate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("migrate",), "--all"),
        (("migrate", "--all", "--concurrency", "0"), "concurrency"),
        (("migrate", "--all", "--concurrency", "abc"), "concurrency"),
        (("migrate", "--all", "--tenant", "a"), "one of"),
        (("migrate", "--tenants", "a", "--tenant", "b"), "one of"),
        (("migrate", "--tenants", " , "), "--tenants"),
        (
            (
                "migrate",
                "--everything",
            ),
            "--everything",
        ),
        (("generate", "--name", "x", "--type", "both"), "both"),
        (("generate",), "--name"),
        (("tenant", "drop"), "--id"),
        (("tenants",), "tenants"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(
    offline: Project, arguments: tuple[str, ...], says: str
) -> None:
    result = offline.run(*arguments, code=2)
    assert says in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    "arguments", [["migrate", "--json"], ["migrate", "--all", "--concurrency", "abc", "--json"]]
)
def test_wrong_usage_is_json_on_request(offline: Project, arguments: list[str]) -> None:
    document = offline.run(*arguments, code=2).document
    assert set(document) == {"error", "message"}


def test_an_unknown_tenant_is_named_and_nobody_is_migrated(project: Project) -> None:
    project.revision(2, "op.add_column('users', sa.Column('avatar', sa.Text))")
    before = project.dump()
    assert "ghost" in project.run("migrate", "--tenants", "a,ghost", code=1).err
    document = project.run("migrate", "--tenant", "ghost", "--json", code=1).document
    assert document["error"] == "TenantNotFoundError"
    assert "ghost" in document["message"]
    assert project.dump() == before


def test_tenant_takes_one_id_and_no_list(project: Project) -> None:
    project.revision(2, "op.add_column('users', sa.Column('avatar', sa.Text))")
    before = project.dump()
    assert "a,b" in project.run("migrate", "--tenant", "a,b", code=2).err
    assert project.dump() == before


def test_a_dry_run_shows_the_sql_and_changes_nothing(project: Project) -> None:
    project.revision(2, "op.add_column('users', sa.Column('avatar', sa.Text))")
    project.revision(2, "op.add_column('plans', sa.Column('price', sa.Integer))", "shared")
    before = project.dump()
    shown = project.run("migrate", "--shared", "--all", "--dry-run").out
    assert "ADD COLUMN avatar" in shown
    assert "ADD COLUMN price" in shown
    assert "3 tenants: a, b, c" in shown
    (plan,) = project.run("migrate", "--tenants", "a,c", "--dry-run", "--json").document
    assert (plan["tenants"], plan["from"], plan["to"]) == (["a", "c"], ["0001"], ["0002"])
    assert any("ADD COLUMN avatar" in sql for sql in plan["sql"])
    assert project.dump() == before


def test_a_dry_run_shows_what_the_same_command_would_do(project: Project) -> None:
    """Not what it would do without `--mark-applied`, nor what it would do to a schema that is gone."""
    project.revision(2, "op.add_column('users', sa.Column('avatar', sa.Text))")
    marked = project.run("migrate", "--all", "--dry-run", "--mark-applied").out
    assert "ADD COLUMN" not in marked
    assert "0002" in marked
    project.do("DROP SCHEMA tenant_c CASCADE")
    shown = project.run("migrate", "--all", "--dry-run").out
    assert "2 tenants: a, b" in shown
    assert "CREATE TABLE users" not in shown


def test_a_dry_run_on_an_empty_database_creates_nothing(blank: Project) -> None:
    scaffold(blank.folder)
    blank.revision(1, "op.create_table('plans', sa.Column('id', sa.Integer))", "shared")
    before = blank.dump()
    assert "CREATE TABLE plans" in blank.run("migrate", "--shared", "--all", "--dry-run").out
    assert blank.dump() == before


def test_only_the_chosen_tenants_are_migrated(project: Project) -> None:
    project.revision(2, "op.add_column('users', sa.Column('avatar', sa.Text))")
    project.run("migrate", "--tenant", "a")
    assert project.at("a", "b", "c") == {"a": "0002", "b": "0001", "c": "0001"}
    document = project.run("migrate", "--tenants", "a, b,a", "--json").document
    assert [document[key] for key in ("total", "succeeded", "skipped", "failed")] == [2, 1, 1, 0]
    details = {d["tenant"]: (d["state"], d["from"], d["to"], d["applied"]) for d in document["details"]}
    assert details == {"a": ("skipped", ["0002"], ["0002"], []), "b": ("done", ["0001"], ["0002"], ["0002"])}
    assert project.at("a", "b", "c") == {"a": "0002", "b": "0002", "c": "0001"}


def test_mark_applied_records_and_runs_nothing(project: Project) -> None:
    project.revision(2, "op.add_column('users', sa.Column('avatar', sa.Text))")
    assert "2 marked" in project.run("migrate", "--tenants", "a,b", "--mark-applied").out
    assert project.at("a", "b", "c") == {"a": "0002", "b": "0002", "c": "0001"}
    assert project.columns("tenant_a") == {"id"}
    assert "2 up to date" in project.run("migrate", "--tenants", "a,b").out


def test_mark_applied_counts_for_the_shared_schema_too(project: Project) -> None:
    project.revision(2, "op.add_column('plans', sa.Column('price', sa.Integer))", "shared")
    document = project.run("migrate", "--shared", "--mark-applied", "--json").document
    assert [(d["tenant"], d["to"]) for d in document["details"]] == [("shared", ["0002"])]
    assert project.rows("SELECT version_num FROM public.alembic_version") == [("0002",)]
    assert project.columns("public", "plans") == {"id"}


def test_a_failing_tenant_is_named_and_a_rerun_completes(project: Project) -> None:
    project.revision(2, FAILS_FOR_B)
    failed = project.run("migrate", "--all", code=1)
    assert "2 migrated, 0 up to date, 1 failed" in failed.out
    assert "no room for b" in failed.out + failed.err
    assert "tenant 'b'" in failed.out + failed.err
    assert "tenant 'a'" not in failed.out + failed.err
    assert [project.columns(f"tenant_{t}") for t in "abc"] == [{"id", "avatar"}, {"id"}, {"id", "avatar"}]
    document = project.run("migrate", "--all", "--json", code=1).document
    assert [(d["tenant"], d["state"]) for d in document["details"]] == [
        ("a", "skipped"),
        ("b", "failed"),
        ("c", "skipped"),
    ]
    assert "no room for b" in document["details"][1]["error"]

    project.revision(2, "op.add_column('users', sa.Column('avatar', sa.Text))")
    assert "1 migrated, 2 up to date, 0 failed" in project.run("migrate", "--all").out
    assert project.at("a", "b", "c") == dict.fromkeys("abc", "0002")


def test_a_failing_shared_schema_stops_before_any_tenant(project: Project) -> None:
    project.revision(2, "op.execute('SELECT 1/0')", "shared")
    project.revision(2, "op.add_column('users', sa.Column('avatar', sa.Text))")
    before = project.dump()
    result = project.run("migrate", "--shared", "--all", code=1)
    assert "division by zero" in result.err
    assert project.dump() == before


@pytest.mark.parametrize("body", ["op.execute(", "call_what_is_not_there()"])
def test_a_broken_revision_is_named_and_changes_nothing(project: Project, body: str) -> None:
    project.revision(2, body)
    before = project.dump()
    result = project.run("migrate", "--all", code=1)
    assert "0002" in result.out + result.err
    assert project.dump() == before


def test_what_a_revision_prints_is_not_mixed_into_the_json(project: Project) -> None:
    project.revision(2, "print('converting'); op.execute('SELECT 1')")
    assert project.run("migrate", "--tenant", "a", "--json").document["succeeded"] == 1


# -- status --------------------------------------------------------------------------------------------


def test_status_shows_who_is_behind_and_who_is_broken(project: Project) -> None:
    project.revision(2, "op.add_column('users', sa.Column('avatar', sa.Text))")
    project.run("migrate", "--tenant", "a")
    project.do("DROP SCHEMA tenant_c CASCADE")
    shown = project.run("status", code=1).out
    lines = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.startswith("│")}
    assert "ok" in lines["a"]
    assert "0002" in lines["a"]
    assert "behind" in lines["b"]
    assert "broken" in lines["c"]
    assert "does not exist" in lines["c"]
    assert "- 0002_step.py (1 tenant)" in shown
    document = project.run("status", "--json", code=1).document
    assert [(t["tenant"], t["status"], t["pending"]) for t in document["tenants"]] == [
        ("a", "ok", []),
        ("b", "behind", ["0002"]),
        ("c", "broken", []),
    ]
    assert document["pending"] == [{"revision": "0002", "tenants": 1}]
    assert "ghost" in project.run("status", "--tenants", "a,ghost", code=1).err

    failed = project.run("migrate", "--all", code=1)
    assert "tenant_c" in failed.out + failed.err
    assert project.at("a", "b") == {"a": "0002", "b": "0002"}


def test_the_reader_of_the_output_may_go_away(project: Project) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{COMMAND} status | head -1; exit ${{PIPESTATUS[0]}}"],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("\n") == 1
    assert "Error" not in done.stderr
    for arguments in (["status", "--json"], ["tenant", "list"]):
        reader, writer = os.pipe()
        os.close(reader)
        closed = subprocess.run(
            [COMMAND, *arguments],
            cwd=project.folder,
            env=project.environment,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(writer)
        assert closed.stderr == ""


# -- tenants -------------------------------------------------------------------------------------------


def test_the_life_of_a_tenant(project: Project) -> None:
    created = project.run("tenant", "create", "--id", "d", "--json").document
    assert (created["tenant"], created["schema"], created["status"]) == ("d", "tenant_d", "active")
    assert "exists" in project.run("tenant", "create", "--id", "d", code=1).err
    assert "suspended" in project.run("tenant", "suspend", "--id", "d").out
    listed = project.run("tenant", "list", "--json").document
    assert {t["tenant"]: t["status"] for t in listed} == {**dict.fromkeys("abc", "active"), "d": "suspended"}
    assert project.run("tenant", "activate", "--id", "d", "--json").document["status"] == "active"


def test_drop_asks_for_the_id(project: Project) -> None:
    before = project.dump()
    refused = project.run("tenant", "drop", "--id", "a", code=1, answer="A\n")
    assert "'A' is not 'a'; nothing was changed" in refused.err
    project.run("tenant", "drop", "--id", "a", code=2, answer="")
    assert project.dump() == before
    dropped = project.run("tenant", "drop", "--id", "a", answer="a\n")
    assert "dropped tenant a" in dropped.out
    assert "tenant_a" in dropped.err
    assert project.columns("tenant_a") == set()
    assert "'a': not found" in project.run("tenant", "drop", "--id", "a", "--force", code=1).err
    table = project.run("tenant", "list").out
    assert "tenant_b" in table
    assert "tenant_a" not in table


def test_force_asks_nothing_and_json_cannot_ask(project: Project) -> None:
    document = project.run("tenant", "drop", "--id", "a", "--json", code=2, answer="a\n").document
    assert "--force" in document["message"]
    assert project.columns("tenant_a") == {"id"}
    assert project.run("tenant", "drop", "--id", "a", "--force", "--json").document == {"dropped": "a"}
    assert project.columns("tenant_a") == set()


def test_a_bad_id_creates_and_drops_nothing(project: Project) -> None:
    before = project.dump()
    quoted = "a'; DROP SCHEMA tenant_a CASCADE; --"
    for command, tenant in (
        (["create"], quoted),
        (["create"], "x" * 60),
        (["drop", "--force"], "ghost,tenant_a"),
    ):
        document = project.run("tenant", *command, "--id", tenant, "--json", code=2).document
        assert document["error"] == "InvalidTenantIdError"
        assert tenant in document["message"]
    assert project.dump() == before


def test_a_tenant_whose_revision_fails_is_not_created(project: Project) -> None:
    project.revision(2, "op.execute('SELECT 1/0')")
    before = project.dump()
    assert "division by zero" in project.run("tenant", "create", "--id", "d", code=1).err
    assert project.dump() == before


# -- every command -------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    tree: Any = get_command(app)
    found = {}
    for name, command in tree.commands.items():
        inner = getattr(command, "commands", None)
        found.update({f"{name} {n}": c for n, c in inner.items()} if inner else {name: command})
    return found


def test_every_command_offers_json() -> None:
    lacking = [n for n, c in commands().items() if "--json" not in {o for p in c.params for o in p.opts}]
    assert lacking == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--name", "x"],
        ["migrate", "--all"],
        ["migrate", "--shared"],
        ["tenant", "create", "--id", "d"],
    ],
    ids=" ".join,
)
def test_a_server_that_is_not_there_is_a_clear_message(offline: Project, arguments: list[str]) -> None:
    document = offline.run(*arguments, "--json", code=1).document
    assert "refused" in document["message"]
    assert SECRET not in document["message"]


def test_a_server_that_is_not_there_is_a_clear_message_in_text(offline: Project) -> None:
    result = offline.run("status", code=1)
    assert result.out == ""
    assert "error: the database said: connection failed" in result.err
    assert SECRET not in result.err


def test_what_the_configuration_prints_is_not_mixed_into_the_json(project: Project) -> None:
    config = project.folder / "tenant_config.py"
    config.write_text(config.read_text() + "\nprint('loading the settings')\n")
    assert len(project.run("tenant", "list", "--json").document) == 3


def test_a_name_is_printed_as_it_is(offline: Project) -> None:
    """Brackets are markup to Rich, which then says `app/models.py`."""
    assert "app[old]/models.py" in offline.run("init", "app[old]").out


def test_init_says_why_it_cannot_write(offline: Project) -> None:
    (offline.folder / "taken").write_text("")
    assert "taken" in offline.run("init", "taken", code=1).err


# -- the configuration ---------------------------------------------------------------------------------


CONFIG = """
from pathlib import Path
from sqlalchemy import MetaData
from sqlalchemy_multitenant import *

def make(schema):
    isolation = Isolation(schema_name=schema + "_{{id}}")
    return TenantConfig(schemas=Schemas(tenant=MetaData()), isolation=isolation)

config = make({schema!r})
other = make({schema!r} + "_other")
"""


def test_the_configuration_is_looked_for_in_order(blank: Project) -> None:
    """Each place counts only where the ones before are empty."""

    def write(path: str, schema: str) -> Path:
        file = blank.folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(CONFIG.format(schema=schema))
        return file

    made = iter(range(100))

    def used(*arguments: str, **environment: Any) -> str:
        tenant = f"x{next(made)}"
        created = blank.run("tenant", "create", "--id", tenant, "--json", *arguments, **environment)
        return str(created.document["schema"]).removesuffix(f"_{tenant}")

    write("tenant_config.py", "by_default")
    assert used() == "by_default"
    write("for_pyproject.py", "by_pyproject")
    (blank.folder / "pyproject.toml").write_text("[tool.multitenant]\nconfig = 'for_pyproject:other'\n")
    assert used() == "by_pyproject_other"
    write("package/__init__.py", "nobody")
    write("package/module.py", "by_environment")
    assert used(MULTITENANT_CONFIG="package.module") == "by_environment"
    assert used(MULTITENANT_CONFIG="package/module.py:other") == "by_environment_other"
    named = write("named.py", "by_option")
    for reference in (str(named), "named", "./named.py:config"):
        assert used("--config", reference, MULTITENANT_CONFIG="package.module") == "by_option"


def test_a_configuration_file_may_be_called_as_a_known_module_is(blank: Project) -> None:
    (blank.folder / "types.py").write_text(CONFIG.format(schema="by_types"))
    created = blank.run(
        "tenant", "create", "--id", "x", "--json", "--config", "project/types.py", cwd=blank.folder.parent
    )
    assert created.document["schema"] == "by_types_x"


def test_folders_of_revisions_are_relative_to_the_configuration(project: Project) -> None:
    """As `Migrations` says: the command may be run from anywhere."""
    config = project.folder / "tenant_config.py"
    config.write_text(config.read_text().replace("here / ", ""))
    project.revision(2, "op.add_column('users', sa.Column('avatar', sa.Text))")
    elsewhere = project.folder.parent
    status = project.run("status", "--json", "--config", str(config), cwd=elsewhere).document
    assert [t["pending"] for t in status["tenants"]] == [["0002"]] * 3
    project.run("tenant", "create", "--id", "d", "--config", str(config), cwd=elsewhere)
    assert project.columns("tenant_d") == {"id", "avatar"}


BROKEN = [
    pytest.param({}, [], "multitenant init", id="none"),
    pytest.param({}, ["--config", "folder/missing.py:config"], "missing.py", id="no-such-folder"),
    pytest.param({}, ["--config", "no_such_module"], "no_such_module", id="no-such-module"),
    pytest.param(
        {"c.py": CONFIG.format(schema="x")}, ["--config", "c.py:wrong"], "'wrong'", id="no-such-attribute"
    ),
    pytest.param({"c.py": "config = {}"}, ["--config", "c.py"], "a dict, not a TenantConfig", id="dict"),
    pytest.param({"tenant_config.py": "raise RuntimeError('no secrets')"}, [], "no secrets", id="raises"),
    pytest.param({"tenant_config.py": "import sys; sys.exit('not today')"}, [], "not today", id="exits"),
    pytest.param({"tenant_config.py": "config = ("}, [], "SyntaxError", id="syntax"),
    pytest.param({"tenant_config.py": "import no_such_models"}, [], "no_such_models", id="import"),
    pytest.param(
        {"tenant_config.py": "from sqlalchemy_multitenant import *\nIsolation(max_pools=0)"},
        [],
        "isolation.max_pools = 0",
        id="wrong-value",
    ),
    pytest.param({"pyproject.toml": "[tool"}, [], "pyproject.toml", id="toml"),
    pytest.param(
        {"pyproject.toml": "[tool]\nmultitenant = 'x'"}, [], "tool.multitenant", id="toml-of-another-shape"
    ),
]


@pytest.mark.parametrize(("files", "arguments", "says"), BROKEN)
def test_a_configuration_that_cannot_be_used_exits_2(
    offline: Project, files: dict[str, str], arguments: list[str], says: str
) -> None:
    (offline.folder / "tenant_config.py").unlink()
    for name, content in files.items():
        (offline.folder / name).write_text(content)
    document = offline.run("status", "--json", *arguments, code=2).document
    assert document["error"] == "ConfigurationError"
    assert says in document["message"]


def test_a_configuration_that_cannot_be_used_is_told_in_text(offline: Project) -> None:
    result = offline.run("migrate", "--all", code=2, MULTITENANT_CONFIG="gone.py")
    assert result.out == ""
    assert "$MULTITENANT_CONFIG = 'gone.py'" in result.err


# -- Ctrl-C --------------------------------------------------------------------------------------------


def start(project: Project, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMAND, *arguments],
        cwd=project.folder,
        env=unmeasured(project.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(project: Project, sql: str) -> None:
    deadline = time.monotonic() + 20
    while not project.rows(sql):
        assert time.monotonic() < deadline, f"nothing came of {sql}"
        time.sleep(0.02)


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=15)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    return out, err


SLEEPING = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND state = 'active' AND wait_event = 'PgSleep'"
)


SLOWLY = "op.execute('ALTER TABLE users ADD avatar text; SELECT pg_sleep(1); ALTER TABLE users ADD late int')"


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_ctrl_c_leaves_every_tenant_whole(project: Project, as_json: list[str]) -> None:
    project.revision(2, SLOWLY)
    started = start(project, "migrate", "--all", "--concurrency", "2", *as_json)
    wait_for(project, SLEEPING)
    out, err = interrupt(started)
    if as_json:
        document = json.loads(out)
        assert document["error"] == "Interrupted"
        assert (document["succeeded"], document["unreached"], document["failed"]) == (2, 1, 0)
    else:
        assert "interrupted" in err
        assert "2 migrated, 0 up to date, 1 not reached, 0 failed" in out
    run = json.loads(project.run("runs", "--json").out)[0]
    assert (run["state"], run["succeeded"], run["skipped"]) == ("stopped", 2, 1)
    for tenant in "abc":
        standing = (project.columns(f"tenant_{tenant}"), project.at(tenant)[tenant])
        assert standing in [({"id"}, "0001"), ({"id", "avatar", "late"}, "0002")]
    assert project.at("c") == {"c": "0001"}
    assert project.rows(SLEEPING) == []


def test_a_second_ctrl_c_rolls_back_what_runs(project: Project) -> None:
    project.revision(2, SLOWLY.replace("pg_sleep(1)", "pg_sleep(60)"))
    started = start(project, "migrate", "--all", "--concurrency", "2")
    wait_for(project, SLEEPING)
    started.send_signal(signal.SIGINT)
    time.sleep(0.5)
    out, _ = interrupt(started)
    assert "0 migrated, 0 up to date, 1 not reached, 2 failed" in out
    assert project.rows(SLEEPING) == []
    assert set(project.at("a", "b", "c").values()) == {"0001"}


def test_ctrl_c_while_tenants_are_created_says_how_many_there_are(project: Project) -> None:
    project.revision(2, "op.execute('SELECT pg_sleep(0.5)')")
    ids = project.folder / "ids.txt"
    ids.write_text("".join(f"new{number}\n" for number in range(40)))
    started = start(project, "tenant", "create", "--ids-file", str(ids), "--concurrency", "2")
    wait_for(project, "SELECT 1 FROM public.multitenant_tenants WHERE id LIKE 'new%' OFFSET 4")
    _, err = interrupt(started)
    there = int(err.partition("at least ")[2].partition(" ")[0])
    listed = json.loads(project.run("tenant", "list", "--json").out)
    assert 0 < there <= len([record for record in listed if record["tenant"].startswith("new")]) < 40


def test_generate_wants_one_head(project: Project) -> None:
    project.revision(2, "pass")
    second = next((project.folder / "migrations/tenant/versions").glob("0002*"))
    other = second.with_name("0002b_other.py")
    other.write_text(second.read_text().replace('"0002"', '"0002b"').replace("'0002'", "'0002b'"))
    refused = json.loads(project.run("generate", "--name", "x", "--json", code=1).out)
    assert "2 heads, 0002, 0002b" in refused["message"]
    assert "--sql --name merge" in refused["message"]
    merged = project.run("generate", "--type", "tenant", "--sql", "--name", "merge").out
    assert "joins 0002, 0002b" in merged
    assert "needs a name" in project.run("generate", "--name", "///", "--sql", code=1).err


def test_ctrl_c_during_the_shared_migration_undoes_it(project: Project) -> None:
    project.revision(2, "op.execute('ALTER TABLE plans ADD price int; SELECT pg_sleep(20)')", "shared")
    before = project.dump()
    started = start(project, "migrate", "--shared")
    wait_for(project, SLEEPING)
    interrupt(started)
    assert project.dump() == before
