"""What connections cost each other: parsing, bodies that do not end, answers that nobody reads."""

from __future__ import annotations

import select
import socket
from asyncio import AbstractEventLoop
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h11
import httpx
import numpy as np
import pytest

from service.errors import QuotaReached
from service.http.clients import SharedLimit, client_of
from service.http.parser import (
    BURST_EVENTS,
    EVENTS_PER_S,
    EVENTS_PER_TURN,
    MAX_HEADERS,
    EventRateLimit,
)
from service.http.spool import Spool
from service.settings import MIB

from .client import PNG, png_of
from .fake_codec import FakeCodec
from .test_server import POST, connected, read_all, served, until

CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
ELSEWHERE = "127.0.0.2"
"""A second address of this machine, and so a second client."""


@contextmanager
def most_events_in_a_turn(
    loop: AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[int]]:
    """How many events h11 parsed between two turns of a loop, at most, and in all."""
    counts = [0, 0]
    now = 0
    parse = h11.Connection.next_event

    def counting(self: h11.Connection) -> object:
        nonlocal now
        event = parse(self)
        now += isinstance(event, h11.Event)
        return event

    def turn() -> None:
        nonlocal now
        counts[:] = max(counts[0], now), counts[1] + now
        now = 0
        loop.call_soon(turn)

    monkeypatch.setattr(h11.Connection, "next_event", counting)
    loop.call_soon_threadsafe(turn)
    yield counts


