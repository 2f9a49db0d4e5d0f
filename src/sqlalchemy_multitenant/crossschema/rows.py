"""Rows as objects of a class of the application's."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Generic, Literal, NewType, TypeAlias, TypeVar, Union, cast, get_args, get_origin

import typing_extensions

from ..errors import ConfigurationError

R = TypeVar("R")

Accepts: TypeAlias = Callable[[Any], bool]


@dataclass(frozen=True)
class RowField:
    """A field of a class.

    Attributes:
        names: of the column that it takes, one of these.
        is_required: whether there must be one.
        accepts: tells whether a value is what the field is annotated with; None where that is not known.
        shown: the annotation.
    """

    names: tuple[str, ...]
    is_required: bool
    accepts: Accepts | None = None
    shown: str = ""


@dataclass(frozen=True)
class RowClass(Generic[R]):
    """What has to be known about a class to make rows of it.

    Attributes:
        cls: the class.
        make: makes an object of keywords.
        fields: its fields.
        takes_others: whether it takes columns for which it has no field.
    """

    cls: type[R]
    make_of: Callable[[dict[str, Any]], R]
    fields: tuple[RowField, ...]
    takes_others: bool = False

    @classmethod
    def of(cls, row_class: type[R]) -> RowClass[R]:
        """
        Raises:
            ConfigurationError: it is none of the kinds of class that are known here.
        """
        plain: Any = get_origin(row_class) or row_class
        is_pydantic = isinstance(getattr(plain, "model_fields", None), dict)
        if is_pydantic and not plain.__pydantic_root_model__:
            return _of_pydantic(row_class)
        if typing_extensions.is_typeddict(plain):
            required = {name: _is_required(plain, name) for name in plain.__annotations__}
        elif isinstance(names := getattr(plain, "_fields", None), tuple):
            required = {name: name not in plain._field_defaults for name in names}
        elif isinstance(plain, type) and is_dataclass(plain):
            parameters = inspect.signature(plain).parameters.values()
            required = {p.name: p.default is p.empty for p in parameters}
        else:
            raise ConfigurationError(
                "into", row_class, "a NamedTuple, a dataclass, a TypedDict or a pydantic model"
            )
        given = dict(zip(getattr(plain, "__parameters__", ()), get_args(row_class), strict=False))
        fields = []
        for name, is_required in required.items():
            hint = _hint(plain, name)
            fields.append(RowField((name,), is_required, _accepts(hint, given), _shown(hint)))
        return cls(cast("type[R]", plain), lambda values: cast("R", plain(**values)), tuple(fields))

    def check_columns(self, columns: Sequence[str]) -> None:
        """Make sure that a result has what the class needs, and nothing else.

        Raises:
            ConfigurationError: a column is missing, is there twice, or fits no field.
        """
        there = set(columns)
        twice = sorted({name for name in columns if columns.count(name) > 1})
        missing = [
            field.names[0] for field in self.fields if field.is_required and not there & set(field.names)
        ]
        known = {name for field in self.fields for name in field.names}
        unknown = [] if self.takes_others else sorted(there - known)
        found = [
            f"{what} {', '.join(names)}"
            for what, names in (
                ("two columns called", twice),
                ("no column", sorted(missing)),
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
            ConfigurationError: a value is not what its field is annotated with.
            pydantic.ValidationError: a pydantic model refused it.
        """
        for field in self.fields:
            name = field.names[0]
            if field.accepts is not None and name in values and not field.accepts(values[name]):
                raise ConfigurationError(
                    f"{self.cls.__name__}.{name}",
                    values[name],
                    f"the query returned {type(values[name]).__name__}, and the field is {field.shown}; "
                    "cast it in SQL, or annotate what it is",
                )
        return self.make_of(values)


def _of_pydantic(model: Any) -> RowClass[Any]:
    """pydantic checks values by itself; names may be aliases."""
    config = model.model_config
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    fields = []
    for name, field in model.model_fields.items():
        alias = field.validation_alias or field.alias
        names = [part for part in getattr(alias, "choices", [alias]) if isinstance(part, str)]
        names += [name] if by_name or not names else []
        fields.append(RowField(tuple(names), field.is_required()))
    return RowClass(model, model.model_validate, tuple(fields), takes_others=config.get("extra") == "allow")


def _is_required(typed_dict: Any, name: str) -> bool:
    # Where annotations are text, the class itself does not know.
    mark = get_origin(_hint(typed_dict, name, include_extras=True))
    if mark in (typing.Required, typing_extensions.Required):
        return True
    optional = mark in (typing.NotRequired, typing_extensions.NotRequired)
    return name in typed_dict.__required_keys__ and not optional


def _hint(cls: Any, name: str, *, include_extras: bool = False) -> Any:
    """A field's annotation; None where it cannot be had, such as a name that only type checkers import."""
    for base in cls.__mro__ if isinstance(cls, type) else (cls,):
        annotation = vars(base).get("__annotations__", {}).get(name)
        if annotation is None:
            continue
        alone = SimpleNamespace(__annotations__={name: annotation})
        names = vars(sys.modules.get(base.__module__, SimpleNamespace()))
        try:
            return typing.get_type_hints(alone, names, include_extras=include_extras)[name]
        except (NameError, TypeError, AttributeError):
            return None
    return None


def _accepts(hint: Any, given: Mapping[Any, Any]) -> Accepts | None:  # noqa: PLR0911 - one for each kind
    """What tells whether a value is what `hint` says; None where nobody can.

    Args:
        given: what a generic class was given for its type variables.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        parts = [_accepts(part, given) for part in arguments]
        return None if None in parts else lambda value: any(part(value) for part in parts if part)
    if origin is Literal:
        return lambda value: value in arguments
    if isinstance(hint, NewType):
        return _accepts(hint.__supertype__, given)
    if isinstance(hint, TypeVar):
        return _accepts(given[hint], given) if hint in given else None
    if origin in (list, dict) and arguments:
        inner = _accepts(arguments[-1], given)
        if origin is list:
            return lambda value: isinstance(value, list) and (inner is None or all(map(inner, value)))
        return lambda value: isinstance(value, dict) and (inner is None or all(map(inner, value.values())))
    kind = origin or hint
    try:
        isinstance(None, kind)
    except TypeError:
        return None  # Any, a Protocol, or no annotation at all
    kinds = (int, float) if kind is float else kind
    return lambda value: isinstance(value, kinds)


def _shown(hint: Any) -> str:
    if hint is NoneType:
        return "None"
    return (
        hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
    )
