"""A real server under load: throughput by number of clients, and answers at twice its capacity.

The server is a process of its own (`rankpress serve`), the clients are threads of this process with
one connection each, and requests go over loopback. Clients and server share the machine, so the
throughput is that of both together.
"""

from __future__ import annotations

import http.client
import itertools
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from service.bench.memory import as_png
from service.errors import RankpressError
from service.eval.machine import machine_for_timing, this_machine
from service.eval.pictures import generate

SCHEMA: Final = 1
CONCURRENCIES: Final = (1, 2, 4, 8)
SECONDS: Final = 6.0
START_TIMEOUT_S: Final = 120.0
REQUEST_TIMEOUT_S: Final = 300.0
MAX_WAITING: Final = 64
"""Requests that may wait for the server's workers; it answers 503 to more."""

LIMITS: Final = MappingProxyType(
    {"RANKPRESS_MAX_WAITING": str(MAX_WAITING), "RANKPRESS_CLIENT_SHARE": "1"}
)
"""Settings of the server: its one client address stands for many, so it may take every place."""

MAX_OVERLOAD_S: Final = 60.0
SIZE: Final = (768, 512)
WITHOUT_JOBS: Final = MappingProxyType({"RANKPRESS_JOBS": "false"})


class ServerFailed(RankpressError):
    """The server did not start, or ended by itself."""


@dataclass(frozen=True)
class LoadAnswer:
    """Status and milliseconds of one request; the status is 0 when the connection broke."""

    status: int
    ms: float


@dataclass(frozen=True)
class LoadRequest:
    """A POST request to send: path with query, and a body."""

    path: str
    body: bytes


def bench_server(
    rate: float, device: str, threads: int, store: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return the throughput of a server under load, with the machine, as JSON values.

    Raises:
        ServerFailed: the server did not start.
    """
    machine = machine_for_timing(device, progress)
    progress("server under load")
    return {
        "what": "service",
        "schema": SCHEMA,
        "rate": rate,
        "machine": asdict(machine),
        "threads": threads,
        "service": measure_throughput(rate, device, threads, store),
        "load_at_end": this_machine(device).load,
    }


def measure_throughput(
    rate: float, device: str, threads: int, store: Path | None
) -> dict[str, Any]:
    """Return requests per second by number of clients, and at twice the capacity of the server."""
    png = as_png(generate(*SIZE).rgb)
    with run_server(device, threads, store) as port:
        compress = LoadRequest(f"/compress?rate={rate:g}", png)
        stream = fetch(port, compress)
        decompress = LoadRequest("/decompress?format=png", stream)
        results: dict[str, Any] = {"width": SIZE[0], "height": SIZE[1]}
        for name, request in (("compress", compress), ("decompress", decompress)):
            same = itertools.repeat(request)
            closed = [closed_loop(port, same, clients, SECONDS) for clients in CONCURRENCIES]
            capacity = max(float(c["per_second"]) for c in closed)
            seconds = min(MAX_OVERLOAD_S, max(10.0, 2 * MAX_WAITING / capacity))
            results[name] = {
                "closed_loop": closed,
                "overload": open_loop(port, request, 2 * capacity, seconds),
            }
    return results


@contextmanager
def run_server(
    device: str,
    threads: int,
    store: Path | None,
    settings: Mapping[str, str] = WITHOUT_JOBS,
) -> Iterator[int]:
    """Start a server process, yield its port once it is ready, and stop it afterwards.

    Args:
        settings: environment variables of the server; it gets no other RANKPRESS_* but LIMITS.

    Raises:
        ServerFailed: it was not ready within START_TIMEOUT_S.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    code = "from service.cli.main import main; main()"
    arguments = ["serve", "--port", str(port), "--device", device, "--threads", str(threads)]
    arguments += ["--log-level", "error", *(["--store", str(store)] if store else [])]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RANKPRESS_")}
    environment |= LIMITS
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, env={**environment, **settings})
    try:
        _await_ready(process, port)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def fetch(port: int, request: LoadRequest) -> bytes:
    """Return the body of the answer. Raises ServerFailed if its status is not 200."""
    status, body = send(port, "POST", request.path, request.body)
    if status != 200:
        raise ServerFailed(f"POST {request.path} was answered {status}: {body[:200]!r}")
    return body


def send(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send one request on a connection of its own; return the status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
    with closing(connection):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def closed_loop(
    port: int, requests: Iterator[LoadRequest], clients: int, seconds: float
) -> dict[str, Any]:
    """Let clients send requests, each as soon as its last one is answered; return the throughput.

    Args:
        requests: an endless iterator that all clients take from in turn.
    """
    answers: list[LoadAnswer] = []
    deadline = time.monotonic() + seconds

    def run_client() -> None:
        with closing(_Client(port)) as client:
            while time.monotonic() < deadline:
                answers.append(client.send(next(requests)))

    begin = time.monotonic()
    threads = [threading.Thread(target=run_client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"clients": clients, **_summarise(answers, time.monotonic() - begin)}


def open_loop(port: int, request: LoadRequest, per_second: float, seconds: float) -> dict[str, Any]:
    """Send requests at fixed times, however slow the answers are; return the throughput."""
    answers: list[LoadAnswer] = []
    tickets: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    clients = MAX_WAITING + 32

    def run_client() -> None:
        with closing(_Client(port)) as client:
            while (due := tickets.get()) is not None:
                answers.append(client.send(request, since=due))

    threads = [threading.Thread(target=run_client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    begin = time.monotonic()
    for i in range(int(per_second * seconds)):
        due = begin + i / per_second
        time.sleep(max(0.0, due - time.monotonic()))
        tickets.put(due)
    for _ in threads:
        tickets.put(None)
    for thread in threads:
        thread.join()
    return {"offered_per_second": per_second, **_summarise(answers, time.monotonic() - begin)}


class _Client:
    """One connection, opened again after the server closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def send(self, request: LoadRequest, since: float | None = None) -> LoadAnswer:
        """Send a request and read the whole answer; its time counts from `since`, else from now."""
        start = time.monotonic() if since is None else since
        status = self._try(request) or self._try(request)  # a kept connection may have expired
        return LoadAnswer(status, 1000 * (time.monotonic() - start))

    def close(self) -> None:
        """Close the connection if one is open."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _try(self, request: LoadRequest) -> int:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=REQUEST_TIMEOUT_S
            )
        try:
            self._connection.request("POST", request.path, request.body)
            answer = self._connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            self.close()
            return 0


def _summarise(answers: list[LoadAnswer], seconds: float) -> dict[str, Any]:
    good = [a.ms for a in answers if a.status == 200]
    statuses: Mapping[int, int] = Counter(a.status for a in answers)
    return {
        "seconds": seconds,
        "per_second": len(good) / seconds,
        "median_ms": median(good) if good else None,
        "p95_ms": float(np.percentile(good, 95)) if good else None,
        "answered_200": len(good),
        "answered_503": statuses.get(503, 0),
        "answered_otherwise": len(answers) - len(good) - statuses.get(503, 0),
    }


def _await_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"the server ended with {process.returncode} before it was ready")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass  # the server does not listen yet
        finally:
            connection.close()
        time.sleep(0.1)
    raise ServerFailed(f"the server was not ready after {START_TIMEOUT_S:g} s")