@pytest.mark.parametrize(
    "chunk", [b"1\r\nx\r\n", b"1;a=b\r\nx\r\n", b"7\r\nxxxxxxx\r\n"], ids=["one", "named", "seven"]
)
def test_little_of_a_body_of_tiny_chunks_is_parsed_in_a_turn_of_the_loop(
    chunk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(FakeCodec()) as (server, port), connected(port) as client:
        loop = server.servers[0].get_loop()
        with most_events_in_a_turn(loop, monkeypatch) as counts:
            client.sendall(CHUNKED + chunk * 3000)
            until(lambda: counts[1] > 3000, 20)
            client.sendall(b"0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 415 "), "it is no image, but it is read"
        assert counts[0] <= 2 * EVENTS_PER_TURN


def test_little_of_many_requests_sent_at_once_is_parsed_in_a_turn_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served(FakeCodec()) as (server, port), connected(port) as client:
        with most_events_in_a_turn(server.servers[0].get_loop(), monkeypatch) as counts:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
            answered = b""
            while answered.count(b"HTTP/1.1 200 ") < 200:
                answered += client.recv(1 << 16)
        assert counts[0] <= EVENTS_PER_TURN


def test_a_client_gets_the_work_of_a_rate_and_no_other_waits_for_it() -> None:
    rate_limit = EventRateLimit()
    parsed, now_s = 0, 50.0
    while now_s < 60.0:
        pause_s = rate_limit.pause_s("greedy", now_s)
        now_s += max(pause_s, 0.001)
        if not pause_s:
            rate_limit.charge("greedy", EVENTS_PER_TURN, now_s)
            parsed += EVENTS_PER_TURN
        assert rate_limit.pause_s("other", now_s) == 0
    assert parsed <= 10 * EVENTS_PER_S + BURST_EVENTS + EVENTS_PER_TURN
    assert parsed >= 9 * EVENTS_PER_S


@pytest.mark.parametrize("first", [b"", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_many_headers_are_refused_before_they_are_parsed(first: bytes) -> None:
    with served(FakeCodec()) as (_, port):
        for headers, status in ((MAX_HEADERS - 1, b"200"), (MAX_HEADERS + 1, b"400")):
            with connected(port) as client:
                rest = b"Host: x\r\n" + b"a:\r\n" * (headers - 1) + b"Connection: close\r\n\r\n"
                client.sendall(first + b"GET /livez HTTP/1.1\r\n" + rest[: -len("a:\r\n")])
                client.sendall(rest[-len("a:\r\n") :])
                answers = read_all(client).split(b"HTTP/1.1 ")
                assert answers[-1].startswith(status)
                assert len(answers) == (3 if first else 2)


@contextmanager
def from_elsewhere(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        transport=httpx.HTTPTransport(local_address=ELSEWHERE),
    ) as client:
        yield client


@pytest.mark.parametrize(("kib", "kept"), [(4096, 8), (512, 2)], ids=["large", "small"])
def test_beside_eight_bodies_that_do_not_end_another_client_is_served(
    kib: int, kept: int, tmp_path: Path
) -> None:
    """Large bodies wait on disk; small bodies of one client get half of the memory."""
    body_bytes = kib * 1024
    settings = {"max_body_bytes": body_bytes, "max_waiting_bytes": max(4, kept) * body_bytes}
    with served(FakeCodec(), **settings, spool=tmp_path / "spool") as (server, port):
        with ExitStack() as stack, from_elsewhere(port) as other:
            holding = [stack.enter_context(connected(port)) for _ in range(8)]
            for client in holding:
                client.sendall(POST + b"Content-Length: %d\r\n\r\n" % body_bytes)
                client.sendall(bytes(body_bytes - 1))
            memory, spool = server.admission, server.service.spool.limit
            until(lambda: memory.held_bytes + spool.total == kept * (body_bytes - 1), 10)
            assert memory.held_bytes <= 2 * body_bytes
            assert other.post("/compress", content=PNG).status_code == 200
            metrics = other.get("/metrics").text.splitlines()
            (line,) = (line for line in metrics if line.startswith("rankpress_spooled_bytes "))
            assert float(line.split()[1]) == spool.total
            refused = select.select(holding, [], [], 0)[0]
            assert len(refused) == 8 - kept
            for client in refused:
                answer = client.recv(1 << 16)
                assert answer.startswith(b"HTTP/1.1 429 ") and b"retry-after: " in answer
            last = next(client for client in holding if client not in refused)
            last.sendall(b"x")
            assert last.recv(100).startswith(b"HTTP/1.1 415 "), "it is read, and no image"
        until(lambda: memory.held_bytes + spool.total == 0)
        assert not list(tmp_path.glob("spool/*"))


def test_a_large_body_is_the_same_through_a_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (900, 1200, 3), np.uint8)
    picture = png_of(pixels)
    assert len(picture) > 3 * MIB
    codec = FakeCodec(max_pixels=2_000_000)
    with served(codec, spool=tmp_path) as (server, port):
        url = f"http://127.0.0.1:{port}/compress"
        spooled = httpx.post(url, content=picture)
        as_form = httpx.post(url, files={"file": ("a.png", picture)})
    with served(codec, max_spool_bytes=0) as (server, port):
        kept = httpx.post(f"http://127.0.0.1:{port}/compress", content=picture)
        assert server.service.spool.limit.total == 0
    assert spooled.status_code == as_form.status_code == kept.status_code == 200
    assert spooled.content == as_form.content == kept.content


def test_a_full_disk_is_503_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spool, "open", lambda _: open("/dev/full", "w+b", buffering=0))
    with served(FakeCodec()) as (server, port), httpx.Client() as client:
        for content in (bytes(3 * MIB), PNG):
            answer = client.post(f"http://127.0.0.1:{port}/compress", content=content)
            assert answer.status_code == (200 if content is PNG else 503)
        until(lambda: server.admission.held_bytes + server.service.spool.limit.total == 0)


def test_bodies_on_disk_are_limited_too() -> None:
    settings = {"max_spool_bytes": 2 * MIB, "max_body_bytes": 8 * MIB, "client_share": 1}
    with served(FakeCodec(), **settings) as (server, port), httpx.Client() as client:
        answer = client.post(f"http://127.0.0.1:{port}/compress", content=bytes(6 * MIB))
        assert (answer.status_code, answer.json()["type"][-9:]) == (503, "saturated")
        until(lambda: server.service.spool.limit.total == 0)


def test_one_client_has_a_part_of_the_requests_at_a_time() -> None:
    begun = POST + b"Content-Length: 9\r\n\r\n"
    with served(FakeCodec(), max_connections=40) as (server, port), ExitStack() as stack:
        for _ in range(19):  # half of 40 - 40 // 16
            stack.enter_context(connected(port)).sendall(begun)
        until(lambda: len(server.server_state.tasks) == 19)
        refused = httpx.get(f"http://127.0.0.1:{port}/models")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        assert refused.json()["type"] == "urn:rankpress:problem:too-many-requests"
        for closes in (b"", b"Connection: close\r\n"):
            with connected(port) as writes_first:
                writes_first.sendall(POST + closes + b"Content-Length: %d\r\n\r\n" % (8 * MIB))
                writes_first.sendall(bytes(8 * MIB))
                assert read_all(writes_first).startswith(b"HTTP/1.1 429 ")
        assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
        with from_elsewhere(port) as other:
            assert other.get("/models").status_code == 200


def test_clients_of_a_trusted_proxy_have_a_part_each() -> None:
    begun = POST + b"X-Forwarded-For: 203.0.113.%d\r\nContent-Length: 9\r\n\r\n"
    settings = {"max_connections": 16, "forwarded_allow_ips": "127.0.0.1"}
    with served(FakeCodec(), **settings) as (server, port), ExitStack() as stack:
        for number in range(10):
            stack.enter_context(connected(port)).sendall(begun % number)
        until(lambda: len(server.server_state.tasks) == 10)
        headers = {"X-Forwarded-For": "203.0.113.1"}
        url = f"http://127.0.0.1:{port}/models"
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers=headers).status_code == 200
        stack.enter_context(connected(port)).sendall(begun % 1)
        stack.enter_context(connected(port)).sendall(begun % 1)
        until(lambda: len(server.server_state.tasks) == 12)
        assert httpx.get(url, headers=headers).status_code == 429
        assert httpx.get(url).status_code == 200


