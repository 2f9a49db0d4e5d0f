"""Finding statements, and what begins or ends a transaction, in SQL written by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_multitenant.isolation.sqltext import code_only, find_transaction_control, split_statements

# Parts that may hold semicolons and quotes of other kinds without ending a statement.
OPAQUE = [
    "'a;b'",
    "'it''s; fine'",
    r"E'a\';b'",
    r"e'\\;'",
    r"'c:\'",
    '"odd;name"',
    '"a""b;c"',
    "$$;'$$",
    "$tag$ ; $$ ; $tag$",
    "$é$;$é$",
    "/* ; */",
    "/* a /* nested; */ still; */",
    "-- ; ' \" $$ /*\n",
    "U&'d;at'",
    "B'1'",
    "$1",
    "1.5",
    "x::text",
    "a$b$c",
    "(1, 2)",
    "\n\t",
    "ünï",
    "COMMIT_LOG",
]

# The last part is code: blanks and comments at an end may go.
statements = st.lists(st.sampled_from(OPAQUE), max_size=5).map(
    lambda parts: " ".join(["SELECT", *parts, "1"])
)


@given(st.lists(statements, max_size=5), st.sampled_from([";", " ; ", ";\n", ";;", "; /* ; */ ;", ";--;\n;"]))
def test_what_is_joined_is_split_again(parts: list[str], joint: str) -> None:
    assert split_statements(joint.join(parts)) == parts


@given(st.text(st.sampled_from("'\"$;-/*\\eEab \n_éBEGIN")))
def test_blanking_keeps_length_and_never_fails(sql: str) -> None:
    code = code_only(sql)
    assert len(code) == len(sql)
    assert all(new in (old, " ") for new, old in zip(code, sql, strict=True))
    assert code_only(code) == code
    split_statements(sql)
    find_transaction_control(sql)


@given(st.lists(st.sampled_from(OPAQUE)))
def test_no_quote_or_comment_is_left(parts: list[str]) -> None:
    code = code_only(" ".join(parts))
    assert not set(code) & set("'\";")
    assert "--" not in code
    assert "/*" not in code


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("", []),
        (" ;; ; ", []),
        ("-- only a comment", []),
        ("/* only; */;", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1;", ["SELECT 1"]),
        ("SELECT ';'; SELECT 2", ["SELECT ';'", "SELECT 2"]),
        (r"SELECT E'\';'; SELECT 2", [r"SELECT E'\';'", "SELECT 2"]),
        (r"SELECT '\'; SELECT 2", [r"SELECT '\'", "SELECT 2"]),
        (r"SELECT typE'\'; SELECT 2", [r"SELECT typE'\'", "SELECT 2"]),
        ('CREATE TABLE "a;b" (); SELECT 2', ['CREATE TABLE "a;b" ()', "SELECT 2"]),
        ("SELECT /* ; /* ; */ ; */ 1; SELECT 2", ["SELECT /* ; /* ; */ ; */ 1", "SELECT 2"]),
        ("SELECT 1 -- ;\n; SELECT 2", ["SELECT 1 -- ;", "SELECT 2"]),
        ("DO $$ BEGIN; END $$; SELECT 2", ["DO $$ BEGIN; END $$", "SELECT 2"]),
        ("DO $a$ $b$ ; $a$; SELECT 2", ["DO $a$ $b$ ; $a$", "SELECT 2"]),
        ("SELECT a$b$; SELECT c$b$", ["SELECT a$b$", "SELECT c$b$"]),
        ("SELECT $1; SELECT $2", ["SELECT $1", "SELECT $2"]),
        ("SELECT 'open; SELECT 2", ["SELECT 'open; SELECT 2"]),
        ("SELECT /* open; SELECT 2", ["SELECT /* open; SELECT 2"]),
        ("DO $$ open; SELECT 2", ["DO $$ open; SELECT 2"]),
    ],
)
def test_statements_end_where_postgres_ends_them(sql: str, expected: list[str]) -> None:
    assert split_statements(sql) == expected


ATOMIC = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END"


def test_a_standard_function_body_is_kept_whole() -> None:
    assert split_statements(f"{ATOMIC};") == [ATOMIC]
    assert split_statements(ATOMIC.replace("BEGIN ATOMIC", "begin\n  atomic")) == [
        ATOMIC.replace("BEGIN ATOMIC", "begin\n  atomic")
    ]


def test_what_follows_a_standard_function_body_is_a_statement_of_its_own() -> None:
    """A pipeline takes one statement at a time."""
    assert split_statements(f"SELECT 1; {ATOMIC}; SELECT 2") == ["SELECT 1", ATOMIC, "SELECT 2"]


def test_what_follows_a_standard_function_body_is_looked_at() -> None:
    assert find_transaction_control(f"{ATOMIC}; COMMIT") == "COMMIT"
    assert find_transaction_control("SELECT begin atomic FROM t; COMMIT") == "COMMIT"
    assert find_transaction_control("CREATE FUNCTION f() RETURNS void BEGIN ATOMIC END; COMMIT") == "COMMIT"
    parameter = "CREATE FUNCTION f(begin atomic) RETURNS int LANGUAGE sql AS 'SELECT 1'; COMMIT; SELECT 1"
    assert find_transaction_control(parameter) == "COMMIT"


def test_the_words_begin_atomic_in_a_string_keep_nothing_together() -> None:
    assert split_statements("SELECT 'BEGIN ATOMIC'; SELECT 2") == ["SELECT 'BEGIN ATOMIC'", "SELECT 2"]


@pytest.mark.parametrize(
    ("sql", "command"),
    [
        ("COMMIT", "COMMIT"),
        ("commit;", "COMMIT"),
        ("  \n BEGIN", "BEGIN"),
        ("BEGIN TRANSACTION READ ONLY", "BEGIN"),
        ("END", "END"),
        ("abort", "ABORT"),
        ("ROLLBACK", "ROLLBACK"),
        ("ROLLBACK AND CHAIN", "ROLLBACK"),
        ("ROLLBACK PREPARED 'x'", "ROLLBACK"),
        ("COMMIT PREPARED 'x'", "COMMIT"),
        ("START TRANSACTION", "START TRANSACTION"),
        ("start\n\ttransaction", "START TRANSACTION"),
        ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
        ("SELECT 1; COMMIT", "COMMIT"),
        ("SELECT 1;/* c */COMMIT", "COMMIT"),
        ("/* c */ COMMIT", "COMMIT"),
        ("-- c\nCOMMIT", "COMMIT"),
        ("/* /* nested */ */ COMMIT", "COMMIT"),
        ("START /* between */ TRANSACTION", "START TRANSACTION"),
        (r"SELECT '\'; COMMIT; SELECT '", "COMMIT"),
        ("SELECT $$a$$; ROLLBACK", "ROLLBACK"),
        ("COMMIT WORK", "COMMIT"),
        ("ROLLBACK /* TO x */", "ROLLBACK"),
        ("\ufeffSELECT 1; END", "END"),
    ],
)
def test_transaction_control_is_found(sql: str, command: str) -> None:
    assert find_transaction_control(sql) == command


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "SELECT 1",
        "ROLLBACK TO x",
        "ROLLBACK TO SAVEPOINT x",
        "ROLLBACK WORK TO SAVEPOINT x",
        "rollback transaction to x",
        "SAVEPOINT commit",
        "RELEASE x",
        "PREPARE q AS SELECT 1",
        "SELECT 'COMMIT'",
        "SELECT '; COMMIT;'",
        r"SELECT E'\'; COMMIT'",
        'SELECT 1 AS "; COMMIT"',
        "SELECT 1 -- ; COMMIT",
        "SELECT 1 /* ; COMMIT */",
        "DO $$ BEGIN COMMIT; END $$",
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $f$ BEGIN RETURN 1; END $f$",
        "INSERT INTO commit VALUES (1)",
        "CREATE TABLE begin_log ()",
        "SELECT CASE WHEN true THEN 1 END",
        "commits",
        ATOMIC,
    ],
)
def test_what_only_looks_like_it_is_left_alone(sql: str) -> None:
    assert find_transaction_control(sql) is None


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS €$a$; COMMIT; SELECT 2 AS €$a$",  # a name, and no dollar quote
        "SELECT E'a'\n'b\\' '; COMMIT; --'",  # the second line is an escape string, too
    ],
)
def test_what_only_looks_like_a_quote_hides_nothing(sql: str) -> None:
    assert find_transaction_control(sql) == "COMMIT"
