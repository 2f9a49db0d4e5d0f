"""Rows as objects of a class of the application's."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, cast, get_args, get_origin

from ..errors import ConfigurationError

R = TypeVar("R")


@dataclass(frozen=True)
class RowClass(Generic[R]):
    """What has to be known about a class to make rows of it.

    Attributes:
        cls: the class.
        required: the columns that there must be.
        allowed: those and the ones that have a default.
        checked: the classes that a column's values may be of, where the annotation tells.
    """

    cls: type[R]
    required: frozenset[str]
    allowed: frozenset[str]
    checked: Mapping[str, tuple[type, ...]]

    @classmethod
    def of(cls, row_class: type[R]) -> RowClass[R]:
        """
        Raises:
            ConfigurationError: it is none of the kinds of class that are known here.
        """
        fields = _fields(row_class)
        if fields is None:
            raise ConfigurationError(
                "into", row_class, "a NamedTuple, a dataclass, a TypedDict or a pydantic model"
            )
        hints = {} if _is_pydantic(row_class) else _hints(row_class)
        checked = {name: kinds for name in fields if (kinds := _kinds(hints.get(name))) is not None}
        required = frozenset(name for name, is_required in fields.items() if is_required)
        return cls(row_class, required, frozenset(fields), checked)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Make sure that a result has what the class needs, and nothing else.

        Raises:
            ConfigurationError: a column is missing, is there twice, or fits no field.
        """
        twice = sorted({name for name in columns if columns.count(name) > 1})
        missing = sorted(self.required - set(columns))
        unknown = sorted(set(columns) - self.allowed)
        found = [
            f"{what} {', '.join(names)}"
            for what, names in (
                ("two columns called", twice),
                ("no column", missing),
                ("no field for", unknown),
            )
            if names
        ]
        if found:
            raise ConfigurationError(
                "into",
                self.cls.__name__,
                f"the query returned {'; '.join(found)} (columns: {', '.join(columns)}); name them with AS",
            )

    def make(self, values: dict[str, Any]) -> R:
        """An object for one row.

        Raises:
            ConfigurationError: a value is not of the class that its field is annotated with.
            pydantic.ValidationError: a pydantic model refused it.
        """
        for name, kinds in self.checked.items():
            if name in values and not isinstance(values[name], kinds):
                expected = " | ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
                raise ConfigurationError(
                    f"{self.cls.__name__}.{name}",
                    values[name],
                    f"the query returned {type(values[name]).__name__}, and the field is {expected}; "
                    "cast it in SQL, or annotate what it is",
                )
        if _is_pydantic(self.cls):
            return cast("R", self.cls.model_validate(values))  # type: ignore[attr-defined]
        return self.cls(**values)


def _is_pydantic(row_class: type[Any]) -> bool:
    return isinstance(getattr(row_class, "model_fields", None), dict)


def _fields(row_class: Any) -> dict[str, bool] | None:
    """The names of the class's fields, and whether each must be given; None for another kind of class."""
    if _is_pydantic(row_class):
        # Under its alias a field is given to the model.
        return {f.alias or name: f.is_required() for name, f in row_class.model_fields.items()}
    if dataclasses.is_dataclass(row_class):
        default, factory = dataclasses.MISSING, dataclasses.MISSING
        return {
            f.name: f.default is default and f.default_factory is factory
            for f in dataclasses.fields(row_class)
            if f.init
        }
    if typing.is_typeddict(row_class):
        return {name: _is_required(row_class, name) for name in row_class.__annotations__}
    if isinstance(names := getattr(row_class, "_fields", None), tuple):
        return {name: name not in row_class._field_defaults for name in names}
    return None


def _is_required(typed_dict: Any, name: str) -> bool:
    # Where annotations are text, the class itself does not know.
    mark = get_origin(_hints(typed_dict, include_extras=True).get(name))
    return mark is typing.Required or (
        name in typed_dict.__required_keys__ and mark is not typing.NotRequired
    )


def _hints(row_class: type[Any], *, include_extras: bool = False) -> dict[str, Any]:
    try:
        return typing.get_type_hints(row_class, include_extras=include_extras)
    except (NameError, TypeError):
        return {}  # annotations that are not to be had here, such as those of a class within a function


def _kinds(hint: Any) -> tuple[type, ...] | None:
    """The classes of a plain annotation (`int`, `str | None`); None for one that says more than that."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_kinds(part) for part in get_args(hint)]
        return None if None in parts else tuple(kind for part in parts if part for kind in part)
    kind = get_origin(hint) or hint
    try:
        isinstance(None, kind)
    except TypeError:
        return None  # Any, Literal, a NewType, a Protocol, or no annotation at all
    return (int, float) if kind is float else (kind,)
