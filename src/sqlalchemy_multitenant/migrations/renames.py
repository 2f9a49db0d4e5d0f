"""Renames: to a comparison with a database they look like something dropped and something added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Column, Table


def find_renames(diffs: Sequence[Any]) -> Iterator[str]:
    """Warnings about what may be a rename, in which case the data would be lost.

    Args:
        diffs: difference tuples of Alembic's autogenerate.
    """
    yield from _tables([d for d in diffs if isinstance(d, tuple)])
    yield from _columns([d for d in diffs if isinstance(d, tuple)])


def _tables(diffs: Sequence[tuple[Any, ...]]) -> Iterator[str]:
    added: list[Table] = [d[1] for d in diffs if d[0] == "add_table"]
    for dropped in (d[1] for d in diffs if d[0] == "remove_table"):
        for table in added:
            if set(table.columns.keys()) == set(dropped.columns.keys()):
                yield (
                    f"table {dropped.name} is dropped, with its rows, and {table.name} of the same columns "
                    "added: if it was renamed, write instead "
                    f"op.rename_table({dropped.name!r}, {table.name!r})"
                )


def _columns(diffs: Sequence[tuple[Any, ...]]) -> Iterator[str]:
    added: list[tuple[str, Column[Any]]] = [(d[2], d[3]) for d in diffs if d[0] == "add_column"]
    for name, dropped in ((d[2], d[3]) for d in diffs if d[0] == "remove_column"):
        for table, column in added:
            if table == name and str(column.type) == str(dropped.type):
                yield (
                    f"column {table}.{dropped.name} is dropped, with its values, and {column.name} of the "
                    "same type added: if it was renamed, write instead "
                    f"op.alter_column({table!r}, {dropped.name!r}, new_column_name={column.name!r})"
                )
