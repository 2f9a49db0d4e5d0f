"""Hooks: the application's callables that are told what happens to pools."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import ConfigurationError

logger = logging.getLogger("sqlalchemy_multitenant")


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Callables for observability. What they raise is logged, and never reaches a request.

    Attributes:
        on_pool_created: called with the pool's name when it opens its first connection: the
            tenant's id for a pool of its own, else the name of the server.
        on_pool_evicted: called with the same name when its last connections are given up, because
            `max_pools` was reached or it was idle for too long.
        on_error: called with (tenant id or None, error) when a statement fails in the database or
            a connection is lost. The error goes on to the caller all the same.
    """

    on_pool_created: Callable[[str], object] = _nothing
    on_pool_evicted: Callable[[str], object] = _nothing
    on_error: Callable[[str | None, BaseException], object] = _nothing

    def __post_init__(self) -> None:
        for name in ("on_pool_created", "on_pool_evicted", "on_error"):
            if not callable(hook := getattr(self, name)):
                raise ConfigurationError(f"hooks.{name}", hook, "a callable")


def call_hook(hook: Callable[..., object], *args: object) -> None:
    """Call `hook`; log what it raises, since an observer must not break what it observes."""
    if hook is _nothing:
        return
    try:
        hook(*args)
    except Exception:
        logger.exception("the hook %r failed", hook)
