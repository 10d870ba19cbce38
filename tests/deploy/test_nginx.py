"""The nginx that ships, for real, in front of a server that does what its path says."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import pytest
from jobs.machines import until

from deploy.arrangement import NGINX_SCRIPT, answers, find_nginx, free_port

pytestmark = pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed")


class Upstream(BaseHTTPRequestHandler):
    """Answers 200 with the headers that it got, after `gate` where the path has it.

    Where it has "die", the connection ends without an answer; where it has "full", the first server
    that is asked answers 503.
    """

    protocol_version = "HTTP/1.1"
    gate = threading.Event()
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(self.path)
        if "die" in self.path:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if "full" in self.path and self.asked.count(self.path) == 1:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if "/slow" in self.path:
            self.gate.wait(30)
        body = json.dumps(dict(self.headers)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if self.path.startswith(("/objects", "/iiif", "/weights")):
            self.send_header("Cache-Control", "max-age=60")
            self.send_header("Accept-Ranges", "bytes")
        if self.path.startswith("/pictures"):
            age = "max-age=1" if "brief" in self.path else "max-age=60"
            stale = ", stale-while-revalidate=60" if "stale" in self.path else ""
            self.send_header("Cache-Control", age + stale)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def server(closing: ExitStack) -> str:
    """Host and port of an upstream server."""
    upstream = closing.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Upstream))
    threading.Thread(target=upstream.serve_forever).start()
    closing.callback(upstream.shutdown)
    return f"127.0.0.1:{upstream.server_port}"


@contextmanager
def nginx(**settings: str) -> Iterator[str]:
    """Host and port of a running nginx."""
    program = find_nginx()
    assert program is not None
    with ExitStack() as closing:
        # Not pytest's folder: nginx's processes have another user where root starts it.
        folder = Path(closing.enter_context(TemporaryDirectory(prefix="rankpress-nginx-")))
        upstreams = [server(closing) for _ in range(2)]
        Upstream.asked.clear()
        listen = f"127.0.0.1:{free_port()}"
        variables = {
            "PATH": f"{Path(program).parent}:{os.environ['PATH']}",
            "SERVERS": " ".join(upstreams),
            "LISTEN": listen,
            "RUN_DIR": str(folder / "run"),
            "CACHE_DIR": str(folder / "cache"),
        }
        for name in ("run", "cache"):
            (folder / name).mkdir()
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755)
        log = closing.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            ["sh", NGINX_SCRIPT], env=variables | settings, stdout=log, stderr=log
        )
        closing.callback(process.wait)
        closing.callback(process.terminate)
        closing.callback(Upstream.gate.clear)
        closing.callback(Upstream.gate.set)
        while not answers(f"http://{listen}/livez"):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield listen


def connect(listen: str, source: str = "127.0.0.1") -> socket.socket:
    host, port = listen.split(":")
    return socket.create_connection((host, int(port)), timeout=30, source_address=(source, 0))


def send(listen: str, request: bytes, source: str = "127.0.0.1") -> tuple[bytes, bytes]:
    """Head and body of the answer to these bytes."""
    with connect(listen, source) as client:
        client.sendall(request)
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


HOST = b"Host: x\r\nConnection: close\r\n"
UNREADABLE = {
    "no request line": b"nonsense\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a long path": b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a long header": b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 40_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 20_000 + b"\r\n",
    "a path outside": b"GET /../.. HTTP/1.1\r\n" + HOST + b"\r\n",
    "another version": b"GET / HTTP/3.0\r\n" + HOST + b"\r\n",
    "a coding": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
    "no chunk": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
}
GET = b"GET %s HTTP/1.1\r\n" + HOST + b"%s\r\n"
PICTURE = b"/objects/" + b"ab" * 32


def check_problem(answer: tuple[bytes, bytes], status: int, slug: str) -> None:
    head, body = answer
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert b"Content-Type: application/problem+json" in head
    document = json.loads(body)
    assert (document["status"], document["type"]) == (status, f"urn:rankpress:problem:{slug}")
    assert re.fullmatch("urn:rankpress:request:[0-9a-f]{32}", document["instance"])


def test_what_nginx_itself_refuses_is_worded_as_the_service_does() -> None:
    with nginx() as listen:
        for request in UNREADABLE.values():
            check_problem(send(listen, request), 400, "bad-request")
        large = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\n"
        check_problem(send(listen, large), 413, "too-many-bytes")
        trace = b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n"
        check_problem(send(listen, trace), 405, "method-not-allowed")
        inside = GET % (b"/problem/bad-request", b"")
        check_problem(send(listen, inside), 404, "not-found")
        whole = send(listen, GET % (PICTURE, b""))
        assert whole[0].startswith(b"HTTP/1.1 200 ") and b"X-Cache-Status: MISS" in whole[0]
        beyond = send(listen, GET % (PICTURE, b"Range: bytes=9000-\r\n"))
        check_problem(beyond, 416, "range-unsatisfiable")
        assert b"Content-Range: bytes */%d" % len(whole[1]) in beyond[0]


def test_servers_are_told_the_address_of_the_client_and_not_what_it_says() -> None:
    claim = b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n"
    with nginx() as listen:
        got = json.loads(send(listen, GET % (b"/", claim), "127.0.0.3")[1])
        assert (got["X-Forwarded-For"], got["X-Forwarded-Proto"]) == ("127.0.0.3", "http")
        picture = json.loads(send(listen, GET % (PICTURE, claim), "127.0.0.3")[1])
        assert picture["X-Forwarded-For"] == "127.0.0.3"
        assert picture["Host"] == "x" and picture["X-Request-Id"] and "Connection" not in picture
        assert picture["Accept"] == "*/*;q=0.1" and "Accept" not in got
    with nginx(TRUSTED_PROXIES="10.0.0.0/8 127.0.0.0/8") as listen:
        got = json.loads(send(listen, GET % (b"/", claim), "127.0.0.3")[1])
        assert got["X-Forwarded-For"] == "203.0.113.7"
        assert got["X-Forwarded-Proto"] == "https"


def test_the_bytes_of_a_stream_are_kept_whole_and_served_in_parts() -> None:
    stream = PICTURE + b"/stream"
    with nginx() as listen:
        part, begin = send(listen, GET % (stream, b"Range: bytes=2-5\r\n"))
        assert part.startswith(b"HTTP/1.1 206 ") and b"X-Cache-Status: MISS" in part
        whole = send(listen, GET % (stream, b"Accept: image/avif\r\n"))
        assert whole[0].startswith(b"HTTP/1.1 200 ") and b"X-Cache-Status: HIT" in whole[0]
        assert begin == whole[1][2:6]
        size = len(whole[1])
        assert b"Content-Range: bytes 2-5/%d" % size in part
        assert "Range" not in json.loads(whole[1])
        end, last = send(listen, GET % (stream, b"Range: bytes=-7\r\n"))
        assert last == whole[1][-7:] and b"X-Cache-Status: HIT" in end
        beyond = send(listen, GET % (stream, b"Range: bytes=%d-\r\n" % size))
        check_problem(beyond, 416, "range-unsatisfiable")
        assert Upstream.asked.count(stream.decode()) == 1


def test_pictures_of_iiif_are_kept_for_all_and_documents_name_the_host_that_was_asked() -> None:
    base = PICTURE.replace(b"/objects", b"/iiif")
    tile, document = base + b"/0,0,512,512/max/0/default.jpg", base + b"/info.json"
    with nginx() as listen:
        for status, accept in ((b"MISS", b"image/avif"), (b"HIT", b"image/webp"), (b"HIT", b"*/*")):
            head, _ = send(listen, GET % (tile, b"Accept: %s\r\n" % accept))
            assert b"X-Cache-Status: " + status in head
        for host in (b"a.example:8080", b"b.example"):
            request = b"GET %s HTTP/1.1\r\nHost: %s\r\nAccept: application/json\r\n" % (
                document,
                host,
            )
            head, body = send(listen, request + b"Connection: close\r\n\r\n")
            got = json.loads(body)
            assert (got["Host"], got["Accept"]) == (host.decode(), "application/json")
            assert b"X-Cache-Status" not in head
        assert Upstream.asked.count(document.decode()) == 2


AGES = {b"brief": b"EXPIRED", b"brief-and-stale": b"STALE"}
"""Names that are fresh for a second, and how they are served after that."""


def test_names_are_kept_by_format_and_changed_and_listed_by_those_who_may_write() -> None:
    name, token = b"/pictures/blog/cat.jpg/stream", f"Authorization: Bearer {TOKEN}\r\n".encode()
    with nginx(WRITE_TOKEN=TOKEN) as listen:
        first = {word: send(listen, GET % (b"/pictures/" + word, b"")) for word in AGES}
        assert all(b"X-Cache-Status: MISS" in head for head, _ in first.values())
        for status, accept in (
            (b"MISS", b"image/avif"),
            (b"MISS", b"image/webp"),
            (b"HIT", b"a/b, image/webp"),
        ):
            head, body = send(listen, GET % (name, b"Accept: %s\r\n" % accept))
            assert b"X-Cache-Status: " + status in head
        assert json.loads(body)["Accept"] == "image/webp, application/x-none"
        stream = b"/pictures/blog/cat.jpg/@stream"
        for status, accept in ((b"MISS", b"image/avif"), (b"HIT", b"image/webp")):
            head, _ = send(listen, GET % (stream, b"Accept: %s\r\n" % accept))
            assert b"X-Cache-Status: " + status in head
        secret = (b"GET /pictures?limit=2", b"GET /pictures/a/@history", b"DELETE /pictures/a",
                  b"PUT /pictures/a/b?rate=4")  # fmt: skip
        for request in secret:
            refused = send(listen, request + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            check_problem(refused, 403, "forbidden")
            head, _ = send(listen, request + b" HTTP/1.1\r\n" + HOST + token + b"\r\n")
            assert head.startswith(b"HTTP/1.1 200 ") and b"X-Cache-Status" not in head, request
        for word, status in AGES.items():
            while b": HIT" in (head := send(listen, GET % (b"/pictures/" + word, b""))[0]):
                time.sleep(0.05)
            assert b"X-Cache-Status: " + status in head


def test_weights_are_kept_for_each_coding_and_their_index_is_not() -> None:
    file, index = b"/weights/" + b"ab" * 32 + b".safetensors", b"/weights/index.json"
    with nginx() as listen:
        for status, coding in (
            (b"MISS", b"gzip, br"),
            (b"MISS", b"identity"),
            (b"HIT", b"gzip, br"),
        ):
            head, body = send(listen, GET % (file, b"Accept-Encoding: %s\r\n" % coding))
            assert b"X-Cache-Status: " + status in head
            assert json.loads(body)["Accept-Encoding"] == coding.decode()
        for path in (index, index, b"/", b"/web/page.js"):
            head, _ = send(listen, GET % (path, b""))
            assert b"X-Cache-Status" not in head
        assert Upstream.asked.count(index.decode()) == 2


def test_one_client_has_a_number_of_bodies_and_requests_at_a_time_and_others_theirs() -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n"
    begun, post = head + b"Expect: 100-continue\r\n\r\n", head + b"\r\nabcabcabc"
    limits = {"CLIENT_UPLOADS": "2", "CLIENT_CONNECTIONS": "4"}
    with nginx(**limits) as listen, ExitStack() as stack:
        for _ in range(2):
            upload = stack.enter_context(connect(listen))
            upload.sendall(begun)
            assert upload.recv(1 << 10).startswith(b"HTTP/1.1 100 ")  # nginx counts it from here on
        refused = send(listen, post)
        check_problem(refused, 429, "too-many-requests")
        assert b"Retry-After: 5" in refused[0]
        assert send(listen, GET % (b"/", b""))[0].startswith(b"HTTP/1.1 200 ")
        assert send(listen, post, "127.0.0.2")[0].startswith(b"HTTP/1.1 200 ")
        for _ in range(2):
            stack.enter_context(connect(listen)).sendall(GET % (b"/slow", b""))
        until(lambda: Upstream.asked.count("/slow") == 2)
        check_problem(send(listen, GET % (b"/", b"")), 429, "too-many-requests")
        assert send(listen, GET % (b"/livez", b""))[0].startswith(b"HTTP/1.1 200 ")
        assert send(listen, GET % (b"/", b""), "127.0.0.2")[0].startswith(b"HTTP/1.1 200 ")


def test_one_client_has_a_number_of_requests_a_second() -> None:
    with nginx(CLIENT_RATE="1") as listen:
        statuses = [send(listen, GET % (b"/", b""))[0].split()[1] for _ in range(12)]
        assert statuses[:6] == [b"200"] * 6 and b"429" in statuses
        assert send(listen, GET % (b"/readyz", b""))[0].startswith(b"HTTP/1.1 200 ")
        assert send(listen, GET % (b"/", b""), "127.0.0.2")[0].startswith(b"HTTP/1.1 200 ")


CALLS = (b"POST /compress?rate=4&", b"POST /decompress?", b"PUT /objects?", b"GET %s?" % PICTURE)
TOKEN = "a" * 16


def call(request: bytes, word: str) -> bytes:
    """A request whose query has a word."""
    token = f"Authorization: Bearer {TOKEN}\r\n".encode()
    length, body = (b"", b"") if request.startswith(b"GET") else (b"Content-Length: 3\r\n", b"abc")
    return b"".join((request, word.encode(), b" HTTP/1.1\r\n", HOST, token, length, b"\r\n", body))


def test_a_request_that_killed_one_server_is_not_tried_on_another() -> None:
    with nginx(WRITE_TOKEN=TOKEN) as listen:
        for request in CALLS:
            answer = send(listen, call(request, "die"))
            check_problem(answer, 503, "saturated")
            assert b"Retry-After: 5" in answer[0]
        assert len(Upstream.asked) - Upstream.asked.count("/livez") == len(CALLS)


def test_a_server_that_is_not_there_or_full_is_not_missed() -> None:
    with ExitStack() as closing:
        there, gone = server(closing), f"127.0.0.1:{free_port()}"
        both = {"SERVERS": f"{gone} {there}", "DECODERS": gone, "WRITE_TOKEN": TOKEN}
        listen = closing.enter_context(nginx(**both))
        for turn in range(4):
            for request in CALLS:
                head, _ = send(listen, call(request, f"turn{turn}"))
                assert head.startswith(b"HTTP/1.1 200 "), (turn, request, head)
                if request.startswith(b"GET"):
                    assert b"X-Cache-Status: MISS" in head
                    again, _ = send(listen, call(request, f"turn{turn}"))
                    assert b"X-Cache-Status: HIT" in again
    with nginx(WRITE_TOKEN=TOKEN) as listen:
        for request in CALLS:
            assert send(listen, call(request, "full"))[0].startswith(b"HTTP/1.1 200 "), request
