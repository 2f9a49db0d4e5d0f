"""The catalogue of a schema: every object in it with its definition, as text that is the same in two schemas
which the same statements have made.

PostgreSQL leaves a schema out of the definitions it writes where the search path leads there. With a path of
that one schema, its own objects go by their bare names, and all others by their full ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import psycopg
from sqlalchemy import Connection

from ..engines.pipeline import StatementError, send_all
from ..naming import SchemaName, quote_ident, quote_literal

# Each part yields (kind, name, definition). $1 is the schema's OID.
# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CATALOG
_PARTS = (
    """
    SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view'
        WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'
        WHEN 'S' THEN 'sequence' ELSE 'type' END,
      c.relname,
      concat_ws(' ',
        CASE c.relpersistence WHEN 'u' THEN 'unlogged' END,
        'partition by ' || pg_get_partkeydef(c.oid),
        'as ' || (SELECT string_agg(i.inhparent::regclass::text, ', ' ORDER BY i.inhseqno)
          FROM pg_inherits i WHERE i.inhrelid = c.oid),
        pg_get_expr(c.relpartbound, c.oid),
        CASE WHEN c.relrowsecurity THEN 'row security' END,
        CASE WHEN c.relforcerowsecurity THEN 'forced' END,
        CASE WHEN c.relreplident NOT IN ('d', 'i') THEN 'replica identity ' || c.relreplident::text END,
        'with (' || (SELECT string_agg(o, ', ' ORDER BY o) FROM unnest(c.reloptions) o) || ')',
        CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid, true) END,
        (SELECT format('%s from %s by %s between %s and %s cache %s%s', format_type(s.seqtypid, NULL),
            s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
            CASE WHEN s.seqcycle THEN ' cycle' END)
          FROM pg_sequence s WHERE s.seqrelid = c.oid),
        'owned by ' || (SELECT d.refobjid::regclass::text || '.' || quote_ident(a.attname)
          FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
          WHERE c.relkind = 'S' AND d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
            AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')),
        'comment ' || quote_literal(obj_description(c.oid, 'pg_class')))
    FROM pg_class c
    WHERE c.relnamespace = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')
    """,
    """
    SELECT 'column', quote_ident(c.relname) || '.' || quote_ident(a.attname),
      concat_ws(' ',
        format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.attcollation <> t.typcollation THEN 'collate ' || a.attcollation::regcollation::text END,
        CASE WHEN a.attnotnull THEN 'not null' END,
        (SELECT concat_ws(' ', CASE WHEN NOT n.convalidated THEN 'not valid' END,
            CASE WHEN n.connoinherit THEN 'no inherit' END)
          FROM pg_constraint n WHERE n.conrelid = c.oid AND n.contype = 'n' AND n.conkey = ARRAY[a.attnum]),
        CASE WHEN a.attgenerated <> '' THEN 'generated (' || a.attgenerated::text || ')' END,
        CASE WHEN a.attidentity <> '' THEN 'identity (' || a.attidentity::text || ')' END,
        'default ' || pg_get_expr(d.adbin, d.adrelid),
        'comment ' || quote_literal(col_description(c.oid, a.attnum)))
    FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND a.attnum > 0
      AND NOT a.attisdropped
    """,
    # PostgreSQL 18 has a constraint for each NOT NULL, too; the column tells that already. Where something is
    # cast to text, a dump writes the casts in other places.
    """
    SELECT 'constraint', quote_ident(coalesce(c.relname, t.typname)) || '.' || quote_ident(k.conname),
      concat_ws(' ',
        regexp_replace(pg_get_constraintdef(k.oid, true), '::(character varying|text)(\\[\\])?', '', 'g'),
        'triggers ' || (SELECT string_agg(DISTINCT g.tgenabled::text, '') FROM pg_trigger g
          WHERE g.tgconstraint = k.oid AND g.tgenabled <> 'O'))
    FROM pg_constraint k
    LEFT JOIN pg_class c ON c.oid = k.conrelid
    LEFT JOIN pg_type t ON t.oid = k.contypid
    WHERE k.connamespace = $1 AND k.contype NOT IN ('n', 't')
    """,
    """
    SELECT 'index', c.relname,
      concat_ws(' ',
        regexp_replace(pg_get_indexdef(i.indexrelid, 0, true), '::(character varying|text)(\\[\\])?', '',
          'g'),
        CASE WHEN NOT i.indisvalid THEN 'invalid' END,
        CASE WHEN i.indisreplident THEN 'replica identity' END)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relnamespace = $1
    """,
    """
    SELECT CASE t.typtype WHEN 'e' THEN 'enum' WHEN 'd' THEN 'domain' ELSE 'range' END, t.typname,
      concat_ws(' ',
        (SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
          FROM pg_enum e WHERE e.enumtypid = t.oid),
        CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END,
        CASE WHEN t.typtype = 'd' AND t.typnotnull THEN 'not null' END,
        CASE WHEN t.typtype = 'd' THEN 'default ' || coalesce(pg_get_expr(t.typdefaultbin, 0), t.typdefault)
        END,
        CASE WHEN t.typcollation <> 0 THEN 'collate ' || t.typcollation::regcollation::text END,
        (SELECT format_type(r.rngsubtype, NULL) || ' ' || r.rngcollation
          FROM pg_range r WHERE r.rngtypid = t.oid))
    FROM pg_type t
    WHERE t.typnamespace = $1 AND t.typtype IN ('e', 'd', 'r')
    """,
    """
    SELECT CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END,
      p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
      concat_ws(' ',
        'returns ' || pg_get_function_result(p.oid), 'arguments ' || pg_get_function_arguments(p.oid),
        'language ' || l.lanname, p.provolatile, p.proparallel,
        CASE WHEN p.proisstrict THEN 'strict' END, CASE WHEN p.prosecdef THEN 'security definer' END,
        CASE WHEN p.proleakproof THEN 'leakproof' END,
        'set ' || replace(
          replace(array_to_string(p.proconfig, ', '), '"' || replace(s.nspname, '"', '""') || '"',
            '(its own)'),
          quote_ident(s.nspname), '(its own)'),
        (SELECT concat_ws(' ', a.aggkind, a.aggtransfn::regproc, a.aggfinalfn::regproc,
            a.aggcombinefn::regproc, format_type(a.aggtranstype, NULL),
            'from ' || quote_literal(a.agginitval))
          FROM pg_aggregate a WHERE a.aggfnoid = p.oid),
        'as ' || coalesce(pg_get_function_sqlbody(p.oid), p.prosrc))
    FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang JOIN pg_namespace s ON s.oid = p.pronamespace
    WHERE p.pronamespace = $1
    """,
    """
    SELECT 'trigger', quote_ident(c.relname) || '.' || quote_ident(t.tgname),
      pg_get_triggerdef(t.oid, true) || ' (' || t.tgenabled::text || ')'
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relnamespace = $1 AND NOT t.tgisinternal
    """,
    """
    SELECT 'policy', quote_ident(c.relname) || '.' || quote_ident(p.polname),
      concat_ws(' ',
        CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END, 'for ' || p.polcmd::text,
        'to ' || (SELECT string_agg(CASE r.oid WHEN 0 THEN 'public' ELSE r.oid::regrole::text END, ', '
            ORDER BY r.oid)
          FROM unnest(p.polroles) r(oid)),
        'using ' || pg_get_expr(p.polqual, p.polrelid),
        'with check ' || pg_get_expr(p.polwithcheck, p.polrelid))
    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
    WHERE c.relnamespace = $1
    """,
    """
    SELECT 'rule', quote_ident(c.relname) || '.' || quote_ident(r.rulename),
      pg_get_ruledef(r.oid, true) || ' (' || r.ev_enabled::text || ')'
    FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
    WHERE c.relnamespace = $1 AND r.rulename <> '_RETURN'
    """,
    """
    SELECT 'statistics', s.stxname,
      s.stxrelid::regclass::text || ' (' || pg_get_statisticsobjdef_columns(s.oid) || ') '
        || array_to_string(s.stxkind, '')
    FROM pg_statistic_ext s
    WHERE s.stxnamespace = $1
    """,
    """
    SELECT 'operator',
      concat(o.oprname, ' (', format_type(o.oprleft, NULL), ', ', format_type(o.oprright, NULL), ')'),
      o.oprcode::regproc::text
    FROM pg_operator o
    WHERE o.oprnamespace = $1
    """,
    """
    SELECT 'collation', c.collname, concat_ws(' ', c.collprovider, c.collisdeterministic, c.collcollate)
    FROM pg_collation c
    WHERE c.collnamespace = $1
    """,
    """
    SELECT 'text search configuration', c.cfgname, c.cfgparser::text
    FROM pg_ts_config c
    WHERE c.cfgnamespace = $1
    """,
)

_OBJECTS = " UNION ALL ".join(
    f"SELECT kind::text, name::text, definition::text FROM ({part}) AS part(kind, name, definition)"
    for part in _PARTS
)
_HASH, _ROWS = "multitenant_catalogue_hash", "multitenant_catalogue_rows"
_PREPARE = {
    _HASH: f"PREPARE {_HASH} (oid) AS "
    "SELECT md5(coalesce(string_agg(concat_ws(E'\\x01', kind, name, definition), E'\\x02' "
    f'ORDER BY kind COLLATE "C", name COLLATE "C", definition COLLATE "C"), \'\')) FROM ({_OBJECTS}) o',
    _ROWS: f"PREPARE {_ROWS} (oid) AS {_OBJECTS}",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """An object that is not as it should be.

    Attributes:
        kind: what it is: table, column, constraint, index, enum, function...
        name: its name; a column's is `table.column`.
        expected: its definition after the revisions; None where there should be no such object.
        found: its definition in the schema; None where it is missing.
    """

    kind: str
    name: str
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.kind} {self.name} is missing"
        if self.expected is None:
            return f"{self.kind} {self.name} is in no revision"
        return f"{self.kind} {self.name} is {self.found!r} instead of {self.expected!r}"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All objects of one schema: kind and name to definition."""

    objects: Mapping[tuple[str, str], str]

    def compare(self, found: Catalogue) -> list[Difference]:
        """What `found` has otherwise, in order."""
        keys = sorted(self.objects.keys() | found.objects.keys())
        pairs = [(key, self.objects.get(key), found.objects.get(key)) for key in keys]
        return [Difference(*key, expected, there) for key, expected, there in pairs if expected != there]


