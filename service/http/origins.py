"""Checks of the Host and Origin headers of a request.

Only browsers send true values, and only browsers can be made to send requests that their users did
not intend. `Settings.allowed_hosts` and `Settings.check_origin` say which attacks are stopped.
"""

from __future__ import annotations

from starlette.datastructures import Headers

from service.errors import ForeignOrigin, UnknownHost
from service.settings import Settings

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
"""Methods that make the server do work or change something."""

HEALTH_PATHS = frozenset({"/livez", "/readyz"})
"""Load balancers request these paths by address; the answers are no secret."""


class Origins:
    """The hosts and pages that the settings allow."""

    def __init__(self, settings: Settings) -> None:
        """Read the settings once."""
        self._hosts = _names(settings.allowed_hosts)
        self._checks_origin = settings.check_origin
        self._pages = _names(settings.cors_origins)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise UnknownHost or ForeignOrigin for a request that must not be answered."""
        host = headers.get("host", "").lower()
        if self._hosts and path not in HEALTH_PATHS and not self._is_allowed(_without_port(host)):
            raise UnknownHost(f"the Host is {host[:100]!r}, expected one of allowed_hosts")
        origin = headers.get("origin", "").lower()
        if (
            self._checks_origin
            and method in CHANGING
            and origin
            and not self._may_change(origin, host)
        ):
            raise ForeignOrigin(f"the Origin is {origin[:100]!r}, expected {host[:100]!r}")

    def _is_allowed(self, name: str) -> bool:
        """Whether a host is allowed; `*.` at the beginning of an entry is any one label."""
        parent = "*." + name.partition(".")[2]
        return name in self._hosts or parent in self._hosts

    def _may_change(self, origin: str, host: str) -> bool:
        return origin.partition("://")[2] == host or not self._pages.isdisjoint((origin, "*"))


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in text.split(",") if name.strip())


def _without_port(host: str) -> str:
    """The name of a Host header, the brackets of an IPv6 address included."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
