"""Which statements may wait for a lock while those before them hold others, and for how long.

PostgreSQL's `lock_timeout` counts for each lock
(https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-LOCK-TIMEOUT): a transaction that
waits for one table after the other would have the traffic on the first wait for the sum. Of a statement that
names several tables itself (DROP TABLE a, b) each has the whole time.
"""

from __future__ import annotations

import re

_LEAST_MS = 100
"""How long a statement may wait in any case: work that took its time is not thrown away for a short lock."""

_NAME = r'(?:ONLY\s+)?(?P<{}>(?:"[^"]+"|[\w$]+)(?:\.(?:"[^"]+"|[\w$]+))?)'
_LOCKS = re.compile(
    r"\s*(?:"
    rf"(?:ALTER|DROP)\s+TABLE\s+(?:IF\s+EXISTS\s+)?{_NAME.format('table')}"
    rf"|CREATE\s+(?:UNIQUE\s+)?INDEX\b[^()]*?\sON\s+{_NAME.format('indexed')}"
    rf"|(?:UPDATE|DELETE\s+FROM|INSERT\s+INTO|MERGE\s+INTO)\s+{_NAME.format('changed')}"
    r"|ALTER\b|CREATE\s+TABLE\b.*\bREFERENCES\b|CREATE\s+(?:OR\s+REPLACE\s+)?(?:TRIGGER|RULE|POLICY|VIEW)\b"
    r"|CLUSTER\b|DROP\b|LOCK\b|REINDEX\b|TRUNCATE\b"
    r")",
    re.IGNORECASE | re.DOTALL,
)


_REFERENCES = re.compile(r"\bREFERENCES\b", re.IGNORECASE)
_OWN_TIMEOUT = re.compile(r"\block_timeout\b", re.IGNORECASE)


class LockOrder:
    """The tables that the statements of one transaction lock, as they come. Where a revision sets the timeout
    itself, that counts."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._is_set = False

    def may_wait(self, sql: str) -> bool:
        """Whether the next statement may wait for another lock than those that are held."""
        if _OWN_TIMEOUT.search(sql):
            self._is_set = True
        match = _LOCKS.match(sql)
        if match is None:
            return False
        is_first = self._last is None
        table = next(filter(None, match.groups()), "")
        is_known = bool(table) and table == self._last and not _REFERENCES.search(sql)
        self._last = table
        return not is_first and not is_known and not self._is_set


def renewal_sql(lock_s: float) -> str:
    """The statement that leaves the rest of a transaction's lock timeout to what follows."""
    whole_ms = max(round(lock_s * 1000), 1)
    passed = "extract(epoch FROM clock_timestamp() - transaction_timestamp()) * 1000"
    left = f"least({whole_ms}, greatest({_LEAST_MS}, {whole_ms} - {passed}))::int::text"
    return f"SELECT set_config('lock_timeout', {left}, true)"
