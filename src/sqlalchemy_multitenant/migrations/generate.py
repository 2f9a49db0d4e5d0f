"""Writes revisions: compares the models with what the existing revisions build, in a scratch schema.

Everything happens in one transaction that is rolled back, so no tenant is needed and none is touched.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from alembic.autogenerate.api import RevisionContext
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, MetaData, text
from sqlalchemy.exc import DBAPIError

from ..catalog.table import OWN_PREFIX
from ..config import TenantConfig
from ..errors import MigrationError
from ..isolation.run import run_sql
from ..naming import SchemaName, quote_ident, quote_literal
from .enums import add_enums, enums_of, read_enums
from .environment import GENERATE_OPTIONS
from .history import ALEMBIC_LOCK, History
from .plan import Timeouts
from .renames import find_renames
from .report import SHARED
from .scratch import Scratch, scratch_name
from .templates import SCRIPT_TEMPLATE, SQL_TEMPLATE

Kind = Literal["tenant", "shared"]


@dataclass(frozen=True, slots=True)
class GeneratedRevision:
    """A revision that was written.

    Attributes:
        kind: `tenant` or `shared`.
        revision: its id.
        path: its file.
        changes: what it changes, a line each.
        warnings: what in it may lose data, a line each.
    """

    kind: str
    revision: str
    path: Path
    changes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def generate(
    config: TenantConfig,
    engine: Engine,
    tenant_history: History,
    shared_history: History,
    *,
    name: str,
    kind: Kind | None = None,
) -> list[GeneratedRevision]:
    """Write a revision for what has changed in the models: shared, then tenant; of `kind` alone if given.
    Where nothing has changed, nothing is written.

    Args:
        engine: a plain engine; one connection of it is used.
        name: what the revision is about; part of the file's name.

    Raises:
        MigrationError: the models cannot be compared, or an existing revision fails.
    """
    name = _parse_name(name)
    if kind not in (None, "tenant", SHARED):
        raise MigrationError(f"type {kind!r} is neither 'tenant' nor 'shared'")
    for history in (shared_history, tenant_history):
        if kind in (None, history.label):
            _require_one_head(history)
    schemas = config.schemas
    shared = scratch_name(SHARED)
    tenant = scratch_name("tenant")
    shared_path, tenant_path = schemas.search_path(shared=shared), schemas.search_path(tenant, shared=shared)
    written: list[GeneratedRevision] = []
    with engine.connect() as connection:
        # Two at once would give one number twice.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('multitenant generate'))"))
        try:
            scratch = Scratch(connection, Timeouts.of(config))
            comparison = _Comparison(connection, config.migrations.revision_ids)
            scratch.build(shared_history, shared, shared_path)
            if kind in (None, SHARED) and schemas.shared:
                models = [_without_schema(m, schemas.shared_schema) for m in schemas.shared]
                written += comparison.compare(shared_history, shared, models, name)
                if written:
                    # The tenants' foreign keys may point at the tables that were just added.
                    scratch.build(shared_history, shared, shared_path)
            if kind in (None, "tenant"):
                tenant_history.config.attributes["requires_shared"] = next(iter(shared_history.heads()), None)
                scratch.build(tenant_history, tenant, tenant_path)
                written += comparison.compare(tenant_history, tenant, schemas.tenant, name)
        except BaseException:
            for revision in written:
                revision.path.unlink(missing_ok=True)
            raise
        finally:
            connection.rollback()
    return written


def _require_one_head(history: History) -> None:
    if len(heads := history.heads()) > 1:
        raise MigrationError(
            f"the {history.label} history has {len(heads)} heads, {', '.join(heads)}: "
            f"`multitenant generate --type {history.label} --sql --name merge` writes a revision that joins "
            "them"
        )


def _parse_name(name: str) -> str:
    """`name` as it can be part of a file's name, and of the docstring in it."""
    parsed = " ".join(name.replace('"', "'").replace("\\", "/").split())
    if not any(map(str.isalnum, parsed)):
        raise MigrationError("a revision needs a name: --name add-user-avatar")
    return parsed


def generate_sql(
    history: History, name: str, ids: str, *, requires_shared: str | None = None
) -> GeneratedRevision:
    """Write an empty revision for SQL.

    Args:
        requires_shared: the shared revision that has to be there first.

    Raises:
        MigrationError: there is no name, or an existing revision cannot be read.
    """
    name = _parse_name(name)
    prepare_folder(history.directory)
    revision, heads = next_id(history, ids), history.heads()
    down: str | tuple[str, ...] | None = heads if len(heads) > 1 else next(iter(heads), None)
    now = datetime.now().astimezone()
    what = "nothing yet: write its SQL"
    if len(heads) > 1:
        what = f"joins {', '.join(heads)}; needs nothing more, or write its SQL"
    path = history.script._rev_path(history.directory / "versions", revision, name, now)
    with path.open("x", encoding="utf-8") as file:
        file.write(
            SQL_TEMPLATE.format(
                message=name,
                revision=revision,
                after=", ".join(heads) or "-",
                down_revision=down,
                requires_shared=_requirement(requires_shared),
            )
        )
    history.reload()
    return GeneratedRevision(history.label, revision, path, (what,))


def _requirement(shared: str | None) -> str:
    if shared is None:
        return ""
    return f"# The shared revision that has to be there first.\nrequires_shared: str | None = {shared!r}\n"


def _without_schema(metadata: MetaData, shared_schema: str) -> MetaData:
    """A copy in which the shared schema's tables name no schema, as the scratch schema has another name."""
    copy = MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.sorted_tables:
        table.to_metadata(copy, schema=None if table.schema == shared_schema else table.schema)  # type: ignore[arg-type]
    return copy


