"""The catalog's table, and the SQL that installs it.

Beside the table stands the *epoch*: a type without attributes whose name changes, in the same
transaction, whenever a tenant's status or schema does. A process that has read a tenant's record
may go on using it for as long as the type still has the name that it was read with; each BEGIN checks
that. Looking a name up costs PostgreSQL a fifth of what reading a row does (10 against 55 us,
PostgreSQL 18), and it is exact: what another process has committed holds from the next BEGIN on.
"""

from __future__ import annotations

from ..naming import quote_ident, quote_literal

TABLE = "multitenant_tenants"
EPOCH_PREFIX = "multitenant_epoch_"
# A range, which the index over names serves: many tenants have many relations. A backquote comes after
# an underscore, since names are compared byte by byte.
_IS_EPOCH = "c.relname >= 'multitenant_epoch_' AND c.relname < 'multitenant_epoch`'"
OWN_PREFIX = "multitenant_"
"""Relations of the toolkit's own begin so; migrations leave them alone."""


def qualified(shared_schema: str, name: str) -> str:
    """`name` in the shared schema, quoted."""
    return f"{quote_ident(shared_schema)}.{quote_ident(name)}"


def epoch_sql(shared_schema: str) -> str:
    """An expression: the name of the type that marks the present state of the catalog, as text."""
    return (
        "(SELECT c.relname::text FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname = {quote_literal(shared_schema)} AND c.relkind = 'c' AND {_IS_EPOCH})"
    )


def usable_sql(schema: str) -> str:
    """A SELECT of two texts: `true` or `false`, whether this role may use the schema, and its OID; no row
    where there is none. `schema` is an expression. PostgreSQL passes over a schema of the search path that
    the role may not use, without a word
    (https://www.postgresql.org/docs/current/ddl-schemas.html#DDL-SCHEMAS-PATH).
    """
    return (
        "SELECT has_schema_privilege(n.oid, 'USAGE')::text, n.oid::text "
        f"FROM pg_catalog.pg_namespace n WHERE n.nspname = {schema}"
    )


def lookup_sql(shared_schema: str, tenant: str) -> str:
    """A SELECT of (status, schema name, epoch, whether the schema is usable) of one tenant, all text."""
    return (
        f"SELECT t.status::text, t.schema_name::text, {epoch_sql(shared_schema)}, "
        "(SELECT has_schema_privilege(n.oid, 'USAGE')::text FROM pg_catalog.pg_namespace n "
        "WHERE n.nspname = t.schema_name) "
        f"FROM {qualified(shared_schema, TABLE)} t WHERE t.id = {quote_literal(tenant)}"
    )


def installed_epoch_sql(shared_schema: str) -> str:
    """A SELECT of the epoch; NULL where the catalog is not there, or not whole."""
    return (
        f"SELECT CASE WHEN to_regclass({quote_literal(qualified(shared_schema, TABLE))}) IS NOT NULL "
        f"THEN {epoch_sql(shared_schema)} END"
    )


def make_schema_sql(name: str) -> str:
    """A statement that makes a schema where it is missing. Not IF NOT EXISTS alone: that needs the right to
    create schemas even where it is there."""
    schema = quote_ident(name)
    return (
        f"DO $do$ BEGIN IF to_regnamespace({quote_literal(schema)}) IS NULL THEN "
        f"EXECUTE {quote_literal('CREATE SCHEMA ' + schema)}; END IF; END $do$"
    )


def plan_install(shared_schema: str) -> list[str]:
    """The statements that install the catalog, each harmless where it is there already. To be run in
    one transaction under a lock, since CREATE ... IF NOT EXISTS fails when two run at once."""
    table = qualified(shared_schema, TABLE)
    bump = qualified(shared_schema, "multitenant_bump_epoch")
    prefix = quote_literal(EPOCH_PREFIX)
    return [
        make_schema_sql(shared_schema),
        f"""CREATE TABLE IF NOT EXISTS {table} (
    id text PRIMARY KEY,
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended', 'dropped')),
    schema_name text UNIQUE,
    metadata jsonb NOT NULL DEFAULT '{{}}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    dropped_at timestamptz,
    CHECK (status = 'dropped' OR schema_name IS NOT NULL)
)""",
        f"""DO $do$ BEGIN IF {epoch_sql(shared_schema)} IS NULL THEN
    CREATE TYPE {qualified(shared_schema, EPOCH_PREFIX + "0")} AS ();
END IF; END $do$""",
        # SECURITY DEFINER: whoever may update the table must be able to rename the type.
        # The name comes through ::regclass, which sees what others have just committed, while a
        # query's snapshot under REPEATABLE READ may be older.
        f"""CREATE OR REPLACE FUNCTION {bump}() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    epoch oid;
    next text := {prefix} || pg_current_xact_id();
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('multitenant epoch'), TG_RELID::int);
    SELECT c.oid INTO STRICT epoch FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = TG_TABLE_SCHEMA AND c.relkind = 'c' AND {_IS_EPOCH};
    IF epoch::regclass::text <> format('%I.%I', TG_TABLE_SCHEMA, next) THEN
        EXECUTE format('ALTER TYPE %s RENAME TO %I', epoch::regclass, next);
    END IF;
    RETURN NULL;
END $body$""",
        # By value, not by column list: another trigger may change what the statement does not name.
        f"CREATE OR REPLACE TRIGGER multitenant_bump_epoch AFTER UPDATE ON {table} FOR EACH ROW "
        "WHEN ((OLD.id, OLD.status, OLD.schema_name) IS DISTINCT FROM (NEW.id, NEW.status, NEW.schema_name)) "
        f"EXECUTE FUNCTION {bump}()",
        f"CREATE OR REPLACE TRIGGER multitenant_bump_epoch_gone AFTER DELETE ON {table} FOR EACH STATEMENT "
        f"EXECUTE FUNCTION {bump}()",
        f"CREATE OR REPLACE TRIGGER multitenant_bump_epoch_all AFTER TRUNCATE "
        f"ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {bump}()",
        # ALWAYS: also for changes that replication, or a restore, applies.
        *(
            f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}"
            for name in (
                "multitenant_bump_epoch",
                "multitenant_bump_epoch_gone",
                "multitenant_bump_epoch_all",
            )
        ),
    ]
