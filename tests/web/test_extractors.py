"""Where the tenant stands in a request; and what log records, caches and files make of it."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import jwt
import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from sqlalchemy_multitenant import (
    ConfigurationError,
    Connection,
    InvalidTokenError,
    NoTenantError,
    Schemas,
    TenantConfig,
    TenantConflictError,
    TenantContext,
    TenantManager,
)
from sqlalchemy_multitenant.integrations.asgi import make_request as from_scope
from sqlalchemy_multitenant.integrations.cache import TenantKeys
from sqlalchemy_multitenant.integrations.extractors import (
    Extractor,
    chain,
    from_cookie,
    from_header,
    from_host,
    from_jwt,
    from_path,
    from_subdomain,
)
from sqlalchemy_multitenant.integrations.logging import TenantFilter, TenantProcessor
from sqlalchemy_multitenant.integrations.request import NO_TOKEN, TenantRequest, parse_host, parse_networks
from sqlalchemy_multitenant.integrations.tenancy import Tenancy
from sqlalchemy_multitenant.integrations.wsgi import make_request as from_environ
from tests.models import SharedBase, TenantBase

MANAGER = TenantManager(
    TenantConfig(
        connection=Connection(url="postgresql://nobody@127.0.0.1:1/nothing"),
        schemas=Schemas(tenant=TenantBase, shared=SharedBase),
    )
)
CONTEXT = TenantContext(MANAGER)


def request(
    path: str = "/",
    *,
    headers: list[tuple[str, str]] | None = None,
    client: str = "203.0.113.9",
    trusted: list[str] | None = None,
    root: str = "",
) -> TenantRequest:
    """As it comes through ASGI."""
    tenancy = Tenancy(MANAGER, extract_tenant_id=from_header(), trusted_proxies=trusted or [])
    scope = {
        "type": "http",
        "method": "GET",
        "path": root + path,
        "root_path": root,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers or []],
        "client": (client, 1),
    }
    return from_scope(scope, tenancy)


def extract(extractor: Extractor, given: TenantRequest) -> Any:
    return extractor(given)


def test_headers() -> None:
    asked = request(headers=[("X-TENANT-id", "acme")])
    assert extract(from_header(), asked) == "acme"
    assert extract(from_header("X-Org"), asked) is None
    assert extract(from_header(), request(headers=[("X-Tenant-ID", "")])) is None
    twice = request(headers=[("X-Tenant-ID", "acme"), ("X-Tenant-ID", "globex")])
    with pytest.raises(TenantConflictError, match="came several times"):
        extract(from_header(), twice)


def test_cookies() -> None:
    assert extract(from_cookie(), request(headers=[("Cookie", "a=1; tenant=acme; b=2")])) == "acme"
    assert extract(from_cookie(), request(headers=[("Cookie", "tenant=")])) is None
    assert extract(from_cookie(), request()) is None


@pytest.mark.parametrize(
    ("template", "path", "found"),
    [
        ("/{tenant}", "/acme/orders", "acme"),
        ("/{tenant}", "/acme", "acme"),
        ("/{tenant}", "/", None),
        ("/t/{tenant}", "/t/acme/orders", "acme"),
        ("/t/{tenant}/", "/t/acme/orders", "acme"),
        ("/t/{tenant}/api", "/t/acme/api/x", "acme"),
        ("/t/{tenant}/api", "/t/acme/apis", None),
        ("/t/{tenant}", "/x/t/acme", None),
        ("/t/{tenant}", "/t//x", None),
    ],
)
def test_paths(template: str, path: str, found: str | None) -> None:
    assert extract(from_path(template), request(path)) == found
    assert extract(from_path(template), request(path, root="/mounted")) == found


@pytest.mark.parametrize("template", ["", "tenant", "/x", "/{id}", "/{tenant}/{tenant}", "{tenant}"])
def test_wrong_templates(template: str) -> None:
    with pytest.raises(ConfigurationError, match="template"):
        from_path(template)


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("acme.example.com", "acme"),
        ("ACME.Example.COM.:8000", "acme"),
        ("acme.example.co.uk", "acme"),
        ("example.com", None),
        ("www.example.com", None),
        ("a.b.example.com", None),
        ("acme.evil.com", None),
        ("acmeexample.com", None),
        ("acme.example.com.evil.com", None),
        ("", None),
        ("[::1]:80", None),
    ],
)
def test_subdomains(host: str, found: str | None) -> None:
    extractor = from_subdomain(["example.com", "example.co.uk"])
    assert extract(extractor, request(headers=[("Host", host)])) == found


@pytest.mark.parametrize("domains", [[], "example.com", ["co.uk"], ["com"], ["github.io"], [""]])
def test_domains_under_which_anybody_can_have_a_name(domains: Any) -> None:
    with pytest.raises(ConfigurationError, match="base_domains"):
        from_subdomain(domains)


def test_hosts() -> None:
    known = from_host({"Shop.Acme.com": "acme"})
    assert extract(known, request(headers=[("Host", "shop.acme.com:443")])) == "acme"
    assert extract(known, request(headers=[("Host", "other.com")])) is None
    assert extract(from_host(lambda host: host[:4]), request(headers=[("Host", "acme.x")])) == "acme"
    assert extract(from_host(lambda host: host[:4]), request()) is None
    with pytest.raises(TenantConflictError):
        extract(known, request(headers=[("Host", "shop.acme.com"), ("Host", "other.com")]))


class TestForwardedHost:
    def ask(self, forwarded: list[str], **options: Any) -> Any:
        headers = [("Host", "shop.globex.com"), *(("X-Forwarded-Host", value) for value in forwarded)]
        known = from_host({"shop.acme.com": "acme", "shop.globex.com": "globex"})
        return extract(known, request(headers=headers, **options))

    def test_is_not_believed_by_default(self) -> None:
        assert self.ask(["shop.acme.com"]) == "globex"
        assert self.ask(["shop.acme.com"], client="10.0.0.1") == "globex"

    def test_is_believed_of_trusted_proxies(self) -> None:
        assert self.ask(["shop.acme.com"], client="10.0.0.1", trusted=["10.0.0.0/8"]) == "acme"
        assert self.ask(["shop.acme.com"], client="11.0.0.1", trusted=["10.0.0.0/8"]) == "globex"
        assert self.ask([], client="10.0.0.1", trusted=["10.0.0.0/8"]) == "globex"
        assert self.ask(["shop.acme.com"], client="::1", trusted=["::1"]) == "acme"
        assert self.ask(["shop.acme.com"], client="unix:", trusted=["::1"]) == "globex"

    def test_the_nearest_proxys_word_counts(self) -> None:
        trusted = {"client": "10.0.0.1", "trusted": ["10.0.0.1"]}
        assert self.ask(["evil.com, shop.acme.com"], **trusted) == "acme"
        assert self.ask(["evil.com", "shop.acme.com"], **trusted) == "acme"

    @pytest.mark.parametrize("networks", [["10.0.0.0/33"], ["proxy"], "10.0.0.1"])
    def test_wrong_networks(self, networks: Any) -> None:
        with pytest.raises(ConfigurationError, match="trusted_proxies"):
            parse_networks(networks)


SECRET = "a secret that is long enough for HS256"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


class TestToken:
    def token(
        self, claims: dict[str, Any], key: Any = SECRET, algorithm: str | None = "HS256"
    ) -> TenantRequest:
        encoded = jwt.encode(claims, key, algorithm=algorithm)
        return request(headers=[("Authorization", f"Bearer {encoded}")])

    def test_a_claim(self) -> None:
        for required, nothing in ((True, NO_TOKEN), (False, None)):
            extractor = from_jwt(SECRET, algorithm="HS256", required=required)
            assert extract(extractor, self.token({"tenant": "acme"})) == "acme"
            assert extract(extractor, self.token({"sub": "ann"})) is nothing
            assert extract(extractor, request()) is nothing
            assert extract(extractor, request(headers=[("Authorization", "Basic YTpi")])) is nothing
        assert extract(from_jwt(SECRET, algorithm="HS256", claim="org"), self.token({"org": "x"})) == "x"

    def test_public_keys(self) -> None:
        extractor = from_jwt(PUBLIC, algorithm="RS256")
        assert extract(extractor, self.token({"tenant": "acme"}, RSA, "RS256")) == "acme"
        chosen = from_jwt(lambda _token: PUBLIC, algorithm="RS256")
        assert extract(chosen, self.token({"tenant": "acme"}, RSA, "RS256")) == "acme"

    @pytest.mark.parametrize(
        ("claims", "key", "algorithm"),
        [
            ({"tenant": "acme"}, "another secret that is long enough", "HS256"),
            ({"tenant": "acme"}, None, "none"),
            ({"tenant": "acme"}, SECRET * 2, "HS512"),
            ({"tenant": "acme", "exp": time.time() - 60}, SECRET, "HS256"),
            ({"tenant": "acme", "aud": "others"}, SECRET, "HS256"),
            ({"tenant": 7}, SECRET, "HS256"),
        ],
        ids=["key", "unsigned", "algorithm", "expired", "audience", "no text"],
    )
    def test_what_is_refused(self, claims: dict[str, Any], key: Any, algorithm: str) -> None:
        with pytest.raises(InvalidTokenError):
            extract(from_jwt(SECRET, algorithm="HS256"), self.token(claims, key, algorithm))

    def test_a_public_key_is_no_secret(self) -> None:
        """A token that is signed with the public key as if that were a secret."""
        head, body = ({"alg": "HS256", "typ": "JWT"}, {"tenant": "victim"})
        encoded = [jwt.utils.base64url_encode(json.dumps(part).encode()).decode() for part in (head, body)]
        signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
            ".".join(encoded).encode(), PUBLIC
        )
        forged = ".".join([*encoded, jwt.utils.base64url_encode(signature).decode()])
        with pytest.raises(InvalidTokenError):
            extract(
                from_jwt(PUBLIC, algorithm="RS256"),
                request(headers=[("Authorization", f"Bearer {forged}")]),
            )

    def test_audience_issuer_and_cookie(self) -> None:
        extractor = from_jwt(SECRET, algorithm="HS256", audience="me", issuer="us", cookie="session")
        right = {"tenant": "acme", "aud": "me", "iss": "us"}
        assert extract(extractor, self.token(right)) == "acme"
        for wrong in (
            {**right, "iss": "them"},
            {"tenant": "acme", "aud": "me"},
            {"tenant": "acme", "iss": "us"},
        ):
            with pytest.raises(InvalidTokenError):
                extract(extractor, self.token(wrong))
        encoded = jwt.encode(right, SECRET, algorithm="HS256")
        assert extract(extractor, request(headers=[("Cookie", f"session={encoded}")])) == "acme"

    @pytest.mark.parametrize("algorithm", ["none", "XY256", ""])
    def test_wrong_algorithms(self, algorithm: str) -> None:
        with pytest.raises(ConfigurationError, match="algorithm"):
            from_jwt(SECRET, algorithm=algorithm)


class TestChain:
    def test_the_first_that_finds_one(self) -> None:
        extractor = chain(from_header("X-A"), from_header("X-B"))
        assert extract(extractor, request(headers=[("X-B", "acme")])) == "acme"
        assert extract(extractor, request(headers=[("X-A", "acme"), ("X-B", "acme")])) == "acme"
        assert extract(extractor, request()) is None

    def test_those_that_do_not_agree(self) -> None:
        token = jwt.encode({"tenant": "globex"}, SECRET, algorithm="HS256")
        extractor = chain(from_header(), from_jwt(SECRET, algorithm="HS256"))
        asked = request(headers=[("X-Tenant-ID", "acme"), ("Authorization", f"Bearer {token}")])
        with pytest.raises(TenantConflictError, match="2 tenants"):
            extract(extractor, asked)

    def test_nothing_to_chain(self) -> None:
        with pytest.raises(ConfigurationError):
            chain()


def test_wsgi_sees_the_same() -> None:
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "/mounted",
        "PATH_INFO": "/t/acme/caf\xc3\xa9",
        "QUERY_STRING": "a=1&b=",
        "HTTP_HOST": "Acme.example.com:80",
        "HTTP_X_TENANT_ID": "acme",
        "HTTP_COOKIE": "tenant=acme",
        "REMOTE_ADDR": "203.0.113.9",
    }
    asked = from_environ(environ, Tenancy(MANAGER, extract_tenant_id=from_header()))
    assert (asked.path, asked.host, asked.query) == ("/t/acme/café", "acme.example.com", {"a": "1", "b": ""})
    for extractor in (
        from_header(),
        from_cookie(),
        from_path("/t/{tenant}"),
        from_subdomain(["example.com"]),
    ):
        assert extract(extractor, asked) == "acme"


@pytest.mark.parametrize(
    "options",
    [
        {"extract_tenant_id": None},
        {"extract_tenant_id": "X-Tenant-ID"},
        {"validate_tenant": True},
        {"public_paths": "/health"},
        {"public_paths": ["health"]},
        {"check_every_s": -1},
        {"trusted_proxies": ["x"]},
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Tenancy(MANAGER, **{"extract_tenant_id": from_header(), **options})


def test_parse_host() -> None:
    assert [parse_host(h) for h in ("A.b:1", "[::1]:8", "a.", " x ", "")] == ["a.b", "[::1]", "a", "x", ""]


class TestLogging:
    def test_records(self) -> None:
        record = logging.LogRecord("x", logging.INFO, "x.py", 1, "hello", (), None)
        formatter = logging.Formatter("[%(tenant)s] %(message)s")
        assert TenantFilter(CONTEXT).filter(record)
        assert formatter.format(record) == "[-] hello"
        record = logging.LogRecord("x", logging.INFO, "x.py", 1, "hello", (), None)
        with CONTEXT.use_tenant("acme"):
            TenantFilter(CONTEXT).filter(record)
        with CONTEXT.use_tenant("globex"):
            TenantFilter(CONTEXT).filter(record)  # as behind a queue
        assert formatter.format(record) == "[acme] hello"

    def test_structlog(self) -> None:
        with structlog.testing.capture_logs(processors=[TenantProcessor(CONTEXT)]) as seen:
            log = structlog.get_logger()
            log.info("none")
            with CONTEXT.use_tenant("acme"):
                log.info("one")
                log.info("own", tenant="other")
        assert [entry.get("tenant") for entry in seen] == [None, "acme", "other"]


class TestKeys:
    def test_keys_and_paths(self) -> None:
        keys = TenantKeys(CONTEXT)
        with CONTEXT.use_tenant("acme"):
            assert keys.key("user", 7) == "acme:user:7"
            assert str(keys.path("avatars/7.png")) == "acme/avatars/7.png"
            assert str(keys.path("a", "b")) == "acme/a/b"
            assert TenantKeys(CONTEXT, prefix="shop").key("x") == "shop:acme:x"
            assert str(TenantKeys(CONTEXT, prefix="shop").path("x")) == "shop/acme/x"

    def test_different_parts_make_different_keys(self) -> None:
        keys = TenantKeys(CONTEXT)
        with CONTEXT.use_tenant("acme"):
            made = [
                keys.key(*parts) for parts in (("a:b",), ("a", "b"), ("a\\", "b"), ("a\\:b",), ("a\\:", "b"))
            ]
        assert len(set(made)) == len(made)

    def test_without_a_tenant(self) -> None:
        for make in (TenantKeys(CONTEXT).key, TenantKeys(CONTEXT).path):
            with pytest.raises(NoTenantError):
                make("x")

    @pytest.mark.parametrize(
        "parts", [("../globex",), ("/etc/passwd",), ("a", "../../x"), ("",), (".",), (), ("a\x00",)]
    )
    def test_paths_that_lead_elsewhere(self, parts: tuple[str, ...]) -> None:
        with CONTEXT.use_tenant("acme"), pytest.raises(ConfigurationError, match="path"):
            TenantKeys(CONTEXT).path(*parts)
        with CONTEXT.use_tenant("acme"), pytest.raises(ConfigurationError, match="parts"):
            TenantKeys(CONTEXT).key()
