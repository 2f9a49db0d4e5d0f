"""`multitenant lint`: what may do harm is found, with its file and line, and without a database."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqlalchemy_multitenant.migrations import squawk
from tests.cli.project import Project

UNDO = "op.execute('SELECT 1')"


def found(project: Project, *arguments: str, code: int = 1) -> set[tuple[str, int, str]]:
    """File, line and rule of each finding."""
    document = project.run("lint", "--json", *arguments, code=code).document
    return {(Path(f["file"]).parts[-3] + "/" + Path(f["file"]).name, f["line"], f["rule"]) for f in document}


@pytest.fixture
def clean(offline: Project) -> Project:
    """Its first revisions are all right; there is no server."""
    undo = "op.drop_table('users')"
    offline.revision(
        1, "op.create_table('users', sa.Column('id', sa.BigInteger, primary_key=True))", undo=undo
    )
    return offline


def test_nothing_is_found_where_nothing_is_wrong(clean: Project) -> None:
    assert "Nothing found." in clean.run("lint").out
    assert found(clean, code=0) == set()


# The body of a revision begins at its line 9, its downgrade at line 13.
@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("op.execute('INSERT INTO public.plans VALUES (1)')", "names-a-schema"),
        ("op.execute('INSERT INTO \"public\".plans VALUES (1)')", "names-a-schema"),
        ("op.execute('UPDATE tenant_acme.users SET id = 1')", "names-a-tenant"),
        ('op.execute("DO $$ BEGIN UPDATE tenant_acme.users SET id = 1; END $$")', "names-a-tenant"),
        ("op.add_column('users', sa.Column('x', sa.Text), schema='public')", "names-a-schema"),
        ("op.drop_table('users', schema='tenant_acme')", "names-a-tenant"),
        ("op.execute('SET search_path TO other')", "sets-search-path"),
        ("op.execute('DO $$ BEGIN SET search_path TO other; END $$')", "sets-search-path"),
        ("op.execute('RESET search_path')", "sets-search-path"),
        ("op.execute(\"SELECT nextval('public.numbers')\")", "names-a-schema"),
        ("op.execute(\"SELECT 'tenant_acme.numbers'::regclass\")", "names-a-tenant"),
        ("op.execute('SELECT tenant_acme.f()')", "names-a-tenant"),
        ("op.execute('INSERT INTO users SELECT * FROM other.tab')", "names-a-schema"),
        ("op.execute('UPDATE users SET id = o.id FROM other.tab o')", "names-a-schema"),
        ("op.execute('CREATE TABLE t (id int REFERENCES other.tab)')", "names-a-schema"),
        ("op.get_bind().exec_driver_sql('SELECT * FROM public.plans')", "names-a-schema"),
        ("op.get_bind().exec_driver_sql(f'DELETE FROM tenant_{1}.users')", "names-a-tenant"),
        ("op.execute('DROP TABLE users -- at last')", "ban-drop-table"),
        ("op.execute(\"SELECT set_config('search_path', 'other', true)\")", "sets-search-path"),
        ("op.add_column('users', sa.Column('x', sa.Text, nullable=False))", "adding-required-field"),
        ("op.create_index('i', 'users', ['id'])", "require-concurrent-index-creation"),
        ("op.drop_table('users')", "ban-drop-table"),
    ],
    ids=lambda value: value if "(" not in value else "",
)
def test_what_is_dangerous_is_found(clean: Project, body: str, rule: str) -> None:
    clean.revision(2, body, undo=UNDO)
    assert ("tenant/0002_step.py", 9, rule) in found(clean)


@pytest.mark.parametrize(
    "body",
    [
        'op.execute("INSERT INTO users VALUES (1) -- public.users")',
        "op.execute(\"COMMENT ON TABLE users IS 'not public.users, nor tenant_acme.users'\")",
        "op.execute('UPDATE users u SET id = u.id + 1')",
        "op.execute('UPDATE users SET id = users.id + 1')",
        "op.execute('UPDATE users SET id = tenant_map.id FROM users AS tenant_map')",
        "op.execute('ALTER FUNCTION f() SET search_path FROM CURRENT')",
        "op.execute('UPDATE users u SET id = EXTRACT(epoch FROM u.since)')",
        "op.execute('UPDATE users u SET id = 1 WHERE u.id IS DISTINCT FROM u.other')",
        "op.execute('INSERT INTO users SELECT 1 FROM pg_catalog.pg_class')",
        "with op.get_context().autocommit_block():\n"
        "        op.create_index('i', 'users', ['id'], postgresql_concurrently=True, if_not_exists=True)",
    ],
)
def test_what_only_looks_dangerous_is_let_through(clean: Project, body: str) -> None:
    clean.revision(2, body, undo=UNDO)
    assert found(clean, code=0) == set()


def test_a_revision_that_cannot_be_undone_or_looked_at_is_told(clean: Project) -> None:
    clean.revision(2, UNDO)
    clean.revision(3, "op.get_bind(); op.execute('SELECT 1')", undo=UNDO)
    assert found(clean) == {
        ("tenant/0002_step.py", 12, "missing-downgrade"),
        ("tenant/0003_step.py", 0, "not-compiled"),
    }


def test_a_comment_lets_a_finding_pass(clean: Project) -> None:
    clean.revision(2, "op.drop_table('users')  # multitenant: ignore ban-drop-table", undo=UNDO)
    above = "# multitenant: ignore names-a-schema, names-a-tenant"
    clean.revision(3, f"{above}\n    op.execute('SELECT public.f(), tenant_a.f()')", undo=UNDO)
    assert found(clean, code=0) == set()


def test_only_what_is_asked_for_is_looked_at(clean: Project) -> None:
    clean.revision(2, "op.execute('SELECT public.f()')", undo=UNDO)
    clean.revision(1, "op.execute('SELECT public.f()')", "shared", undo=UNDO)
    assert {file for file, *_ in found(clean)} == {"shared/0001_step.py", "tenant/0002_step.py"}
    assert {file for file, *_ in found(clean, "--type", "tenant")} == {"tenant/0002_step.py"}
    assert found(clean, "--type", "tenant", "--since", "0002", code=0) == set()
    assert len(found(clean, "--type", "tenant", "--since", "base")) == 1
    shown = clean.run("lint", code=1).out
    assert "migrations/tenant/versions/0002_step.py:9: names-a-schema" in shown
    assert "2 found." in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--type", "both"), "both"), (("--since", "0001"), "--type")],
)
def test_wrong_usage(clean: Project, arguments: tuple[str, ...], says: str) -> None:
    assert says in clean.run("lint", *arguments, code=2).err


def test_an_unknown_revision_is_told(clean: Project) -> None:
    assert "9999" in clean.run("lint", "--type", "tenant", "--since", "9999", code=1).err


def test_without_squawk_the_own_rules_are_checked(clean: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    clean.revision(2, "op.execute('SELECT public.f()')", undo=UNDO)
    monkeypatch.setattr(squawk, "find_squawk", lambda: None)
    result = clean.run("lint", code=1)
    assert "names-a-schema" in result.out
    assert "[lint]" in result.err
