"""Errors as responses: problem details of RFC 9457 (https://www.rfc-editor.org/rfc/rfc9457)."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..errors import (
    InvalidTenantIdError,
    InvalidTokenError,
    MultitenantError,
    NoTenantError,
    TenantBusyError,
    TenantConflictError,
    TenantNotFoundError,
    TenantSuspendedError,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A response about an error. It says nothing that only operators should know.

    Attributes:
        status: the HTTP status.
        title: the same for each problem of its kind.
        detail: what it means for the client.
        headers: besides the type and the length of the content.
    """

    status: int
    title: str
    detail: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def body(self) -> bytes:
        """The document, JSON."""
        document = {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail}
        return json.dumps(document).encode()

    @property
    def all_headers(self) -> list[tuple[str, str]]:
        """With the type and the length of the content."""
        return [
            ("content-type", "application/problem+json"),
            ("content-length", str(len(self.body))),
            *self.headers,
        ]


# The first that fits, hence the more special ones first.
_PROBLEMS: tuple[tuple[type[Exception], Problem], ...] = (
    (NoTenantError, Problem(400, "No tenant", "The request does not say which tenant it is for.")),
    (
        InvalidTokenError,
        Problem(401, "Invalid token", "The token is not valid.", (("www-authenticate", "Bearer"),)),
    ),
    (
        TenantConflictError,
        Problem(403, "Conflicting tenants", "The request names several tenants."),
    ),
    (TenantSuspendedError, Problem(403, "Tenant suspended", "The tenant is suspended.")),
    (TenantNotFoundError, Problem(404, "Unknown tenant", "There is no such tenant.")),
    (InvalidTenantIdError, Problem(400, "Invalid tenant", "That can be no tenant's id.")),
    (TenantBusyError, Problem(503, "Tenant busy", "Try again in a moment.", (("retry-after", "1"),))),
    (PoolTimeoutError, Problem(503, "Busy", "Try again in a moment.", (("retry-after", "1"),))),
)

HANDLED: tuple[type[Exception], ...] = (MultitenantError, PoolTimeoutError)
"""What errors that have a problem are; where a framework wants a handler for each kind."""


def problem_of(error: BaseException) -> Problem | None:
    """The response for an error; None where it is no matter of the request's."""
    return next((problem for kind, problem in _PROBLEMS if isinstance(error, kind)), None)
