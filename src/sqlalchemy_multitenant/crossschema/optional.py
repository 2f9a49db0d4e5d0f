"""`optional()`: says of a column that an outer join may leave it without a value."""

from __future__ import annotations

from typing import Any, Generic, TypeAlias, TypeVar

from sqlalchemy import SQLColumnExpression
from sqlalchemy.sql.roles import TypedColumnsClauseRole

T = TypeVar("T")

Entity: TypeAlias = TypedColumnsClauseRole[T] | SQLColumnExpression[T] | type[T]
"""A column, an expression or a mapped class, whose value in a row is a `T`."""


class Optional(Generic[T]):
    """An entity whose value in a row may be None; made by `optional()`."""

    __slots__ = ("entity",)

    def __init__(self, entity: Any) -> None:
        self.entity = entity

    def __repr__(self) -> str:
        return f"optional({self.entity})"


def optional(entity: Entity[T | None]) -> Optional[T | None]:
    """Mark what `CrossSchemaQuery.select()` is given as standing on the optional side of an outer join.

    Python's types cannot know on which side of a join a column stands; the query does, and holds the marks
    against it: one that is missing, or one too many, raises when the query is built.

    Args:
        entity: a column, an expression or a mapped class. Its type in the rows becomes `T | None`.
    """
    return Optional(entity)
