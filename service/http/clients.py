"""Clients, distinguished by their addresses, and each one's share of a limit that all share.

A client may always have one request, with its body. Beyond that it gets at most a share of what
the other clients leave, so that no client can take everything; the more clients there are, the less
each gets. One client is an IPv4 address or a 64-bit network of IPv6. Behind a proxy whose
X-Forwarded-For is not trusted, all clients count as one.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from functools import lru_cache

from service.errors import QuotaReached

RETRY_S = 5
"""Seconds after which a client that has used up its share may try again."""


@lru_cache(maxsize=4096)
def client_of(host: str | None) -> str:
    """The name of the client at an address; empty without one, as on a UNIX socket."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


class SharedLimit:
    """A limit on an amount, of bytes or of requests, for all clients together and for each."""

    def __init__(self, name: str, limit: int, share: float) -> None:
        """Begin with nothing taken.

        Args:
            name: what is limited, for messages.
            limit: of all clients together.
            share: of what the other clients leave, that one client may take.
        """
        self._name, self._limit, self._share = name, limit, share
        self._taken: Counter[str] = Counter()
        self.total = 0

    @property
    def available(self) -> int:
        """The amount that is not taken."""
        return self._limit - self.total

    def check(self, client: str, more: int, own: int = 0) -> None:
        """Raise QuotaReached if a client would have more than its share.

        Args:
            more: the amount that one of its requests is about to take.
            own: the amount that this request has already.
        """
        taken = self._taken[client]
        most = self._share * (self.available + taken)
        if self._share < 1 and taken > own and taken + more > most:
            raise QuotaReached(f"this client has used up its share of the {self._name}", RETRY_S)

    def take(self, client: str, more: int) -> None:
        """Count an amount that a client takes; a negative one is given back."""
        self.total += more
        self._taken[client] += more
        if not self._taken[client]:
            del self._taken[client]
