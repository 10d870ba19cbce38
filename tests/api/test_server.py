"""The server on a real port: shutdown, disconnects, slow clients, what is not HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from service.logs import QUIET_S, RareWarning
from service.server.run import Server
from service.settings import Settings

from .client import PNG
from .fake_codec import FakeCodec

POST = b"POST /compress HTTP/1.1\r\nHost: x\r\n"
WHOLE = POST + b"Content-Length: %d\r\n\r\n" % len(PNG) + PNG


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.01)


@contextmanager
def served(codec: FakeCodec, **settings: Any) -> Iterator[tuple[Server, int]]:
    """A server in a thread of this process, and its port."""
    server = Server(codec, Settings(port=0, **({"jobs": False} | settings)))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200)
        yield server, port
    finally:
        codec.gate.set()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """All bytes that arrive until the server closes the connection."""
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    return received


def test_a_client_that_leaves_while_it_waits_costs_no_codec_time() -> None:
    codec = FakeCodec()
    with served(codec) as (server, port):
        codec.gate.clear()
        with connected(port) as first, connected(port) as second:
            first.sendall(WHOLE)
            until(lambda: codec.calls == 1)
            second.sendall(WHOLE)
            until(lambda: server.admission.waiting == 1)
            second.close()
            until(lambda: server.admission.waiting == 0)
            codec.gate.set()
            assert first.recv(100).startswith(b"HTTP/1.1 200 ")
        page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'rankpress_requests_total{route="/compress",status="499"} 1.0' in page
        assert codec.calls == 1
        until(lambda: server.admission.held_bytes == 0)


def test_a_stalled_body_is_answered_408_and_the_connection_closed() -> None:
    with served(FakeCodec(), stall_timeout_s=0.2) as (_, port), connected(port) as client:
        client.sendall(WHOLE[:-10])
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"urn:rankpress:problem:body-timeout" in answer


def test_headers_that_trickle_in_are_cut_off() -> None:
    with served(FakeCodec(), header_timeout_s=0.3) as (_, port), connected(port) as client:
        client.sendall(POST)
        with pytest.raises(OSError):  # noqa: PT012
            while True:
                client.sendall(b"X: y\r\n")
                time.sleep(0.05)  # the client's pace; without the limit this would never end


def test_a_silent_connection_is_closed_and_a_used_one_lives_on() -> None:
    with served(FakeCodec(), header_timeout_s=0.5) as (_, port):
        with connected(port) as silent:
            assert silent.recv(1) == b""
        with connected(port) as used:
            for _ in range(4):
                used.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b"}"):
                    answer += used.recv(4096)
                assert answer.startswith(b"HTTP/1.1 200 ")
                time.sleep(0.25)


def test_too_long_a_body_is_answered_while_it_still_comes() -> None:
    with served(FakeCodec(), max_body_bytes=10_000) as (_, port):
        with connected(port) as declared:
            declared.sendall(POST + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n")
            assert declared.recv(100).startswith(b"HTTP/1.1 413 ")
        with connected(port) as chunked:
            chunked.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(40):
                chunked.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
            assert chunked.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01 not http at all\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000,
        POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_answered_by_a_problem_document(garbage: bytes) -> None:
    with served(FakeCodec()) as (_, port), connected(port) as client:
        client.sendall(garbage)
        head, _, body = read_all(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in head
        assert json.loads(body)["type"] == "urn:rankpress:problem:bad-request"


def test_the_server_does_not_say_what_it_is() -> None:
    with served(FakeCodec()) as (_, port):
        assert "server" not in httpx.get(f"http://127.0.0.1:{port}/livez").headers


BIG = 8 << 20
"""More than a socket's buffers hold, and than a body may have."""

REFUSED = [
    ("404", b"POST /nothing"),
    ("405", b"POST /models"),
    ("401", b"POST /adapters?rate=2&base=0"),
    ("413", b"POST /compress"),
    ("415", b"POST /compress", b"Content-Encoding: gzip\r\n"),
    ("422", b"POST /compress?rate=77"),
    ("406", b"POST /decompress", b"Accept: text/html\r\n"),
    ("200", b"GET /livez"),
]


