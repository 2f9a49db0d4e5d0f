"""Hooks: the application's callables that are told what happens to pools, and in migrations."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigurationError

logger = logging.getLogger("sqlalchemy_multitenant")


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossTenantQuery:
    """What is asked of many tenants, before it is.

    Attributes:
        asked_by: who asks, as the caller says.
        sql: the statement, as for one tenant, without the values of its parameters.
        tenants: whom it is put to.
        read_only: whether it can change nothing.
    """

    asked_by: str | None
    sql: str
    tenants: tuple[str, ...]
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Callables for observability and audit. What they raise is logged, and never reaches a request, but for
    `on_cross_tenant_query`.

    Attributes:
        on_pool_created: called with the pool's name when it opens its first connection: the
            tenant's id for a pool of its own, else the name of the server.
        on_pool_evicted: called with the same name when its last connections are given up, because
            `max_pools` was reached or it was idle for too long.
        on_error: called with (tenant id or None, error) when a statement fails in the database or
            a connection is lost. The error goes on to the caller all the same.
        on_cross_tenant_query: called with a `CrossTenantQuery` before many tenants are asked at once. What it
            raises goes to the caller, and nothing is asked: what cannot be recorded does not happen.
    """

    on_pool_created: Callable[[str], object] = _nothing
    on_pool_evicted: Callable[[str], object] = _nothing
    on_error: Callable[[str | None, BaseException], object] = _nothing
    on_cross_tenant_query: Callable[[CrossTenantQuery], object] = _nothing

    def __post_init__(self) -> None:
        for name in ("on_pool_created", "on_pool_evicted", "on_error", "on_cross_tenant_query"):
            if not callable(hook := getattr(self, name)):
                raise ConfigurationError(f"hooks.{name}", hook, "a callable")


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationHooks:
    """Callables that are told of migrations, from the thread that is at work on the tenant: several at one
    time. What they raise is reported as theirs (`MigrationReport.hook_errors`), and the migration goes on.

    Attributes:
        before_tenant: called with the tenant's id before anything is done for it.
        after_tenant: called with the id and the `TenantResult`, failed or not. Tenants with nothing pending
            have no calls.
        before_migration, after_migration: called with the id and the revision; the latter with the duration
            in milliseconds as well. Where one of them is given, each revision is a round trip of its own; it
            is committed with all the others, and may be tried again.
    """

    before_tenant: Callable[[str], object] = field(default=_nothing, repr=False)
    after_tenant: Callable[[str, Any], object] = field(default=_nothing, repr=False)
    before_migration: Callable[[str, str], object] = field(default=_nothing, repr=False)
    after_migration: Callable[[str, str, float], object] = field(default=_nothing, repr=False)

    def __post_init__(self) -> None:
        for name in ("before_tenant", "after_tenant", "before_migration", "after_migration"):
            if not callable(hook := getattr(self, name)):
                raise ConfigurationError(f"migrations.hooks.{name}", hook, "a callable")

    @property
    def wants_migrations(self) -> bool:
        """Whether each revision is to be told."""
        return self.before_migration is not _nothing or self.after_migration is not _nothing


def call_hook(hook: Callable[..., object], *args: object) -> None:
    """Call `hook`; log what it raises, since an observer must not break what it observes."""
    if hook is _nothing:
        return
    try:
        hook(*args)
    except Exception:
        logger.exception("the hook %r failed", hook)