class CatalogueReader:
    """Reads catalogues over one connection, which has to stay: it prepares its statements there.

    Args:
        driver: in no transaction, unless it is in the one whose schemas are to be read.
    """

    def __init__(self, driver: psycopg.Connection[Any]) -> None:
        self._driver = driver
        self._prepared: set[str] = set()

    @classmethod
    def on(cls, connection: Connection) -> Self:
        """One on the driver's connection below a connection of SQLAlchemy's."""
        return cls(connection.connection.driver_connection)  # type: ignore[arg-type]

    @classmethod
    @contextmanager
    def over(cls, connection: Connection) -> Iterator[Self]:
        """One on a connection of SQLAlchemy's, for a while."""
        reader = cls.on(connection)
        try:
            yield reader
        finally:
            with suppress(StatementError, psycopg.Error):  # after an error, the server refuses this as well
                reader.close()

    def close(self) -> None:
        """Forget the statements."""
        send_all(self._driver, [f"DEALLOCATE {name}".encode() for name in self._prepared])
        self._prepared.clear()

    def read_hash(self, schema: SchemaName) -> str:
        """32 hexadecimal digits: the same for two schemas whose catalogues are. One round trip."""
        (row,) = self._execute(_HASH, schema)
        return row[0]

    def read(self, schema: SchemaName) -> Catalogue:
        """The objects themselves."""
        return Catalogue(
            {(kind, name): definition for kind, name, definition in self._execute(_ROWS, schema)}
        )

    def _execute(self, statement: str, schema: SchemaName) -> Iterable[tuple[str, ...]]:
        quoted = quote_ident(schema)
        in_transaction = self._driver.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
        begin, end = ["BEGIN READ ONLY"], ["ROLLBACK"]
        if in_transaction:
            begin, end = ["SAVEPOINT catalogue"], ["ROLLBACK TO catalogue", "RELEASE catalogue"]
        if statement not in self._prepared:
            begin = [_PREPARE[statement], *begin]  # outlives the transaction
            self._prepared.add(statement)
        path = f"SET LOCAL search_path TO {quoted}"
        execute = f"EXECUTE {statement} ({quote_literal(quoted)}::regnamespace::oid)"
        results = send_all(self._driver, [sql.encode() for sql in (*begin, path, execute, *end)])
        found = results[len(begin) + 1]
        return [
            tuple((found.get_value(row, column) or b"").decode() for column in range(found.nfields))
            for row in range(found.ntuples)
        ]