@pytest.mark.parametrize("closes", [b"", b"Connection: close\r\n"], ids=["keep", "close"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_client_that_writes_its_whole_body_first_reads_what_was_answered_early(
    framing: str, closes: bytes
) -> None:
    chunk = b"%x\r\n" % BIG + bytes(BIG) + b"\r\n0\r\n\r\n"
    body = bytes(BIG) if framing == "length" else chunk
    length = b"Content-Length: %d\r\n" % BIG
    frame = length if framing == "length" else b"Transfer-Encoding: chunked\r\n"
    token = "a token of sixteen letters"
    with served(FakeCodec(), max_body_bytes=BIG // 2, admin_token=token) as (server, port):
        for status, path, *more in REFUSED:
            with connected(port) as client:
                lines = [path + b" HTTP/1.1", b"Host: x", frame + closes + b"".join(more)]
                client.sendall(b"\r\n".join(lines) + b"\r\n" + body)
                assert read_all(client).startswith(b"HTTP/1.1 " + status.encode()), path
        assert server.admission.held_bytes == 0
    with served(FakeCodec()) as (server, port), connected(port) as client:
        server.admission.begin_drain()
        client.sendall(POST + frame + closes + b"\r\n" + body)
        assert read_all(client).startswith(b"HTTP/1.1 503 ")


def test_a_client_of_http_1_0_reads_it_too() -> None:
    head = b"POST /nothing HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % BIG
    with served(FakeCodec()) as (_, port), connected(port) as client:
        client.sendall(head + bytes(BIG))
        assert read_all(client).startswith(b"HTTP/1.1 404 ")


def test_an_unwanted_body_is_dropped_up_to_a_number_of_bytes() -> None:
    with served(FakeCodec(), max_body_bytes=1 << 20) as (_, port), connected(port) as client:
        client.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % 2**40)
        sent = 0
        with pytest.raises(OSError):  # noqa: PT012
            while sent < 64 * BIG:
                client.sendall(bytes(BIG))
                sent += BIG


def test_after_a_short_unwanted_body_the_connection_is_kept() -> None:
    with served(FakeCodec()) as (_, port), connected(port) as client:
        for _ in "ab":
            client.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde")
            answer = b""
            while not answer.endswith(b"}"):
                answer += client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 404 ") and b"connection: close" not in answer


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01 not http at all\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_may_be_written_whole_before_the_answer_is_read(head: bytes) -> None:
    with served(FakeCodec()) as (server, port):
        with connected(port) as client:
            client.sendall(head + b"a" * BIG)
            assert read_all(client).startswith(b"HTTP/1.1 400 ")
        with connected(port) as endless, pytest.raises(OSError):  # noqa: PT012
            endless.sendall(head)
            for _ in range(64):
                endless.sendall(b"a" * BIG)
        until(lambda: not server.server_state.tasks)


def test_a_connection_beyond_the_limit_takes_the_place_of_the_longest_idle() -> None:
    with served(FakeCodec(), max_connections=4) as (server, port), ExitStack() as stack:
        until(lambda: not server.server_state.connections)
        first, *others = (stack.enter_context(connected(port)) for _ in range(4))
        until(lambda: len(server.server_state.connections) == 4)
        with connected(port) as late:
            late.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert late.recv(100).startswith(b"HTTP/1.1 200 ")
            assert first.recv(1) == b""
            for other in others:
                other.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                assert other.recv(100).startswith(b"HTTP/1.1 200 ")


def test_health_checks_are_answered_when_all_connections_but_a_few_are_at_work() -> None:
    begun = POST + b"Content-Length: %d\r\n\r\n" % len(PNG)
    settings = {"max_connections": 16, "client_share": 1}
    with served(FakeCodec(), **settings) as (server, port), ExitStack() as stack:
        url = f"http://127.0.0.1:{port}"
        slow = [stack.enter_context(connected(port)) for _ in range(15)]
        for client in slow:
            client.sendall(begun)
        until(lambda: len(server.server_state.tasks) == 15)
        for path in ("/livez", "/readyz", "/metrics"):
            assert httpx.get(url + path).status_code == 200
        refused = httpx.post(f"{url}/compress", content=PNG)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert refused.json()["type"] == "urn:rankpress:problem:saturated"
        idle = [stack.enter_context(connected(port)) for _ in range(10)]
        assert httpx.get(f"{url}/livez").status_code == 200, "idle connections give way"
        assert [client.recv(1) for client in idle[:9]] == [b""] * 9
        for client in slow:
            client.sendall(PNG)
            assert client.recv(100).startswith(b"HTTP/1.1 200 "), "no request at work does"
        assert httpx.post(f"{url}/compress", content=PNG).status_code == 200


def test_a_warning_is_written_rarely_and_says_how_often_it_was_meant() -> None:
    clock = [0.0]
    warn = RareWarning("too many", lambda: clock[0])
    with capture_logs() as lines:
        for clock[0] in (0.0, 1.0, QUIET_S - 1, QUIET_S, QUIET_S + 1):
            warn(limit=7)
    assert [(line["event"], line["times"], line["limit"]) for line in lines] == [
        ("too many", 1, 7),
        ("too many", 3, 7),
    ]


PROGRAM = """
import resource
import sys
from service.server.run import serve
from service.settings import Settings
from fake_codec import FakeCodec
codec = FakeCodec()
codec.work_s = float(sys.argv[2])
if sys.argv[4] != "0":
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[4]),) * 2)
limit = int(sys.argv[5])
settings = Settings(
    port=int(sys.argv[1]), drain_s=float(sys.argv[3]), jobs=False, max_connections=limit
)
serve(codec, settings)
"""


class Process:
    """`serve` in a process of its own, and the log lines it wrote."""

    def __init__(
        self,
        work_s: float,
        drain_s: float,
        files: int = 0,
        connections: int = 0,
        objects: str = "",
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        here = Path(__file__).parent
        numbers = [str(number) for number in (port, work_s, drain_s, files, connections)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *numbers],
            env={"PYTHONPATH": f"{here}:{here.parents[1]}", "RANKPRESS_OBJECTS_URL": objects},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = f"http://127.0.0.1:{port}"
        until(self._is_ready, 20)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None
        return answers(f"{self.url}/readyz")

    def end(self, seconds: float) -> tuple[int, list[dict[str, Any]]]:
        """Exit status and log lines, once it has ended by itself."""
        _, lines = self.process.communicate(timeout=seconds)
        return self.process.returncode, [json.loads(line) for line in lines.splitlines()]


def compress_in_thread(url: str, statuses: list[int]) -> threading.Thread:
    def post() -> None:
        try:
            statuses.append(httpx.post(f"{url}/compress", content=PNG, timeout=20).status_code)
        except httpx.TransportError:
            statuses.append(0)

    thread = threading.Thread(target=post)
    thread.start()
    return thread


def test_sigterm_finishes_what_was_admitted_refuses_the_rest_and_exits_0() -> None:
    server = Process(work_s=0.7, drain_s=10)
    statuses: list[int] = []
    threads = [compress_in_thread(server.url, statuses) for _ in range(2)]
    page = ""
    while "rankpress_queue_depth 1.0" not in page:
        page = httpx.get(f"{server.url}/metrics").text
    server.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
    refused = httpx.post(f"{server.url}/compress", content=PNG)
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    for thread in threads:
        thread.join(10)
    status, lines = server.end(10)
    assert (status, statuses) == (0, [200, 200])
    requests = [line for line in lines if line["event"] == "request"]
    assert sorted(line["status"] for line in requests if line["route"] == "/compress") == [
        200,
        200,
        503,
    ]
    assert {"timestamp", "level", "id", "ms"} <= requests[0].keys()


def test_work_that_outlasts_the_drain_is_cut_off_and_said_so() -> None:
    server = Process(work_s=20, drain_s=0.2)
    statuses: list[int] = []
    thread = compress_in_thread(server.url, statuses)
    until(lambda: "rankpress_running 1.0" in httpx.get(f"{server.url}/metrics").text)
    server.process.send_signal(signal.SIGTERM)
    status, lines = server.end(6)
    thread.join(5)
    assert status == 1
    assert lines[-1]["event"] == "work cut off"
    assert 200 not in statuses


def test_a_store_that_hangs_does_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    digest = "ab" * 32
    pipe = tmp_path / "objects" / digest[:2] / digest
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)  # what reads it waits for ever
    server = Process(work_s=0, drain_s=2, objects=str(tmp_path))
    with connected(int(server.url.rpartition(":")[2])) as client:
        client.sendall(f"GET /objects/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        until(lambda: "rankpress_in_flight 2.0" in httpx.get(f"{server.url}/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        try:
            status, lines = server.end(20)
        finally:
            server.process.kill()
    assert status == 1
    assert (lines[-1]["event"], lines[-1]["calls"]) == ("work cut off", 1)


def test_an_idle_server_ends_at_once() -> None:
    for sent in (signal.SIGTERM, signal.SIGINT):
        server = Process(work_s=0, drain_s=30)
        server.process.send_signal(sent)
        status, _ = server.end(5)
        assert status == 0


def test_connections_without_a_descriptor_are_told_of_in_one_line() -> None:
    server = Process(work_s=0, drain_s=1, files=64, connections=1000)
    host, port = "127.0.0.1", int(server.url.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection((host, port)))
        assert server.process.stderr is not None
        lines = islice(server.process.stderr, 50)  # a traceback alone has 20
        line = next(line for line in lines if "no connection can be accepted" in line)
        assert json.loads(line)["error"] == "[Errno 24] Too many open files"
    assert httpx.get(f"{server.url}/livez", timeout=10).status_code == 200
    server.process.send_signal(signal.SIGTERM)
    status, rest = server.end(10)
    assert status == 0
    assert len([line for line in rest if line["level"] in ("warning", "error")]) <= 1


def test_by_default_connections_leave_descriptors_to_the_rest() -> None:
    server = Process(work_s=0, drain_s=1, files=256)
    host, port = "127.0.0.1", int(server.url.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(600):
            client = stack.enter_context(socket.create_connection((host, port), timeout=10))
            with suppress(OSError):
                client.sendall(POST + b"Content-Length: 9\r\n\r\n")
        until(lambda: answers(f"{server.url}/livez"), 20)
    server.process.send_signal(signal.SIGTERM)
    status, lines = server.end(10)
    assert status == 0
    warnings = {line["event"] for line in lines if line["level"] in ("warning", "error")}
    assert warnings == {"connections are at their limit"}


def answers(url: str) -> bool:
    """Whether a GET is answered 200 now; a connection beyond the limit may be closed."""
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


# --- behind a proxy ----------------------------------------------------------------------------


def request_on(connection: socket.socket, target: str = "/livez") -> bytes:
    """The answer to a GET of JSON on an open connection; incomplete if that was closed."""
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"}"):
        piece = connection.recv(1 << 16)
        if not piece:
            return answer
        answer += piece
    return answer


def test_an_idle_connection_is_kept_for_longer_than_headers_may_take() -> None:
    """A load balancer that reuses a connection after a while must not find it closed."""
    assert Settings().keep_alive_s > 60
    with served(FakeCodec(), header_timeout_s=0.2, keep_alive_s=30.0) as (_, port):
        with connected(port) as kept, connected(port) as slow:
            assert request_on(kept).startswith(b"HTTP/1.1 200")
            assert request_on(slow).startswith(b"HTTP/1.1 200")
            slow.sendall(b"GET /livez HT")  # has begun, and does not end
            assert slow.recv(1) == b"", "headers that do not come are given up"
            assert request_on(kept).startswith(b"HTTP/1.1 200")


def test_an_idle_connection_is_closed_in_the_end() -> None:
    with served(FakeCodec(), keep_alive_s=1.0) as (_, port), connected(port) as kept:
        assert request_on(kept).startswith(b"HTTP/1.1 200")
        while kept.recv(1 << 16):
            pass


def test_links_and_documents_have_the_prefix_of_the_proxy() -> None:
    settings = {"root_path": "/pictures/v1"}
    with served(FakeCodec(), **settings) as (_, port):
        base = f"http://127.0.0.1:{port}"  # the proxy has taken the prefix off
        page = httpx.get(f"{base}/docs").text
        assert "/pictures/v1/openapi.json" in page and "/pictures/v1/docs/static/" in page
        document = httpx.get(f"{base}/openapi.json").json()
        assert document["servers"] == [{"url": "/pictures/v1"}]
        assert httpx.post(f"{base}/compress?rate=2", content=PNG).status_code == 200


def test_a_slash_too_many_is_not_redirected_to_another_scheme() -> None:
    with served(FakeCodec()) as (_, port):
        for path in ("/livez/", "/models/", "/docs/"):
            answer = httpx.get(f"http://127.0.0.1:{port}{path}")
            assert (answer.status_code, answer.json()["status"]) == (404, 404), path


@pytest.mark.parametrize(("trusted", "counts"), [("127.0.0.1", True), ("10.0.0.0/8", False)])
def test_forwarded_headers_count_when_a_trusted_proxy_sends_them(
    trusted: str, counts: bool
) -> None:
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    with capture_logs() as lines, served(FakeCodec(), forwarded_allow_ips=trusted) as (_, port):
        httpx.get(f"http://127.0.0.1:{port}/models", headers=headers)
    (line,) = [line for line in lines if line.get("route") == "/models"]
    assert line["client"] == ("203.0.113.7" if counts else "127.0.0.1")


def test_a_unix_socket_serves(tmp_path: Path) -> None:
    place = tmp_path / "s"
    server = Server(FakeCodec(), Settings(uds=place, jobs=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(place))) as client:
            assert client.get("http://x/livez").status_code == 200
    finally:
        server.should_exit = True
        thread.join(20)


def test_an_inherited_socket_serves() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(FakeCodec(), Settings(fd=listening.fileno(), jobs=False))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            until(lambda: server.started)
            port = listening.getsockname()[1]
            assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
        finally:
            server.should_exit = True
            thread.join(20)


def test_an_address_that_cannot_be_listened_at_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, ThreadPoolExecutor(1) as pool:
        port, no_socket = taken.getsockname()[1], os.open(os.devnull, os.O_RDONLY)
        for place, named, reason in (
            ({"port": port}, f"127.0.0.1:{port}", "address already in use"),
            ({"uds": tmp_path / "no" / "s"}, str(tmp_path / "no" / "s"), "No such file"),
            ({"fd": no_socket}, f"descriptor {no_socket}", "on non-socket"),
        ):
            server = Server(FakeCodec(), Settings(jobs=False, **place))
            with pytest.raises(OSError, match=reason) as failed:
                pool.submit(server.run).result()
            assert failed.value.filename == named
        os.close(no_socket)


@pytest.mark.platform
@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_the_host_of_two_colons_listens_on_ipv4_too() -> None:
    with served(FakeCodec(), host="::") as (_, port):
        for host in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{host}:{port}/livez").status_code == 200


# --- pages of other origins --------------------------------------------------------------------

PAGE = "https://shop.example"


@pytest.mark.parametrize("origins", [f"https://a.example, {PAGE}", "*"])
def test_pages_of_allowed_origins_may_call_and_read_also_errors(origins: str) -> None:
    with served(FakeCodec(), cors_origins=origins, max_body_bytes=1000) as (_, port):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Origin": PAGE}) as client:
            allowed = "*" if origins == "*" else PAGE
            preflight = client.options(
                "/compress",
                headers={
                    "Access-Control-Request-Method": "POST",
                    "Access-Control-Request-Headers": "content-type, x-request-id",
                },
            )
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == allowed
            assert "POST" in preflight.headers["access-control-allow-methods"]
            assert "x-request-id" in preflight.headers["access-control-allow-headers"]
            answers = [
                client.post("/compress?rate=2", content=PNG),
                client.post("/compress?rate=3", content=PNG),
                client.post("/compress", content=bytes(1001)),
                client.get("/nothing"),
                client.put("/compress", content=b""),
            ]
            assert [a.status_code for a in answers] == [200, 422, 413, 404, 405]
            for answer in answers:
                assert answer.headers["access-control-allow-origin"] == allowed
                exposed = answer.headers["access-control-expose-headers"]
                for name in ("ETag", "Retry-After", "X-Rankpress-Psnr", "Server-Timing"):
                    assert name in exposed
                if origins != "*":
                    assert "Origin" in answer.headers["vary"]
            assert {h for h in answers[0].headers if h.startswith("x-")} <= {
                name.strip().lower() for name in exposed.split(",")
            } | {"x-content-type-options"}


@pytest.mark.parametrize("origins", ["", "https://other.example"])
def test_other_pages_may_not(origins: str) -> None:
    with served(FakeCodec(), cors_origins=origins) as (_, port):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Origin": PAGE}) as client:
            answer = client.post("/compress?rate=2", content=PNG)
            assert answer.status_code == 200
            assert "access-control-allow-origin" not in answer.headers
            preflight = client.options(
                "/compress", headers={"Access-Control-Request-Method": "POST"}
            )
            assert "access-control-allow-origin" not in preflight.headers


def test_the_documentation_loads_nothing_from_another_host() -> None:
    with served(FakeCodec()) as (_, port):
        base = f"http://127.0.0.1:{port}"
        page = httpx.get(f"{base}/docs").text
        assert "https://" not in page and "http://" not in page
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(loaded) >= 3
        for path in loaded:
            answer = httpx.get(f"{base}{path}")
            assert answer.status_code == 200 and len(answer.content) > 100, path
