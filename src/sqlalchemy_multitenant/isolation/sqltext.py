"""Looks at SQL that was written by hand. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

# What is not code: comments, strings (E'..' with backslashes, also in what continues it on the next line),
# quoted names, dollar-quoted bodies (not within a name, in which any character beyond ASCII may be)
# (https://www.postgresql.org/docs/current/sql-syntax-lexical.html). Block comments may nest, which
# a regular expression cannot follow: `_skip_comment` does.
_OPAQUE = re.compile(
    r"""--[^\n\r]*
    | /\*
    | \b[eE]'(?:[^'\\]|\\.|''|'[ \t\f\r]*\n\s*')*'?
    | '(?:[^']|'')*'?
    | "(?:[^"]|"")*"?
    | (?<![\w$\x80-\U0010ffff])\$(?P<tag>(?:[A-Za-z_\x80-\uffff][\w]*)?)\$
    """,
    re.VERBOSE | re.DOTALL,
)

_WORD = re.compile(r"\b(?:abort|begin|commit|end|prepare|rollback|start)\b", re.IGNORECASE)

# A body that is not empty. Only in CREATE FUNCTION: `SELECT begin atomic` is a column and its alias.
_ATOMIC = re.compile(
    r"(?P<head>\bcreate\s+(?:or\s+replace\s+)?(?:function|procedure)\b.*?)"
    r"\bbegin\s+atomic\b(?!\s*end\b)",
    re.IGNORECASE | re.DOTALL,
)
_BEGIN_ATOMIC = re.compile(r"\bbegin\s+atomic\b", re.IGNORECASE)
_END = re.compile(r"\s*end\b", re.IGNORECASE)

_COMMAND = re.compile(
    r"\s*(?P<command>abort|begin|commit|end|start\s+transaction|prepare\s+transaction|rollback)\b"
    r"(?P<savepoint>(?:\s+(?:work|transaction))?\s+to\b)?",
    re.IGNORECASE,
)


def _skip_comment(sql: str, start: int) -> int:
    depth, at = 1, start + 2
    while depth and at < len(sql):
        if sql.startswith("/*", at):
            depth, at = depth + 1, at + 2
        elif sql.startswith("*/", at):
            depth, at = depth - 1, at + 2
        else:
            at += 1
    return at


def _opaque_spans(sql: str) -> Iterator[tuple[int, int]]:
    """Where the parts of `sql` lie that are not code."""
    at = 0
    while match := _OPAQUE.search(sql, at):
        at = match.end()
        if match.group() == "/*":
            at = _skip_comment(sql, match.start())
        elif match["tag"] is not None:
            end = sql.find(match.group(), at)
            at = len(sql) if end < 0 else end + len(match.group())
        yield match.start(), at


def code_only(sql: str) -> str:
    """`sql` with blanks in place of each comment, string, quoted name and dollar-quoted body; as long
    as before, so that positions stay."""
    parts, at = [], 0
    for start, end in _opaque_spans(sql):
        parts += [sql[at:start], " " * (end - start)]
        at = end
    return "".join([*parts, sql[at:]])


def names_only(sql: str) -> str:
    """`sql` with blanks in place of comments and strings; quoted names stay, and what is in dollar quotes is
    treated the same way. As long as before."""
    parts, at = [], 0
    for start, end in _opaque_spans(sql):
        text = sql[start:end]
        if text.startswith('"'):
            continue
        parts.append(sql[at:start])
        if text.startswith("$"):
            tag = text[: text.index("$", 1) + 1]
            body = text[len(tag) : len(text) - len(tag) if text.endswith(tag) else None]
            text = tag + names_only(body) + text[len(tag) + len(body) :]
        else:
            text = " " * len(text)
        parts.append(text)
        at = end
    return "".join([*parts, sql[at:]])


def _opens_body(code: str) -> bool:
    if not _BEGIN_ATOMIC.search(code):
        return False
    # In parentheses it would be a parameter `begin` of a type `atomic`.
    return any(m["head"].count("(") == m["head"].count(")") for m in _ATOMIC.finditer(code))


def split_statements(sql: str) -> list[str]:
    """The statements in `sql`, without the semicolons between them. Empty ones and lone comments are
    left out.

    An SQL-standard function body (BEGIN ATOMIC ... END) holds semicolons of its own
    (https://www.postgresql.org/docs/current/sql-createfunction.html).
    """
    return [sql[start:end].strip() for start, end, code in _statements(sql) if code.strip()]


def _statements(sql: str) -> Iterator[tuple[int, int, str]]:
    """Where each statement begins and ends, and its code."""
    code, start, in_body = code_only(sql), 0, False
    at = 0
    for end in [*(m.start() for m in re.finditer(";", code)), len(sql)]:
        in_body = not _END.match(code[at:end]) if in_body else _opens_body(code[at:end])
        at = end + 1
        if not in_body or end == len(sql):
            yield start, end, code[start:end]
            start = at


def find_transaction_control(sql: str) -> str | None:
    """The first command in `sql` that begins or ends a transaction, or None.

    Savepoints are no such thing, and a function's body is not looked into.
    """
    # Statements come again and again; what is long is rather data, and comes once.
    return _find_known(sql) if len(sql) <= _KNOWN_LENGTH else _find(sql)


_KNOWN_LENGTH = 10_000


def _find(sql: str) -> str | None:
    if not _WORD.search(sql):
        return None
    for _, _, statement in _statements(sql):
        match = _COMMAND.match(statement)
        if match and not match["savepoint"]:
            return " ".join(match["command"].upper().split())
    return None


_find_known = lru_cache(maxsize=1000)(_find)
