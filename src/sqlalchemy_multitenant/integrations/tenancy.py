"""`Tenancy`: how an application tells the tenant of a request. Frameworks' modules are built on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from ..checks import check
from ..context import TenantContext
from ..errors import ConfigurationError, InvalidTokenError, NoTenantError
from ..manager import TenantManager
from ..manager_async import AsyncTenantManager
from .extractors import Extractor
from .request import NO_TOKEN, TenantRequest, parse_networks
from .resolver import Resolver, is_marked, no_tenant

__all__ = ["Tenancy", "is_marked", "no_tenant"]


class Tenancy(Resolver[TenantRequest]):
    """Extracts and checks the tenant of each request, and makes it the current one.

    Attributes:
        tenants: the manager.
        context: which tells the tenant; `context.get_tenant_db()` works in a request.
    """

    def __init__(  # noqa: PLR0913 - one parameter an option
        self,
        tenants: TenantManager | AsyncTenantManager,
        *,
        extract_tenant_id: Extractor,
        context: TenantContext[Any, Any] | None = None,
        validate_tenant: Callable[..., Any] | None = None,
        enrich_context: Callable[..., Any] | None = None,
        on_error: Callable[[Exception, TenantRequest], Any] | None = None,
        public_paths: Iterable[str] = (),
        required: bool = True,
        trusted_proxies: Iterable[str] = (),
        check_every_s: float = 60.0,
        close_on_shutdown: bool = True,
    ) -> None:
        """
        Args:
            tenants: the manager.
            extract_tenant_id: finds the id in a request; see `extractors`.
            context: the application's own, where it has one already.
            validate_tenant: called with the id, and the request if it takes two arguments; False refuses
                the tenant as unknown, and what it raises is the answer. May be a coroutine function.
            enrich_context: called with the id and the request; returns `context.get_tenant().data`. May be a
                coroutine function.
            on_error: called with an error and the request; returns a response of the framework's, or None
                for the usual one (problem details).
            public_paths: paths for which no tenant is looked for: `"/health"`, or `"/docs*"` with all that
                begin so. Single endpoints are marked with `no_tenant`.
            required: whether other requests without a tenant are refused.
            trusted_proxies: addresses and networks whose X-Forwarded-Host is believed.
            check_every_s: seconds for which a tenant that was there is taken to be there still; the database
                checks it again with each transaction.
            close_on_shutdown: close the manager when the server stops.
        """
        check(callable(extract_tenant_id), "extract_tenant_id", extract_tenant_id, "such as from_header()")
        super().__init__(
            tenants,
            extract_tenant_id=extract_tenant_id,
            context=context,
            validate_tenant=validate_tenant,
            enrich_context=enrich_context,
            check_every_s=check_every_s,
        )
        check(on_error is None or callable(on_error), "on_error", on_error, "a callable")
        if isinstance(public_paths, str):
            raise ConfigurationError("public_paths", public_paths, f"a list: [{public_paths!r}]")
        self.trusted_proxies = parse_networks(trusted_proxies)
        self.on_error = on_error
        self.close_on_shutdown = close_on_shutdown
        self.is_marked_public: Callable[[Any], bool] = lambda _raw: False
        self._required = required
        paths = list(public_paths)
        for path in paths:
            check(path.startswith("/"), "public_paths", path, "it begins with /")
        self._exact: frozenset[str] = frozenset()
        self._prefixes: tuple[str, ...] = ()
        self.add_public_paths(*paths)

    def is_public_path(self, path: str) -> bool:
        """Whether no tenant is looked for."""
        return path in self._exact or (bool(self._prefixes) and path.startswith(self._prefixes))

    def is_public(self, request: TenantRequest) -> bool:
        """Whether no tenant is looked for: a public path, or what a browser asks before a request to another
        origin, in which it sends neither headers nor cookies (https://fetch.spec.whatwg.org/#cors-preflight-fetch).
        """
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            return True
        return self.is_public_path(request.path)

    def add_public_paths(self, *paths: str) -> None:
        """Paths of the framework's own, in the form of the option."""
        self._exact |= {path for path in paths if not path.endswith("*")}
        self._prefixes += tuple(path.removesuffix("*") for path in paths if path.endswith("*"))

    def _allow_none(self, work: TenantRequest, found: object) -> None:
        if not self._required or self.is_marked_public(work.raw):
            return
        if found is NO_TOKEN:
            raise InvalidTokenError("there is none")
        raise NoTenantError("the request does not say which tenant it is for")

    async def close(self) -> None:
        """Close the manager."""
        if isinstance(self.tenants, AsyncTenantManager):
            await self.tenants.close()
        else:
            await asyncio.to_thread(self.tenants.close)