class _Comparison:
    """What the models have, and a scratch schema lacks."""

    def __init__(self, connection: Connection, ids: str) -> None:
        self._connection, self._ids = connection, ids

    def compare(
        self, history: History, schema: SchemaName, models: Sequence[MetaData], name: str
    ) -> list[GeneratedRevision]:
        """Write a revision for the difference between `models` and `schema`."""
        own = set(
            self._connection.scalars(
                text(
                    "SELECT relname FROM pg_catalog.pg_class "
                    "WHERE relnamespace = CAST(:schema AS regnamespace)"
                ),
                {"schema": quote_ident(schema)},
            )
        )

        prepare_folder(history.directory)
        history.reload()
        directory = history.script  # reads the options as well
        theirs = history.options

        def include_name(name: str | None, kind: str, parents: Any) -> bool:
            # The search path shows other schemas' tables, too; only this schema's are compared.
            if kind == "table":
                bookkeeping = name == history.version_table or str(name).startswith(OWN_PREFIX)
                if name not in own or bookkeeping:
                    return False
            their_include = theirs.get("include_name")
            return their_include is None or bool(their_include(name, kind, parents))

        context = _revision_context(history, name, self._ids)

        def fn(heads: Any, migration: MigrationContext) -> Any:
            context.run_autogenerate(heads, migration)
            return []

        with (
            ALEMBIC_LOCK,
            EnvironmentContext(history.config, directory, fn=fn, dont_mutate=True) as environment,
        ):
            environment.configure(
                connection=self._connection,
                target_metadata=list(models),
                version_table=history.version_table,
                version_table_schema=schema,
                **{
                    "compare_server_default": True,
                    **{key: theirs[key] for key in GENERATE_OPTIONS if key in theirs},
                    "include_name": include_name,
                },
            )
            # On the object alone: Alembic picks the class by dialect, for the whole process.
            environment.get_context().impl.__class__ = _ComparingImpl
            environment.run_migrations()
        generated = context.generated_revisions[-1]
        operations = generated.upgrade_ops
        if operations is None:
            return []
        diffs = operations.as_diffs()
        changes = [_describe(diff) for diff in diffs]
        changes += add_enums(generated, enums_of(models), read_enums(self._connection, schema))
        if not changes:
            return []
        with ALEMBIC_LOCK:
            (script,) = [s for s in context.generate_scripts() if s is not None]
        history.reload()
        revision, path = str(script.revision), Path(script.path)
        return [GeneratedRevision(history.label, revision, path, tuple(changes), tuple(find_renames(diffs)))]


class _ComparingImpl(PostgresqlImpl):
    """Alembic's own, which compares a plain string as a default without quoting it."""

    def compare_server_default(
        self,
        inspector_column: Any,
        metadata_column: Any,
        rendered_metadata_default: Any,
        rendered_inspector_default: Any,
    ) -> bool:
        value = getattr(metadata_column.server_default, "arg", None)
        if not isinstance(value, str) or rendered_inspector_default is None or self.connection is None:
            return bool(
                super().compare_server_default(  # type: ignore[no-untyped-call]
                    inspector_column, metadata_column, rendered_metadata_default, rendered_inspector_default
                )
            )
        wanted = quote_literal(value)
        for found in (f"({rendered_inspector_default})", f"({rendered_inspector_default})::text"):
            try:
                with self.connection.begin_nested():
                    return not run_sql(self.connection, f"SELECT {found} = {wanted}").scalar()
            except DBAPIError:  # json, for one, has no equality
                continue
        return True


def _revision_context(history: History, name: str, ids: str) -> RevisionContext:
    return RevisionContext(
        history.config,
        history.script,
        {
            "message": name,
            "autogenerate": True,
            "sql": False,
            "head": "head",
            "splice": False,
            "branch_label": None,
            "version_path": None,
            "rev_id": next_id(history, ids),
            "depends_on": None,
        },
    )


_RANDOM_DIGITS = 12
"""Of a random id: as many as Alembic's have."""


def next_id(history: History, ids_kind: str) -> str:
    """The id of the next revision: one more than the highest number among the existing ids, in four
    digits; or twelve random ones, as Alembic makes them. `ids_kind` is `migrations.revision_ids`."""
    ids = [revision.id for revision in history.revisions()]
    # One in three hundred random ids has no letter.
    numbers = [int(revision) for revision in ids if revision.isdecimal() and len(revision) != _RANDOM_DIGITS]
    if ids_kind == "random" or (ids_kind == "auto" and ids and not numbers):
        return secrets.token_hex(_RANDOM_DIGITS // 2)
    return f"{max(numbers, default=0) + 1:04d}"


def prepare_folder(directory: Path) -> None:
    """Make the folder of a history, with Alembic's template for revisions."""
    (directory / "versions").mkdir(parents=True, exist_ok=True)
    template = directory / "script.py.mako"
    if not template.exists():
        template.write_text(SCRIPT_TEMPLATE, encoding="utf-8")


def _describe(diff: Any) -> str:
    """One of Alembic's difference tuples, in words."""
    if isinstance(diff, list):
        return "; ".join(_describe(part) for part in diff)
    what, *rest = diff
    words = what.replace("_", " ")
    if what in ("add_table", "remove_table"):
        return f"{words} {rest[0].name}"
    if what in ("add_column", "remove_column"):
        return f"{words} {rest[1]}.{rest[2].name}"
    if what.startswith("modify_"):
        return f"{words} of {rest[1]}.{rest[2]}"
    name = getattr(rest[0], "name", None) or ""
    table = getattr(getattr(rest[0], "table", None), "name", "")
    return f"{words} {name}{f' on {table}' if table else ''}".rstrip()
