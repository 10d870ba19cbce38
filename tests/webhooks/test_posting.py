"""One request to a receiver that may be slow, huge, somewhere else, or somebody else."""

from __future__ import annotations

import datetime
import itertools
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.webhooks import posting
from service.webhooks.addresses import destination_of
from service.webhooks.posting import Answer, PostFailed, post
from webhooks.receivers import receiving, sending

BODY = b'{"type": "job.succeeded"}'
HEADERS = {"webhook-id": "msg_1"}


def send(url: str, tls: ssl.SSLContext | None = None, **options: Any) -> Answer:
    tls = tls or ssl.create_default_context()
    return post(destination_of(url), BODY, HEADERS, tls, **({"allow_private": True} | options))


def test_a_receiver_gets_the_body_the_headers_and_its_own_name() -> None:
    with receiving() as receiver:
        assert send(receiver.url) == Answer(204, None)
    (call,) = receiver.calls
    assert call.body == BODY and call.path == "/hook?token=1"
    assert call.headers["webhook-id"] == "msg_1"
    assert f"http://{call.headers['Host']}/hook?token=1" == receiver.url


def test_nothing_is_sent_to_a_private_address_that_is_not_allowed() -> None:
    with receiving() as receiver, pytest.raises(PostFailed, match="private address"):
        send(receiver.url, allow_private=False)
    assert receiver.calls == []


def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that is public at first and private the next time (rebinding) gains nothing."""
    resolved, connected = itertools.chain(["8.8.8.8"], itertools.repeat("127.0.0.1")), []

    def getaddrinfo(_: str, port: int, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(resolved), port))]

    class Socket(socket.socket):
        def connect(self, address: Any) -> None:
            connected.append(address)
            raise ConnectionRefusedError("no network in tests")

    with receiving() as receiver:
        port = destination_of(receiver.url).port
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(socket, "socket", Socket)
        with pytest.raises(PostFailed, match="no network"):
            send(f"http://rebinding.example:{port}/", allow_private=False)
        assert connected == [("8.8.8.8", port)]
        with pytest.raises(PostFailed, match="private address"):
            send(f"http://rebinding.example:{port}/", allow_private=False)
        assert len(connected) == 1
    assert receiver.calls == []


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    with receiving() as elsewhere, receiving() as receiver:
        receiver.answers = [(307, {"Location": elsewhere.url})]
        assert send(receiver.url).status == 307
    assert len(receiver.calls) == 1 and elsewhere.calls == []


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as proxy, receiving() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert send(receiver.url).status == 204
    assert proxy.calls == [] and len(receiver.calls) == 1


def dripping() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX-Slow: "
    while True:
        time.sleep(0.05)
        yield b"a"


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        (lambda: dripping(), "too long|timed out"),
        (lambda: itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"A: b\r\n" * 99)),
         "HTTPException|more than"),
        (lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 99), "more than"),
        (lambda: itertools.chain([b"HTTP/1.1 200 "], itertools.repeat(b"A" * 9999)), "more than"),
        (lambda: iter([b"secret reply\r\n\r\n"]), "not HTTP \\(BadStatusLine\\)$"),
        (lambda: iter([b"HTTP/1.1 200 OK\r\nA"]), "never"),
        (lambda: iter([]), "not HTTP|reset"),
    ],
    ids=["slow", "headers", "continue", "line", "garbage", "cut", "closed"],
)  # fmt: skip
def test_an_answer_costs_bounded_time_and_memory(pieces: Any, reason: str) -> None:
    with sending(pieces()) as url:
        if reason == "never":  # a cut header ends the headers, as far as anyone can tell
            assert send(url).status == 200
            return
        with pytest.raises(PostFailed, match=reason) as failed:
            send(url, total_s=0.4)
    assert "secret" not in str(failed.value)


def test_the_body_of_an_answer_is_not_read() -> None:
    pieces = itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], itertools.repeat(bytes(65536)))
    with sending(pieces) as url:
        assert send(url).status == 200


def test_a_receiver_that_takes_no_connection_costs_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(posting, "CONNECT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first:
        first.connect(full.getsockname())
        second = socket.socket()
        second.setblocking(False)
        second.connect_ex(full.getsockname())
        with pytest.raises(PostFailed, match="timed out"):
            send(f"http://127.0.0.1:{full.getsockname()[1]}/")
        second.close()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0), ("0", 0.0), ("-1", None), ("soon", None), ("1e9", None),
        ("9" * 5000, float("9" * 10)), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_read_as_seconds(text: str, seconds: float | None) -> None:
    with receiving() as receiver:
        receiver.answers = [(503, {"Retry-After": text})]
        assert send(receiver.url) == Answer(503, seconds)


def test_retry_after_is_read_as_a_date() -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    with receiving() as receiver:
        receiver.answers = [(503, {"Retry-After": format_datetime(later, usegmt=True)})]
        seconds = send(receiver.url).retry_after_s
    assert seconds is not None and 3000 < seconds <= 3600


def test_tls_is_checked_against_the_name_and_not_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certificate_for("hooks.example", tmp_path)
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(certificate)
    tls = ssl.create_default_context(cafile=str(certificate))

    def getaddrinfo(_: str, port: int, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    with receiving(tls=server_tls) as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        port = destination_of(receiver.url).port
        assert send(f"https://hooks.example:{port}/", tls).status == 204
        for host in ("other.example", "127.0.0.1"):
            with pytest.raises(PostFailed, match="CERTIFICATE"):
                send(f"https://{host}:{port}/", tls)
        with pytest.raises(PostFailed, match="CERTIFICATE"):  # of nobody whom this machine trusts
            send(f"https://hooks.example:{port}/")
    assert len(receiver.calls) == 1
    assert receiver.calls[0].headers["Host"] == f"hooks.example:{port}"


def certificate_for(name: str, folder: Path) -> Path:
    """A file of a key and its own certificate for a name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    encoding = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(encoding)
    )
    return path
