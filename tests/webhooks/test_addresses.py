"""No URL, name or notation leads a webhook to an address that is not public."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest

from service.errors import BadParameter
from service.webhooks.addresses import (
    ForbiddenAddress,
    check_url,
    destination_of,
    is_public,
    resolve,
)

PRIVATE = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.31.0.1", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
    "3fff::1", "2001::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "100::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101",
]  # fmt: skip


def url_of(address: str) -> str:
    return f"https://[{address}]/hook" if ":" in address else f"https://{address}/hook"


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused_unless_allowed(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(BadParameter, match="private"):
        check_url(url_of(address), allow_private=False)
    check_url(url_of(address), allow_private=True)
    answer_with(monkeypatch, "1.1.1.1", address)
    with pytest.raises(ForbiddenAddress):
        resolve("hooks.example.org", 443, allow_private=False)
    assert [a[1][0] for a in resolve("h", 443, allow_private=True)] == ["1.1.1.1", address]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    check_url(url_of(address), allow_private=False)


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "127.0.0.0x1", "0"]
)
def test_other_notations_of_addresses_are_refused_where_they_are_given_and_resolved(
    host: str,
) -> None:
    with pytest.raises(BadParameter):
        check_url(f"http://{host}/", allow_private=False)
    with pytest.raises(ForbiddenAddress):  # the system's resolver takes them
        resolve(host, 80, allow_private=False)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "a.localhost"])
def test_this_machine_is_refused_by_name(host: str) -> None:
    with pytest.raises(BadParameter, match="private"):
        check_url(f"http://{host}:8000/", allow_private=False)
    check_url(f"http://{host}:8000/", allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "", "hook", "//example.org/", "ftp://example.org/", "file:///etc/passwd",
        "gopher://example.org/", "https:///path", "https://", "https://:443/",
        "https://user@example.org/", "https://user:password@example.org/",
        "https://example.org@127.0.0.1/", "https://example.org/#part", "https://example.org/#",
        "https://example.org:0/", "https://example.org:65536/", "https://example.org:x/",
        "https://exa mple.org/", "https://example.org/\r\nX: y", "https://example.org/\tx",
        "https://example.org\\@127.0.0.1/", "https://exämple.org/", "https://a..b/",
        "https://-a.org/", "https://[::1/", "https://[fe80::1%25eth0]/", "https://[v1.a]/",
        "https://%31%32%37.0.0.1/", "https://" + "a" * 64 + ".org/",
        "https://example.org/" + "a" * 2000,
    ],
)  # fmt: skip
def test_a_url_that_is_more_or_less_than_a_place_is_refused(url: str) -> None:
    with pytest.raises(BadParameter) as refused:
        check_url(url, allow_private=True)
    assert "example" not in str(refused.value), "a URL may be secret"


def test_the_parts_of_a_url_are_what_is_sent() -> None:
    destination = destination_of("HTTPS://Hooks.Example.org/a%20b?c=d")
    assert (destination.host, destination.port, destination.path) == (
        "hooks.example.org",
        443,
        "/a%20b?c=d",
    )
    assert destination.authority == "hooks.example.org"
    assert destination_of("http://[2606:4700::1111]:8080").authority == "[2606:4700::1111]:8080"
    assert destination_of("http://example.org?x").path == "/?x"


def answer_with(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the resolver answer every question with these addresses."""

    def entries(_: str, port: int, **__: Any) -> list[Any]:
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, 1, 6, "", (each, port))
            for each in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", entries)
