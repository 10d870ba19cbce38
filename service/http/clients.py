"""Clients, told apart by their addresses, and how much one may take of what all share.

A client may always have one request, with its body. Beyond that it gets no more than a part of what
the others leave, so that nobody can take it all; as more clients come, each gets less. What counts
as one client is an IPv4 address, or a network of 64 bits of IPv6. Behind a proxy whose
X-Forwarded-For does not count, all are one.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from service.errors import QuotaReached

RETRY_S = 5
"""Seconds after which a client that has taken its part may come back."""


@lru_cache(maxsize=4096)
def client_of(host: str | None) -> str:
    """What stands for the client at an address; empty without one, as on a UNIX socket."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


def addresses_in(networks: str) -> Callable[[str], bool]:
    """Whether an address is one of these addresses and networks, by commas; all are in *."""
    names = [name.strip() for name in networks.split(",")]
    known = [ipaddress.ip_network(name, strict=False) for name in names if _is_network(name)]

    @lru_cache(maxsize=4096)
    def is_in(host: str) -> bool:
        if not _is_network(host):
            return "*" in names
        address = ipaddress.ip_address(host)
        return "*" in names or any(address in network for network in known)

    return is_in


def _is_network(name: str) -> bool:
    """Whether this is an IP network, or an address, which is one of its own."""
    try:
        ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False
    return True


class SharedLimit:
    """An amount, of bytes or of requests, that is limited for all clients together."""

    def __init__(self, what: str, limit: int, share: float) -> None:
        """Nothing is taken at first.

        Args:
            what: is limited, for messages, such as "bytes of bodies".
            limit: of all clients together. share: of what the others leave, that one may take.
        """
        self._what, self._limit, self._share = what, limit, share
        self._taken: Counter[str] = Counter()
        self.total = 0

    @property
    def left(self) -> int:
        """What is not taken."""
        return self._limit - self.total

    def check(self, client: str, more: int, own: int = 0) -> None:
        """Raise QuotaReached if a client would have more than its part.

        Args:
            more: what one of its requests is about to take. own: what that request has already.
        """
        taken = self._taken[client]
        most = self._share * (self.left + taken)
        if self._share < 1 and taken > own and taken + more > most:
            raise QuotaReached(f"this client has taken its part of the {self._what}", RETRY_S)

    def take(self, client: str, more: int) -> None:
        """Count what a client takes, or gives back where it is below 0."""
        self.total += more
        self._taken[client] += more
        if not self._taken[client]:
            del self._taken[client]
