"""What extractors see of a request, whatever framework serves it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl

from ..errors import ConfigurationError, TenantConflictError


class _NoToken:
    """Falsy, as the None that other extractors find."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "NO_TOKEN"


NO_TOKEN: Any = _NoToken()
"""What an extractor finds that wants a token, where there is none: then nothing else names the tenant."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Headers(Mapping[str, str]):
    """The headers of a request; names in any case. They are read when one is asked for."""

    def __init__(self, items: Iterable[tuple[str, str]]) -> None:
        self._items = items

    @cached_property
    def _values(self) -> dict[str, list[str]]:
        values: dict[str, list[str]] = {}
        for name, value in self._items:
            values.setdefault(name.lower(), []).append(value)
        return values

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()][0]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get_all(self, name: str) -> Sequence[str]:
        """All values of a header that may come several times."""
        return self._values.get(name.lower(), [])

    def get_one(self, name: str) -> str | None:
        """The value of a header, or None.

        Raises:
            TenantConflictError: it is there several times, with different values: proxies and servers
                disagree about which one counts.
        """
        values = self.get_all(name)
        if any(value != values[0] for value in values):
            raise TenantConflictError(f"the header {name!r} came several times")
        return values[0] if values else None


@dataclass(frozen=True)
class TenantRequest:
    """A request, or the opening of a websocket.

    Attributes:
        method: `"GET"`; of a websocket `"WEBSOCKET"`.
        path: without the prefix that the application is mounted under, percent signs decoded.
        headers: names in any case.
        query_string: as it came.
        client: the address of the other side, or None.
        raw: the ASGI scope, or the WSGI environment.
        trusted_proxies: whose X-Forwarded-Host is believed.
    """

    method: str
    path: str
    headers: Headers
    query_string: str
    client: str | None
    raw: Any
    trusted_proxies: tuple[Network, ...] = ()

    @cached_property
    def query(self) -> Mapping[str, str]:
        """The parameters behind the question mark; the last of each name."""
        return dict(parse_qsl(self.query_string, keep_blank_values=True))

    @cached_property
    def cookies(self) -> Mapping[str, str]:
        """The cookies; none where they cannot be read."""
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load("; ".join(self.headers.get_all("cookie")))
        except CookieError:
            return {}
        return {name: morsel.value for name, morsel in jar.items()}

    @cached_property
    def host(self) -> str:
        """The name of the host that was asked, in lower case, without the port; "" where there is none.

        Raises:
            TenantConflictError: there are several.
        """
        host = self.headers.get_one("host") or ""
        if self._is_behind_trusted_proxy and (forwarded := self.headers.get_all("x-forwarded-host")):
            # The one that the nearest proxy wrote.
            host = forwarded[-1].rpartition(",")[2].strip()
        return parse_host(host)

    @property
    def _is_behind_trusted_proxy(self) -> bool:
        if not self.trusted_proxies or self.client is None:
            return False
        try:
            address = ipaddress.ip_address(self.client)
        except ValueError:
            return False
        return any(address in network for network in self.trusted_proxies)


def parse_host(value: str) -> str:
    """The name in a Host header: `Acme.Example.com.:8000` is `acme.example.com`."""
    host = value.strip().lower()
    if host.startswith("["):  # an IPv6 address
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].removesuffix(".")


def parse_networks(values: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and networks, `"10.0.0.0/8"`.

    Raises:
        ConfigurationError: one of them is neither.
    """
    if isinstance(values, str):
        raise ConfigurationError("trusted_proxies", values, f"a list: [{values!r}]")
    networks = []
    for value in values:
        try:
            networks.append(ipaddress.ip_network(value))
        except ValueError as error:
            raise ConfigurationError(
                "trusted_proxies", value, 'an address or a network, such as "10.0.0.0/8"'
            ) from error
    return tuple(networks)
