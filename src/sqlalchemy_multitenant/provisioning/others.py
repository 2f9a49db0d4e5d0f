"""Whether what makes a schema has read or changed anything outside of it."""

from __future__ import annotations

from sqlalchemy import Connection, text

from ..naming import SchemaName

# The counts of this transaction, and of earlier ones of the session that were not reported yet: hence the
# difference
# (https://www.postgresql.org/docs/current/monitoring-stats.html).
_COUNTS = """
SELECT CASE WHEN current_setting('track_counts') = 'on' THEN coalesce(md5(string_agg(concat_ws(' ',
    relid, seq_scan, idx_scan, n_tup_ins, n_tup_upd, n_tup_del), ',' ORDER BY relid)), '') END
FROM pg_catalog.pg_stat_xact_user_tables
WHERE schemaname <> :schema
  AND (seq_scan > 0 OR idx_scan > 0 OR n_tup_ins > 0 OR n_tup_upd > 0 OR n_tup_del > 0)
"""


class OtherTables:
    """Watches the tables of all schemas but one, and but the system's."""

    def __init__(self, connection: Connection, schema: SchemaName) -> None:
        """`schema` is about to be made in the connection's transaction."""
        self._connection, self._schema = connection, schema
        self._before = self._count()

    def _count(self) -> object:
        return self._connection.scalar(text(_COUNTS), {"schema": self._schema})

    def were_touched(self) -> bool:
        """Whether any of them was read or changed since, or whether that cannot be told."""
        return self._before is None or self._count() != self._before
