"""Checks of what a user has given."""

from __future__ import annotations

import math

from .errors import ConfigurationError


def check(ok: bool, name: str, value: object, reason: str) -> None:
    """Raise a `ConfigurationError` unless `ok`.

    Args:
        ok: whether the value will do.
        name: of the setting.
        value: what was given.
        reason: what it ought to be.
    """
    if not ok:
        raise ConfigurationError(name, value, reason)


def is_number(value: object) -> bool:
    """Whether it is an int or a float; neither a bool nor a NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def is_finite(value: object) -> bool:
    """Whether it is a number, and not an infinite one."""
    return is_number(value) and math.isfinite(value)  # type: ignore[arg-type]


def is_count(value: object) -> bool:
    """Whether it is an int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)
