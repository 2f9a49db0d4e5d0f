"""Finds what is dangerous about revisions before it harms anybody: rules for tenants, and those of squawk."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import TenantConfig
from ..isolation.sqltext import names_only
from .history import History
from .plan import Revision, SegmentKind, Statement
from .squawk import run_squawk

_IGNORE = re.compile(r"#\s*multitenant:\s*ignore\s+(?P<rules>[\w, -]+)")
_QUALIFIER = re.compile(r'(?:"((?:[^"]|"")+)"|([A-Za-z_\x80-\uffff][\w$]*))\s*\.')
_SETS_PATH = re.compile(
    r"\b(?:SET\s+(?:LOCAL\s+|SESSION\s+)?search_path\b(?!\s+FROM\s+CURRENT|\s*(?:=|TO)\s*(?:pg_catalog|''))"
    r"|RESET\s+search_path\b|set_config\s*\()",
    re.IGNORECASE,
)
# Where a relation or a function is named, and no column of a table or an alias.
_NAMES_RELATION = re.compile(
    r"\b(?:FROM|JOIN|INTO|UPDATE|TABLE|ONLY|REFERENCES|ON|EXISTS|VIEW|INDEX|SEQUENCE|FUNCTION|PROCEDURE|TYPE|CALL"
    r"|TRUNCATE|DELETE)\s*$",
    re.IGNORECASE,
)
_NAMES_TABLE = re.compile(
    r"\b(?P<word>FROM|JOIN|INTO|UPDATE|TABLE|REFERENCES|TRUNCATE|ONLY)\s*$", re.IGNORECASE
)
_HAS_FROM = re.compile(r"\b(?:SELECT|DELETE|UPDATE)\b", re.IGNORECASE)
_SQL = re.compile(
    r"\s*(?:ALTER|CREATE|DELETE|DROP|GRANT|INSERT|MERGE|SELECT|TRUNCATE|UPDATE|WITH)\s", re.IGNORECASE
)
_EVERYBODYS = frozenset({"pg_catalog", "information_schema", "pg_temp"})
_CALL = re.compile(r'\s*(?:"(?:[^"]|"")+"|[\w$]+)\s*\(')
_REGCLASS = re.compile(r"'(\"?)(?P<schema>[^'.\"]+)\1\.[^']+'(?=\s*(?:::\s*reg|[,)]))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a revision that may do harm.

    Attributes:
        file, line: where; line 0 is the whole file.
        rule: its name, for `# multitenant: ignore RULE` on that line or above it.
        message: what is wrong.
        help: the mend.
    """

    file: Path
    line: int
    rule: str
    message: str
    help: str = ""


def lint(
    config: TenantConfig, kind: Literal["tenant", "shared"], *, since: str | None = None
) -> Iterator[Finding]:
    """The findings in one history, in the order of its revisions. Needs no database.

    Args:
        kind: which history.
        since: a revision: what comes after it; None for all.

    Raises:
        MigrationError: the revisions cannot be read, or there is no such revision.
    """
    history = History.of(config, kind)
    if not history.exists:
        return
    start = () if since in (None, "base") else (history.resolve(str(since)),)
    pending = history.pending(start)
    plan = history.plan_upgrade(start)
    online = {s.revision: s.reason for s in plan.segments if s.kind is SegmentKind.ONLINE}
    names = _Names(config)
    for revision in pending:
        path = Path(history.script_of(revision.id).path)
        source = path.read_text(encoding="utf-8")
        statements = {
            segment_kind: [
                statement
                for segment in plan.segments
                if segment.kind is segment_kind
                for statement in segment.statements
                if statement.revision == revision.id
            ]
            for segment_kind in (SegmentKind.COMPILED, SegmentKind.AUTOCOMMIT)
        }
        found = [
            *_lint_source(path, source, names),
            *(f for group in statements.values() for s in group for f in names.check(path, s)),
            *_lint_downgrade(path, source, history, revision),
            *_run_squawk(path, statements),
        ]
        if revision.id in online:
            found += _lint_strings(path, source, names)
        if revision.id in online and _has_sql(source):
            found.append(
                Finding(path, 0, "not-compiled", f"its SQL is looked at as text alone: {online[revision.id]}")
            )
        yield from sorted(_kept(found, source), key=lambda f: (f.line, f.rule))


def _has_sql(source: str) -> bool:
    return "execute(" in source


