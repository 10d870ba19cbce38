"""Which URLs and network addresses a webhook may have.

A URL comes from a client, and the request to it from inside the operator's network. So its text is
checked when it is given, and the addresses of its host when a request is made: a name may stand
for a private address, and for another one each time that it is resolved. Whoever connects must use
an address that `resolve` returned, and must not resolve the name again.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final
from urllib.parse import urlsplit

from service.errors import BadParameter, RankpressError

MAX_URL_CHARS: Final = 2000
PORTS: Final = {"http": 80, "https": 443}

_TEXT = re.compile(r"[!-~]+")
"""Printable ASCII. Python's parser drops tabs and line ends in silence, so they are refused."""

_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_-]{1,63}\.?")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
"""A last label that makes a host an IPv4 address, in whatever notation, for resolvers."""

_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2002::/16", "3fff::/20"))
)
"""Networks that not every version of Python knows to be special, and 6to4 with its relays."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses whose last four bytes are the IPv4 address that is reached."""


class ForbiddenAddress(RankpressError):
    """A host has an address to which nothing may be sent."""


SocketAddress = tuple[socket.AddressFamily, tuple[Any, ...]]
"""A family and an address of it, as sockets take them."""


@dataclass(frozen=True)
class Destination:
    """Where a URL leads.

    Attributes:
        host: name or address, without brackets. path: with the query.
    """

    is_secure: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_usual = self.port == PORTS["https" if self.is_secure else "http"]
        return host if is_usual else f"{host}:{self.port}"


def destination_of(url: str) -> Destination:
    """The parts of a URL that is http or https and names nothing but a place.

    Raises:
        BadParameter: it is not such a URL. The message does not repeat it: it may be secret.
    """
    if len(url) > MAX_URL_CHARS:
        raise _bad_url(f"has {len(url)} characters, expected at most {MAX_URL_CHARS}")
    if not _TEXT.fullmatch(url) or "\\" in url:
        raise _bad_url("has characters that a URL cannot have")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _bad_url("is malformed") from error
    if parts.scheme not in PORTS:
        raise _bad_url("has another scheme than http and https")
    if "@" in parts.netloc:
        raise _bad_url("has a user name or password, expected none")
    if "#" in url:
        raise _bad_url("has a fragment, expected none")
    host = parts.hostname or ""
    is_bracketed = "[" in parts.netloc
    is_host = _is_address(host) if is_bracketed else _is_name(host) or _is_address(host)
    if port == 0 or not is_host or is_bracketed != (":" in host):
        raise _bad_url("does not name a host and port")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination(parts.scheme == "https", host, port or PORTS[parts.scheme], path)


def check_url(url: str, *, allow_private: bool) -> None:
    """Check the text of a webhook's URL; names are not resolved.

    Raises:
        BadParameter: as `destination_of`, or it names this machine or a private address, and
            `allow_private` is false.
    """
    host = destination_of(url).host
    if allow_private:
        return
    is_here = f".{host.removesuffix('.')}".endswith(".localhost")
    if is_here or _is_address(host) and not is_public(ipaddress.ip_address(host)):
        raise _bad_url("names a private address, which this server does not allow")


def resolve(host: str, port: int, *, allow_private: bool) -> list[SocketAddress]:
    """All addresses of a host, which is resolved once, in the order of preference.

    The system's resolver limits how long this takes (resolv.conf(5): by default 5 s a try).

    Raises:
        ForbiddenAddress: one of them is not public, and `allow_private` is false.
        OSError: there is none.
    """
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError("the name of the host is malformed") from error
    if not allow_private:
        for *_, address in entries:
            if not is_public(ipaddress.ip_address(address[0])):
                raise ForbiddenAddress("the host has a private address")
    return [(family, address) for family, *_, address in entries]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is of one machine in the public internet, by IANA's registries.

    An IPv6 address that stands for an IPv4 address is what that is. Teredo and 6to4, by which a
    relay elsewhere would decide where a packet goes, are not public.
    """
    if isinstance(address, IPv6Address):
        address = _embedded_ipv4(address) or address
    if any(address in network for network in _NOT_PUBLIC):
        return False
    if isinstance(address, IPv6Address):
        return address in _PUBLIC_IPV6 and address.is_global
    return address.is_global and not address.is_multicast and not address.is_reserved


def _embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host  # the zone of a link-local address


def _is_name(host: str) -> bool:
    last = host.removesuffix(".").rpartition(".")[2]
    return _NAME.fullmatch(host) is not None and not _NUMBER.fullmatch(last)


def _bad_url(reason: str) -> BadParameter:
    return BadParameter(f"the URL of the webhook {reason}")
