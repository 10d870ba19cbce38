"""A small server that fails on purpose, and counts what it has done.

Of every ten requests about three fail: refused with 503, with and without Retry-After, dropped
before or after the work or in the middle of the answer, or stalled. Which ones depends on a seed
and on how often the same request came, not on the order in which threads run.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("refuse", "refuse at once", "drop", "drop after", "cut", "stall", "stall after", "502")
SHARE = 0.3


def job_document(job_id: str, step: int, status: str) -> dict[str, Any]:
    """A job as a server describes it."""
    return {
        "id": job_id, "status": status, "method": "model", "rate": 4.0, "quality": None,
        "autoencoder": None, "effort": 2, "priority": 5, "width": 8,
        "height": 8, "frame": None, "source_bytes": 3, "phase": "latents", "step": step,
        "total": 9, "bytes": 100 - step, "bpp": 1.0, "psnr_db": None, "first_bytes": 100,
        "first_bpp": 1.0, "first_psnr_db": 30.0, "seconds": 0.5, "notes": ["a note"],
        "created_at": "2026-01-01T00:00:00Z", "ended_at": None, "expires_at": None, "error": None,
    }  # fmt: skip


class FaultyServer(ThreadingHTTPServer):
    """Attributes:
    done: how often each piece of work was done, by method and path or hash of the body.
    requests: how often each request came. objects: that were put. steps: of each job.
    posted: a job that is the answer to every picture; None for one of the picture's own.
    last: how jobs end. result: their streams. on_events: is called when events are asked for.
    """

    daemon_threads = True

    def __init__(self, seed: int, share: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seed, self.share = seed, share
        self.lock, self.ending = threading.Lock(), threading.Event()
        self.done, self.requests = Counter[str](), Counter[str]()
        self.objects: dict[str, bytes] = {}
        self.steps = Counter[str]()
        self.posted: dict[str, Any] | None = None
        self.last, self.result = "succeeded", b""
        self.on_events: Callable[[], object] = lambda: None

    def fault(self, request: str) -> str | None:
        """The fault of the next request of this name, if it has one."""
        with self.lock:
            self.requests[request] += 1
            dice = random.Random(f"{self.seed} {request} {self.requests[request]}")
        return dice.choice(FAULTS) if dice.random() < self.share else None

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that left."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = hashlib.sha256(body).hexdigest() if body else self.path
        request = f"{self.command} {self.path.partition('?')[0]} {name}"
        fault = self.server.fault(request)
        if fault == "refuse":
            return self.send(503, b"{}", {"Retry-After": "0"})
        if fault in ("refuse at once", "502"):
            return self.send(503 if fault != "502" else 502, b"busy")
        if fault == "drop":
            return self.leave()
        if fault == "stall":
            self.server.ending.wait()
            return self.leave()
        status, data, headers = self.work(request, name, body)
        if fault == "drop after":
            return self.leave()
        if fault in ("cut", "stall after"):
            self.send(status, data, headers, cut=True)
            if fault != "cut":
                self.server.ending.wait()
            return self.leave()
        return self.send(status, data, headers)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def work(self, request: str, name: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        server, path = self.server, self.path.partition("?")[0]
        with server.lock:
            server.done[request] += 1
            if path == "/compress":
                stream = body[::-1]
                return 200, stream, {"ETag": f'"{hashlib.sha256(stream).hexdigest()}"'}
            if path.startswith("/objects"):
                status = 200 if name in server.objects else 201
                server.objects[name] = body
                shape = {"sha256": name, "bytes": len(body), "width": 1, "height": 1, "rate": 4.0}
                return status, json.dumps(shape).encode(), {}
            if path == "/adapt":
                posted = server.posted or job_document(name, 0, "queued")
                return 202, json.dumps(posted).encode(), {}
            if path.endswith("/result"):
                return 200, server.result, {}
            if path.endswith("/events"):
                server.on_events()
                return 200, self.events(path.split("/")[2]), {"Content-Type": "text/event-stream"}
            if path.startswith("/jobs"):
                return 200, self.job(path.split("/")[2]), {}
            return 200, b"{}", {}

    def job(self, job_id: str) -> bytes:
        """The job, one step further each time that it is looked at."""
        step = self.server.steps[job_id] = min(9, self.server.steps[job_id] + 1)
        return json.dumps(
            job_document(job_id, step, "running" if step < 9 else self.server.last)
        ).encode()

    def events(self, job_id: str) -> bytes:
        """Two events, after which the stream ends, as when a server restarts."""
        text = b"retry: 0\n\n"
        for _ in range(2):
            data = self.job(job_id)
            step = self.server.steps[job_id]
            text += b"id: %d\ndata: %s\n\n" % (step, data)
        return text

    def send(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()

    def leave(self) -> None:
        """Close the connection without another word."""
        self.close_connection = True


@contextmanager
def faulty_server(seed: int = 1, share: float = SHARE) -> Iterator[tuple[str, FaultyServer]]:
    """A server until the end of the block, and its URL."""
    server = FaultyServer(seed, share)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()