def _kept(found: Sequence[Finding], source: str) -> Iterator[Finding]:
    """Each finding once, without those that a comment lets pass."""
    lines = source.splitlines()
    for finding in dict.fromkeys(found):
        there = lines[max(finding.line - 2, 0) : finding.line] if finding.line else lines
        comments = [match["rules"] for line in there for match in _IGNORE.finditer(line)]
        rules = {rule.strip() for comment in comments for rule in comment.split(",")}
        if finding.rule not in rules:
            yield finding


def _lint_downgrade(path: Path, source: str, history: History, revision: Revision) -> Iterator[Finding]:
    if not history.is_one_way(revision.id):
        return
    tree = ast.parse(source)
    lines = {node.name: node.lineno for node in tree.body if isinstance(node, ast.FunctionDef)}
    line = lines.get("downgrade") or lines.get("upgrade", 0)
    yield Finding(
        path,
        line,
        "missing-downgrade",
        "it cannot be undone, and `multitenant rollback` stops before it",
        "write downgrade(), or say on this line that it is meant to be",
    )


def _lint_source(path: Path, source: str, names: _Names) -> Iterator[Finding]:
    """Schemas that are named to Alembic instead of in SQL."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.keyword) or node.arg not in (
            "schema",
            "source_schema",
            "referent_schema",
        ):
            continue
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield names.finding(path, node.value.lineno, node.value.value)


def _lint_strings(path: Path, source: str, names: _Names) -> Iterator[Finding]:
    """What looks like SQL in a revision that cannot be compiled; values put into it are not known."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
            text = "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if _SQL.match(text):
            yield from names.check(path, Statement(text, line=node.lineno))


def _names_table(sql: str, at: int) -> bool:
    """Whether a table is named at this place: not EXTRACT(... FROM, nor IS DISTINCT FROM."""
    match = _NAMES_TABLE.search(sql, 0, at)
    if match is None or match["word"].upper() != "FROM":
        return match is not None
    before = sql[: match.start()].rstrip()
    depth = 0
    for position in range(len(before) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(before[position], 0)
        if depth < 0:
            before = before[position:]
            break
    return not before.upper().endswith("DISTINCT") and _HAS_FROM.search(before) is not None


class _Names:
    """Tells which names in SQL are those of schemas that a revision should leave to the search path."""

    def __init__(self, config: TenantConfig) -> None:
        schemas, rule = config.schemas, config.naming.rule
        self._shared = {"public", schemas.shared_schema}
        self._tables = schemas.tenant_tables | schemas.shared_tables
        self._known = _EVERYBODYS | set(schemas.extra_search_path)
        self._tenants = None
        if isinstance(rule, str) and (rule := re.escape(rule)) != r"\{id\}":
            self._tenants = re.compile(rule.replace(r"\{id\}", r"[A-Za-z0-9][A-Za-z0-9_.-]*"))

    def check(self, path: Path, statement: Statement) -> Iterator[Finding]:
        """What is wrong with one statement."""
        sql = names_only(statement.sql)
        for match in _QUALIFIER.finditer(sql):
            name = match[1].replace('""', '"') if match[1] else match[2].lower()
            is_named = _NAMES_RELATION.search(sql, 0, match.start()) or _CALL.match(sql, match.end())
            is_other = name not in self._known and _names_table(sql, match.start())
            if name in self._shared or (is_named and self._is_tenants(name)) or is_other:
                yield self.finding(path, statement.line, name)
        for match in _REGCLASS.finditer(statement.sql):
            if match["schema"] in self._shared or self._is_tenants(match["schema"]):
                yield self.finding(path, statement.line, match["schema"])
        if _SETS_PATH.search(sql):
            yield Finding(
                path,
                statement.line,
                "sets-search-path",
                "the search path is the tenant's; what follows would be somebody else's",
                "take it out: the path is set already, and checked",
            )

    def _is_tenants(self, name: str) -> bool:
        return self._tenants is not None and name not in self._tables and bool(self._tenants.fullmatch(name))

    def finding(self, path: Path, line: int, name: str) -> Finding:
        """That a schema is named."""
        if self._is_tenants(name) and name not in self._shared:
            return Finding(
                path,
                line,
                "names-a-tenant",
                f"schema {name!r} is one tenant's, and every tenant would use it",
                "leave the schema out",
            )
        return Finding(
            path,
            line,
            "names-a-schema",
            f"schema {name!r} is written down; it is another in a scratch schema and in a renamed one",
            "leave the schema out: the search path is the tenant's, then the shared one",
        )


def _run_squawk(path: Path, groups: dict[SegmentKind, list[Statement]]) -> Iterator[Finding]:
    for kind, statements in groups.items():
        for line, rule, message, help_ in run_squawk(statements, in_transaction=kind is SegmentKind.COMPILED):
            yield Finding(path, line, rule, message, help_)
