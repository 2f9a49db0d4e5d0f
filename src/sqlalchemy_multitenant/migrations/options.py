"""How a run over the fleet is to go: values, checked when they are built."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from ..errors import ConfigurationError
from ..naming import parse_tenant_id
from .report import MigrationState

OnProgress = Callable[[str, MigrationState], object]
OnError = Callable[[str, BaseException], Literal["continue", "abort"] | None]


_WHOLE_PERCENT = 100


def _check(ok: bool, name: str, value: object, reason: str) -> None:
    if not ok:
        raise ConfigurationError(name, value, reason)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


class RunKeywords(TypedDict, total=False):
    """The options of a run, as keywords."""

    concurrency: int
    canary: int | Sequence[str] | None
    canary_factor: float | None
    max_failures: int | str | None
    on_progress: OnProgress | None
    on_error: OnError | None


@dataclass(frozen=True, slots=True)
class FailureBudget:
    """How many tenants may fail before a run is stopped: a number, or a share of all.

    Raises:
        ConfigurationError: `limit` is neither a whole number from 0 nor a text such as `5%`, up to `100%`.
    """

    limit: int | str

    def __post_init__(self) -> None:
        value = self.limit
        ok = _is_whole(value, 0)
        if isinstance(value, str) and re.fullmatch(r"\d+|\d+(\.\d+)?%", value):
            ok = not value.endswith("%") or float(value[:-1]) <= _WHOLE_PERCENT
        _check(ok, "max_failures", value, "a whole number, or a share up to 100%, such as '5%'")

    def allows(self, failures: int, total: int) -> bool:
        """Whether a run over `total` tenants may go on."""
        if isinstance(self.limit, str) and self.limit.endswith("%"):
            return failures <= float(self.limit[:-1]) / 100 * total
        return failures <= int(self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of a run; `Migrator.migrate_all` explains them.

    Raises:
        ConfigurationError: one of them is wrong.
    """

    concurrency: int = 10
    canary: int | Sequence[str] | None = None
    canary_factor: float | None = None
    max_failures: int | str | None = None
    on_progress: OnProgress | None = None
    on_error: OnError | None = None

    def __post_init__(self) -> None:
        _check(_is_whole(self.concurrency, 1), "concurrency", self.concurrency, "a whole number, at least 1")
        canary, factor = self.canary, self.canary_factor
        if isinstance(canary, str):
            raise ConfigurationError("canary", canary, f"a number, or several ids: [{canary!r}]")
        if isinstance(canary, int):
            _check(_is_whole(canary, 1), "canary", canary, "a whole number, at least 1")
        elif canary is not None:
            object.__setattr__(self, "canary", tuple(map(parse_tenant_id, canary)))
        _check(
            factor is None or (isinstance(factor, int | float) and factor >= 1),
            "canary_factor",
            factor,
            "a number, at least 1",
        )
        _check(
            factor is None or canary is not None,
            "canary_factor",
            factor,
            "how much longer than the trial canaries may take: name canaries as well",
        )
        _check(
            self.on_error is None or callable(self.on_error),
            "on_error",
            self.on_error,
            "a function that is given a tenant and its error",
        )
        _ = self.budget

    @property
    def budget(self) -> FailureBudget | None:
        """What `max_failures` means."""
        return None if self.max_failures is None else FailureBudget(self.max_failures)

    def choose_canaries(self, tenants: Sequence[str]) -> list[str]:
        """Those of `tenants`, all of whom have something pending, that come first."""
        if self.canary is None:
            return []
        if isinstance(self.canary, int):
            return list(tenants[: self.canary])
        return [tenant for tenant in tenants if tenant in self.named_canaries]

    @property
    def named_canaries(self) -> frozenset[str]:
        """The canaries that were named."""
        return frozenset() if self.canary is None or isinstance(self.canary, int) else frozenset(self.canary)
