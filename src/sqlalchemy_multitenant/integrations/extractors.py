"""Where the tenant's id stands in a request: ready-made extractors, and how to chain them.

An extractor is a callable that is given a `TenantRequest` and returns an id, or None where there is none. Ids
are not checked here: that is done with whatever comes out.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

from ..errors import ConfigurationError, InvalidTokenError, MissingExtraError, TenantConflictError
from .request import NO_TOKEN, TenantRequest, parse_host

Extractor: TypeAlias = Callable[[TenantRequest], Awaitable[str | None] | str | None]


class Documented(Protocol):
    """An extractor that can say in an API's description where the id stands.

    Attributes:
        openapi_parameters: parameters of OpenAPI, with `name` and `in`.
    """

    openapi_parameters: tuple[Mapping[str, str], ...]

    def __call__(self, request: TenantRequest, /) -> Awaitable[str | None] | str | None: ...


def _documented(extract: Extractor, *parameters: Mapping[str, str]) -> Extractor:
    cast("Documented", extract).openapi_parameters = parameters
    return extract


def openapi_parameters(extract: Extractor) -> tuple[Mapping[str, str], ...]:
    """Where an extractor looks, as far as it says so."""
    return getattr(extract, "openapi_parameters", ())


def is_one_of_several(extract: Extractor) -> bool:
    """Whether a request may name its tenant in another place than these."""
    return bool(getattr(extract, "is_one_of_several", False))


def from_header(name: str = "X-Tenant-ID") -> Extractor:
    """The value of a header. Only for clients that are trusted, or checked by `validate_tenant`: whoever can
    send a request can send this."""

    def extract(request: TenantRequest) -> str | None:
        return request.headers.get_one(name) or None

    return _documented(extract, {"name": name, "in": "header"})


def from_cookie(name: str = "tenant") -> Extractor:
    """The value of a cookie. The same holds as for a header."""

    def extract(request: TenantRequest) -> str | None:
        return request.cookies.get(name) or None

    return _documented(extract, {"name": name, "in": "cookie"})


def from_path(template: str = "/{tenant}") -> Extractor:
    """A part of the path: `"/t/{tenant}"` takes `acme` from `/t/acme/orders`. Where the path does not begin
    so, there is none.

    Raises:
        ConfigurationError: the template has no `{tenant}`.
    """
    before, found, after = template.partition("{tenant}")
    if not found or not template.startswith("/") or "{" in before + after:
        raise ConfigurationError("template", template, 'a path with one {tenant}, such as "/t/{tenant}"')
    pattern = re.compile(f"{re.escape(before)}(?P<tenant>[^/]+){re.escape(after.rstrip('/'))}(?:/|$)")

    def extract(request: TenantRequest) -> str | None:
        match = pattern.match(request.path)
        return match["tenant"] if match else None

    return extract


def from_subdomain(base_domains: Sequence[str], *, ignore: Sequence[str] = ("www",)) -> Extractor:
    """The part of the host before a domain of yours: `acme` of `acme.example.com` for `["example.com"]`.
    Other hosts, the domain itself and deeper names have none. Needs the extra `subdomain`.

    Args:
        base_domains: the domains. One under which anybody can have a name (`co.uk`, `github.io`) is refused
            (https://publicsuffix.org).
        ignore: names that are no tenants'.

    Raises:
        ConfigurationError: there is no domain, or it is one under which anybody can have a name.
        MissingExtraError: `publicsuffixlist` is not installed.
    """
    try:
        from publicsuffixlist import PublicSuffixList
    except ImportError as error:
        raise MissingExtraError("from_subdomain()", "subdomain") from error
    if isinstance(base_domains, str) or not base_domains:
        raise ConfigurationError("base_domains", base_domains, 'your domains, such as ["example.com"]')
    suffixes = PublicSuffixList(accept_unknown=False)
    bases = []
    for domain in base_domains:
        name = parse_host(domain)
        if not name or suffixes.is_public(name):
            raise ConfigurationError(
                "base_domains", domain, "anybody can have a name under it: name a domain that is yours"
            )
        bases.append(f".{name}")
    ignored = frozenset(name.lower() for name in ignore)

    def extract(request: TenantRequest) -> str | None:
        for base in bases:
            label = request.host.removesuffix(base)
            if label != request.host:
                return None if not label or "." in label or label in ignored else label
        return None

    return extract


def from_host(hosts: Mapping[str, str] | Callable[[str], str | None]) -> Extractor:
    """The tenant of a host of its own: `{"shop.acme.com": "acme"}`, or a callable that is given the host.
    Other hosts have none."""
    if callable(hosts):
        return lambda request: hosts(request.host) if request.host else None
    known = {parse_host(host): tenant for host, tenant in hosts.items()}
    return lambda request: known.get(request.host)


def from_jwt(  # noqa: PLR0913 - one parameter an option
    key: Any,
    *,
    algorithm: str,
    claim: str = "tenant",
    audience: str | None = None,
    issuer: str | None = None,
    header: str = "Authorization",
    cookie: str | None = None,
    leeway_s: float = 0.0,
    required: bool = True,
) -> Extractor:
    """A claim of a JSON Web Token whose signature is verified. Needs the extra `jwt`.

    Args:
        key: what verifies it: a secret, a public key (PEM, or an object of `cryptography`'s), or a callable
            that is given the token and returns one: `lambda t: jwk_client.get_signing_key_from_jwt(t).key`.
        algorithm: the only one that is accepted, whatever the token says of itself: `"RS256"`, `"HS256"`.
        claim: its name.
        audience, issuer: what the token must say, where given. A token for an audience is refused where none
            is given.
        header: where the token is, behind `Bearer `.
        cookie: the cookie that has it, where there is no header.
        leeway_s: seconds by which clocks may differ.
        required: whether, in a `chain`, nothing else may name the tenant where there is no token with the
            claim: status 401. Endpoints that need no tenant need no token.

    Raises (when a request comes):
        InvalidTokenError: the token is not valid, or has expired, or the claim is no text.
    """
    try:
        import jwt
        from jwt.algorithms import get_default_algorithms
    except ImportError as error:
        raise MissingExtraError("from_jwt()", "jwt") from error
    if algorithm == "none" or algorithm not in get_default_algorithms():
        raise ConfigurationError("algorithm", algorithm, 'one that signs, such as "RS256" or "HS256"')

    key_of: Callable[[str], Any] = key if callable(key) else lambda _token: key
    nothing = NO_TOKEN if required else None

    def extract(request: TenantRequest) -> str | None:
        token = _bearer(request.headers.get_one(header))
        if token is None and cookie is not None:
            token = request.cookies.get(cookie)
        if not token:
            return nothing
        try:
            claims = jwt.decode(
                token,
                key_of(token),
                algorithms=[algorithm],
                audience=audience,
                issuer=issuer,
                leeway=leeway_s,
            )
        except jwt.PyJWTError as error:
            raise InvalidTokenError(str(error)) from error
        tenant = claims.get(claim)
        if tenant is not None and not isinstance(tenant, str):
            raise InvalidTokenError(f"the claim {claim!r} is no text")
        return tenant or nothing

    return extract


def _bearer(value: str | None) -> str | None:
    scheme, _, token = (value or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def chain(*extractors: Extractor) -> Extractor:
    """The first id that one of `extractors` finds. All are asked: where two of them find different ones, the
    request is refused, for one of them is wrong (a header says a, a token says b). Where `from_jwt` finds no
    token, the others do not count.

    Raises (when a request comes):
        TenantConflictError: they do not agree.
    """
    if not extractors:
        raise ConfigurationError("extractors", extractors, "at least one")

    def choose(found: Sequence[str | None]) -> str | None:
        if any(one is NO_TOKEN for one in found):
            return cast("None", NO_TOKEN)
        different = list(dict.fromkeys(tenant for tenant in found if tenant is not None))
        if len(different) > 1:
            raise TenantConflictError(f"the request names {len(different)} tenants")
        return different[0] if different else None

    def extract(request: TenantRequest) -> Any:
        found = [extractor(request) for extractor in extractors]
        if any(inspect.isawaitable(value) for value in found):
            return _choose_later(choose, found)
        return choose(found)  # type: ignore[arg-type]

    extract.is_one_of_several = len(extractors) > 1  # type: ignore[attr-defined]
    return _documented(extract, *(p for extractor in extractors for p in openapi_parameters(extractor)))


async def _choose_later(
    choose: Callable[[Sequence[str | None]], str | None], found: Sequence[Any]
) -> str | None:
    return choose([await value if inspect.isawaitable(value) else value for value in found])