def test_a_client_may_have_half_of_what_others_leave_and_always_one_request() -> None:
    limit = SharedLimit("memory", 100, 0.5)
    limit.check("a", 90)
    limit.take("a", 50)
    with pytest.raises(QuotaReached):
        limit.check("a", 1)
    limit.check("a", 1, own=50)
    limit.take("b", 25)
    with pytest.raises(QuotaReached):
        limit.check("b", 1)
    limit.take("a", -50)
    limit.check("b", 25)
    with pytest.raises(QuotaReached):
        limit.check("b", 26)
    SharedLimit("memory", 100, 1.0).check("a", 1000)


def test_what_counts_as_one_client() -> None:
    same = ["2001:db8:1:2::3", "2001:db8:1:2:ffff::"]
    assert len({client_of(host) for host in same}) == 1
    assert client_of("2001:db8:1:3::3") != client_of(same[0])
    assert client_of("::ffff:192.0.2.1") == client_of("192.0.2.1") == "192.0.2.1"
    assert client_of(None) == client_of("") == ""


@pytest.mark.parametrize("pixels", [(100, 200), (600, 700)], ids=["the last piece", "before it"])
def test_who_does_not_read_an_answer_is_disconnected(pixels: tuple[int, int]) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (*pixels, 3), np.uint8)
    codec = FakeCodec(max_pixels=500_000)
    with served(codec, stall_timeout_s=0.5) as (server, port):
        server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        url = f"http://127.0.0.1:{port}"
        stream = httpx.post(f"{url}/compress?rate=2", content=png_of(rgb)).content
        until(lambda: not server.server_state.connections)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(
                b"POST /decompress?format=png HTTP/1.1\r\nHost: x\r\n"
                b"Content-Length: %d\r\n\r\n" % len(stream) + stream
            )
            until(lambda: len(server.server_state.connections) == 1)
            until(lambda: not server.server_state.connections, 10)
        assert server.admission.held_bytes == 0
